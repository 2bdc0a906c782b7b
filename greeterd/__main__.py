"""Runs the daemon: `python -m greeterd`."""

import sys

from greeterd.cli.greeterd import main

if __name__ == "__main__":
    sys.exit(main())
