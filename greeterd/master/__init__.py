"""DOES: event loop, signals, children, listeners; carries out what the supervisor decides."""
