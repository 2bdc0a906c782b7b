"""Sends a load, and reports what its clients saw."""
