"""The three programs: argv -> Config -> run, request or measure."""
