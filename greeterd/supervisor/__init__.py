"""DECIDES: events in, actions out; pure, without processes, sockets, signals or clocks."""
