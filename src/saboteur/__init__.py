"""Saboteur assesses how reliably deep neural networks run on faulty hardware.

``import saboteur`` is light: no level, and so no deep-learning library, is imported until it is used.
"""

__version__ = "0.1.0"
