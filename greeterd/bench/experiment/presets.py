"""Names the experiments that are ready to run, and makes a plan of one, or of axes alone."""

import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, get_args, get_type_hints

import msgspec

from greeterd.bench.experiment.plan import AXES, Choice, Matrix, join
from greeterd.config.schema import Mode
from greeterd.errors import UsageError

ALL_MODES: Final[tuple[Mode, ...]] = ("inherit", "reuseport", "handoff")
CLASSIC: Final[tuple[Mode, ...]] = ("inherit", "reuseport")


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A ready experiment: the union of some matrices."""

    about: str
    matrices: tuple[Matrix, ...]
    max_time: float = 60.0
    pairs: int | None = None
    warmup: int = 400
    pin: bool = True
    """Whether servers and clients have CPUs of their own, where there are two."""


ARTICLE: Final = Preset(
    about="the hand-made experiment: four shells, each starting 10,000 senders one by one",
    # In 20 parts, so that the two modes are measured side by side.
    matrices=(Matrix(mode=CLASSIC, concurrency=(4,), arrival=("seed",), greetings=(2000,)),),
    pairs=20,
    pin=False,  # as the shells were
)

QUICK: Final = Preset(
    about="inherit against reuseport, then handoff and the waits",
    matrices=(
        Matrix(mode=CLASSIC),
        Matrix(mode=("handoff",)),
        Matrix(mode=("inherit",), wait=("epoll",)),
        Matrix(mode=("inherit",), wait=("rotate", "exclusive"), concurrency=(1,), greetings=(500,)),
    ),
)

_LOADED: Final = Matrix(mode=ALL_MODES, concurrency=(32,))
"""As much as the server takes: a worker that dies has connections in hand."""
_STEADY: Final = Matrix(mode=ALL_MODES, arrival=("poisson",), rate=(500.0,), greetings=(250,))
_TAKERS: Final = (
    Matrix(mode=CLASSIC),
    Matrix(mode=("inherit",), wait=("exclusive", "epoll", "blocking")),
    Matrix(mode=("reuseport",), wait=("blocking",)),
    Matrix(mode=("handoff",), handoff_policy=("round-robin", "least-busy")),
)
FULL: Final = Preset(
    about="modes, waits, steering, workers, open-loop latency, faults and peers",
    matrices=(
        # Who takes the connections, alone and under load.
        *(replace(one, concurrency=(32,)) for one in _TAKERS),
        *(replace(one, concurrency=(1,), greetings=(1000,)) for one in _TAKERS),
        Matrix(mode=("reuseport",), steering=("random",), concurrency=(32,)),
        # What more workers bring.
        replace(_LOADED, workers=(1, 2, 8)),
        # What an arrival waits for, at rates that do not ask the server first.
        replace(_STEADY, rate=(500.0, 1000.0, 2000.0)),
        # What a fault costs.
        replace(_STEADY, fault=("stopped",), rescue=(True, False)),
        replace(_LOADED, fault=("killed", "reload")),
        # What one would write instead.
        Matrix(server=("socketserver",), mode=("inherit",), concurrency=(32,)),
        Matrix(server=("asyncio", "uvloop", "threaded", "bare"), mode=CLASSIC, concurrency=(32,)),
    ),
    max_time=900.0,
)

PRESETS: Final[Mapping[str, Preset]] = types.MappingProxyType(
    {"article": ARTICLE, "quick": QUICK, "full": FULL}
)
"""By name."""

CUSTOM: Final = Preset(about="the axes of the command line", matrices=(Matrix(),))
BUILDS: Final = Preset(
    about="two builds of greeterd", matrices=(Matrix(mode=("inherit",)),), max_time=180.0
)
COMMANDS: Final = Preset(about="other servers", matrices=(Matrix(mode=("inherit",)),))

_SWITCHES: Final = {"on": "true", "off": "false"}


def parse_axes(texts: Mapping[str, str]) -> dict[str, Sequence[Any]]:
    """Return the values of axes, each given as a list separated by commas.

    Raises:
        UsageError: a value is none of the axis.
    """
    hints = get_type_hints(Matrix)
    assert texts.keys() <= set(AXES)
    found: dict[str, Sequence[Any]] = {}
    for name, text in texts.items():
        words = [_SWITCHES.get(word, word) for word in text.replace(",", " ").split()]
        try:
            values = msgspec.convert(words, hints[name], strict=False)
        except msgspec.ValidationError:
            values = ()
        if not values:
            known = _known(hints[name])
            raise UsageError(f"--{name.replace('_', '-')} {text}: must be a list of {known}")
        found[name] = tuple(dict.fromkeys(values))
    return found


def _known(hint: Any) -> str:
    """Return in words which values an axis has."""
    (kind,) = get_args(hint)
    words = {bool: "on, off", int: "numbers", float: "numbers"}
    return words.get(kind) or ", ".join(get_args(kind))


def choose(preset: Preset, axes: Mapping[str, Sequence[Any]]) -> Choice:
    """Return the cases of a preset with the values of some axes in the place of its own."""
    return join(replace(matrix, **axes) for matrix in preset.matrices)
