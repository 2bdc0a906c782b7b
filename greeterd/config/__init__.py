"""Settings: their types, defaults and help, and where they come from."""
