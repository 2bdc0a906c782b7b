"""What theory says of queues: the M/M/c queue, arrivals and service times exponential; pure.

A shared listener is one queue for c workers; a listener for each worker is c queues for one each,
with a c-th of the arrivals.  Formulas: L. Kleinrock, Queueing Systems I (1975), 3.5; the Erlang C
formula by A. Erlang (1917).
"""

import math
from typing import Final

_STEPS: Final = 100


def erlang_c(servers: int, load: float) -> float:
    """Return the probability that an arrival waits; `load` is arrivals times service time."""
    terms = [load**n / math.factorial(n) for n in range(servers)]
    last = load**servers / math.factorial(servers) * servers / (servers - load)
    return last / (sum(terms) + last)


def response_tail(servers: int, rate: float, service: float, seconds: float) -> float:
    """Return the probability that an arrival is served later than so many seconds after it came."""
    load, mu = rate * service, 1 / service
    waits, drain = erlang_c(servers, load), servers * mu - rate
    if math.isclose(drain, mu):
        return math.exp(-mu * seconds) * (1 + waits * mu * seconds)
    # Waiting (with its atom at 0) and service are independent.
    blend = waits * mu / (drain - mu)
    return (1 + blend) * math.exp(-mu * seconds) - blend * math.exp(-drain * seconds)


def response_quantile(servers: int, rate: float, service: float, share: float) -> float:
    """Return the seconds within which this share is served; infinite where the load is too much."""
    if rate * service >= servers:
        return math.inf
    low, high = 0.0, service
    while response_tail(servers, rate, service, high) > 1 - share:
        high *= 2
    for _ in range(_STEPS):
        middle = (low + high) / 2
        late = response_tail(servers, rate, service, middle) > 1 - share
        low, high = (middle, high) if late else (low, middle)
    return high
