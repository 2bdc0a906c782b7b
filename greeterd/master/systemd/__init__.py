"""What is said to the service manager, kept with it, and taken from it."""
