"""A thousand clients that connect and say nothing: whom they delay, and what becomes of them.

The times are printed; `python -m tests.system.silent` measures them with more rounds.
"""

from time import monotonic

import pytest

from tests.system.books import outcomes, quiet_totals
from tests.system.clients import silent_clients
from tests.system.conftest import StartDaemon
from tests.system.silent import allow_descriptors, compare, measure

SILENT = 1_000

both_modes = pytest.mark.parametrize("mode", ["inherit", "reuseport"])


@pytest.mark.shows("when a client is silent, or sends its name letter by letter")
@both_modes
def test_silent_clients_do_not_delay_the_others(daemon: StartDaemon, mode: str) -> None:
    one = daemon(f"--mode={mode}", "--workers=4", "--reply", "--client-timeout=600")
    times = compare(one, silent=SILENT, rounds=4, greetings=250)
    print(f"{mode}: {times}")
    # Far from the bound that is wanted, and far from what a daemon that looks at each silent client
    # in every turn would need: the machine may be busy.
    assert times.ratio(50) < 3
    totals = quiet_totals(one, connections=4 * SILENT + 9 * 250)
    assert outcomes(totals) == {"greetings": 9 * 250, "empty": 4 * SILENT}


@pytest.mark.shows("when a client is silent, or sends its name letter by letter")
@both_modes
def test_silent_clients_are_closed_after_the_timeout_and_counted(
    daemon: StartDaemon, mode: str
) -> None:
    allow_descriptors(SILENT)
    timeout = 5.0
    one = daemon(f"--mode={mode}", "--workers=4", "--reply", f"--client-timeout={timeout}")
    began = monotonic()
    with silent_clients(one.address, SILENT) as silent:
        connected = monotonic()
        for number, sock in enumerate(silent):
            if number % 2:
                sock.sendall(b"half a na")
        measure(one.address, 100)
        for sock in silent:
            sock.settimeout(20.0)
            assert sock.recv(1) == b""
        ended = monotonic()
    totals = quiet_totals(one, connections=SILENT + 100)
    print(f"{mode}: the last of {SILENT} was closed {ended - connected:.2f} s after it came")
    assert outcomes(totals) == {"greetings": 100, "timeout": SILENT}
    assert ended - began > timeout * 0.9
    assert ended - connected < timeout + 3.0
    assert len(one.greetings()) == 100
    others = {each["event"] for each in one.events() if each["level"] != "info"}
    assert others <= {"workers are root"}
