"""Runs the command as ``python -m saboteur.cli``."""

from saboteur.cli.app import main

if __name__ == "__main__":
    main()
