"""The part that decides: pure, without processes, sockets, signals or clocks."""
