"""Runs the daemon: `python -m greeterd`."""

import sys

from greeterd.cli.entry import greeterd

if __name__ == "__main__":
    sys.exit(greeterd())
