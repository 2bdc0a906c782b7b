"""A pre-fork server daemon, and an instrument for what the kernel does with its connections."""

__version__ = "0.1.0"
