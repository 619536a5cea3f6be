"""The ``saboteur`` command: data on stdout, progress and messages on stderr.

Exit codes: 0 the work is done, 1 failure (or, with ``--strict``, a requirement that is not met or still open),
2 wrong usage, 3 stopped early with all data kept.
"""

from saboteur.cli.app import app, main

__all__ = ["app", "main"]
