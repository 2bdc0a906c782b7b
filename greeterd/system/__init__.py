"""One facility of the operating system each: signals, privileges, files, the pid file, limits."""
