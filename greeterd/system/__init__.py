"""One facility of the operating system each: signals, privileges, the pid file, limits."""
