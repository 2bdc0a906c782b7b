"""Theory of queues, held against closed forms, tables and a simulation."""

import heapq
import math
from random import Random

import pytest

from greeterd.bench.analysis.queueing import erlang_c, response_quantile, response_tail


def test_one_server_has_the_exponential_response_of_mm1() -> None:
    rate, service = 0.7, 1.0
    assert erlang_c(1, 0.7) == pytest.approx(0.7)
    for seconds in (0.5, 3.0, 10.0):
        assert response_tail(1, rate, service, seconds) == pytest.approx(math.exp(-0.3 * seconds))
    assert response_quantile(1, rate, service, 0.99) == pytest.approx(math.log(100) / 0.3)


def test_erlang_c_is_that_of_the_tables() -> None:
    assert erlang_c(2, 1.0) == pytest.approx(1 / 3)
    assert erlang_c(4, 2.8) == pytest.approx(0.42866, abs=1e-4)


def test_a_load_that_is_too_much_is_never_served() -> None:
    assert response_quantile(2, 2.0, 1.0, 0.5) == math.inf


@pytest.mark.parametrize("servers", [1, 2, 4])
def test_a_simulated_queue_has_the_quantile_of_the_theory(servers: int) -> None:
    random, free, now = Random(servers), [0.0] * servers, 0.0
    rate, service, responses = 0.7 * servers, 1.0, []
    for _ in range(200_000):
        now += random.expovariate(rate)
        begin = max(now, heapq.heappop(free))
        end = begin + random.expovariate(1 / service)
        heapq.heappush(free, end)
        responses.append(end - now)
    responses.sort()
    found = responses[int(0.99 * len(responses))]
    assert response_quantile(servers, rate, service, 0.99) == pytest.approx(found, rel=0.06)


def test_where_waiting_and_service_have_one_rate_the_tail_has_its_own_form() -> None:
    # Two servers at half load: c mu - rate = mu.
    near = response_tail(2, 1.0 + 1e-7, 1.0, 3.0)
    assert response_tail(2, 1.0, 1.0, 3.0) == pytest.approx(near, rel=1e-5)
