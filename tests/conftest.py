"""What holds for every test: the programs under test are started as from a terminal."""

import signal

from hypothesis import settings

# A shell without job control starts what runs in the background with SIGINT and SIGQUIT ignored,
# which children inherit over exec; the tests send both.
for _number in (signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(_number) is signal.SIG_IGN:
        _handler = signal.default_int_handler if _number is signal.SIGINT else signal.SIG_DFL
        signal.signal(_number, _handler)  # noqa: TID251 - no daemon here

# An example that takes long has met a stall of the machine, and shows nothing.
settings.register_profile("tests", settings.default, deadline=None)
settings.load_profile("tests")
