"""Runs ``rpg`` as ``python -m rpg_platform.cli``."""

from rpg_platform.cli.main import main

if __name__ == "__main__":
    main()
