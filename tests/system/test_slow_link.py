"""Over a link with 40 ms of round-trip time: workers leave, and nobody who has connected is failed.

On bare loopback a handshake is over before a listener can close; here many are in flight.
"""

import pytest

from tests.system.sizes import sized
from tests.system.slow_link import ONE_WAY, scale_down_and_stop


@pytest.mark.shows(
    "when a reload, a scale or a stop comes under load", "limit the gate without CAP_NET_ADMIN"
)
@pytest.mark.parametrize("mode", ["inherit", "reuseport", "handoff"])
@pytest.mark.parametrize("plain", [False, True], ids=["with CAP_NET_ADMIN", "without it"])
def test_scale_down_and_the_final_stop_fail_nobody(mode: str, *, plain: bool) -> None:
    outcome = scale_down_and_stop(mode, removals=sized(15, 4), plain=plain)
    print(outcome.clients.counts, f"slowest {outcome.clients.slowest:.2f} s")
    print(f"stopped in {outcome.stop_took:.2f} s")
    assert outcome.exit_code == 0
    assert outcome.failed == {}
    assert outcome.unlogged == 0
    assert outcome.clients.counts["ok"] > 300
    assert outcome.clients.slowest >= 4 * ONE_WAY
