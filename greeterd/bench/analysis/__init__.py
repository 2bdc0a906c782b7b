"""Says what the trials of an experiment show; pure."""
