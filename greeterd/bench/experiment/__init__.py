"""Runs trials: servers, loads, faults, what they cost and what they counted."""
