"""Replaces the running program by a new one in the same process (re-exec)."""
