"""Names the experiments that are ready to run: `article`, `quick` and `full`."""

from dataclasses import dataclass, replace
from typing import Final

from greeterd.bench.plan import Matrix

ALL_MODES: Final = ("inherit", "reuseport", "handoff")
CLASSIC: Final = ("inherit", "reuseport")
WAITS: Final = ("rotate", "exclusive", "epoll", "blocking")


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A ready experiment: the union of some matrices."""

    about: str
    matrices: tuple[Matrix, ...]
    repeats: int
    warmup: int = 400


ARTICLE: Final = Preset(
    about="the hand-made experiment: four shells, each starting 10,000 senders one by one",
    matrices=(Matrix(mode=CLASSIC, concurrency=(4,), arrival=("seed",), greetings=(40_000,)),),
    repeats=3,
)

_SHORT: Final = Matrix(greetings=(1500,))
QUICK: Final = Preset(
    about="modes and waits in under a minute",
    matrices=(
        replace(_SHORT, mode=("inherit",), wait=WAITS),
        replace(_SHORT, mode=("reuseport", "handoff")),
        replace(_SHORT, mode=("inherit",), wait=("exclusive",), concurrency=(1,)),
    ),
    repeats=3,
    warmup=200,
)

_LOADED: Final = Matrix(mode=ALL_MODES, concurrency=(32,))
_STEADY: Final = Matrix(mode=ALL_MODES, arrival=("poisson",), rate=(500.0,), greetings=(2500,))
FULL: Final = Preset(
    about="modes, waits, steering, workers, open-loop latency, faults and peers",
    matrices=(
        # Who takes the connections, alone and under load.
        Matrix(mode=("inherit",), wait=WAITS, concurrency=(1, 32)),
        Matrix(mode=("reuseport",), wait=("epoll", "blocking"), concurrency=(1, 32)),
        Matrix(mode=("reuseport",), wait=("epoll",), steering=("cpu", "random"), concurrency=(32,)),
        Matrix(
            mode=("handoff",), handoff_policy=("round-robin", "least-busy"), concurrency=(1, 32)
        ),
        # What more workers bring.
        replace(_LOADED, workers=(1, 2, 4, 8)),
        # What an arrival waits for, at rates that do not ask the server first.
        replace(_STEADY, rate=(500.0, 1000.0, 2000.0), greetings=(5000,)),
        # What a fault costs.
        replace(_STEADY, fault=("stopped",), rescue=(True, False)),
        replace(_STEADY, fault=("killed", "reload")),
        # What one would write instead.
        Matrix(
            server=("socketserver", "asyncio", "uvloop", "threaded", "bare"),
            mode=CLASSIC,
            concurrency=(32,),
        ),
    ),
    repeats=5,
)

PRESETS: Final = {"article": ARTICLE, "quick": QUICK, "full": FULL}
