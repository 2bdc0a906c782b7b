"""Classic BPF programs: which listener of a group takes a connection, which packets pass.

Pure functions from numbers to instructions; `steering` gives the programs to the kernel. Two kinds:
- a *selection* runs for each SYN to an SO_REUSEPORT group and returns the index of the listener
  that takes it. An index that no listener has makes the kernel fall back to its hash.
- a *socket filter* runs for each packet to one listener and returns how many bytes of it pass.
"""

import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, TypeAlias

# linux/filter.h: loads from these offsets answer from the kernel instead of from the packet.
_AD_CPU: Final = 0xFFFFF000 + 36
_AD_RANDOM: Final = 0xFFFFF000 + 56

# linux/bpf_common.h, class | size or operation | mode or source
LOAD_WORD: Final = 0x20
LOAD_BYTE: Final = 0x30
ADD: Final = 0x04
MODULO: Final = 0x94
JUMP: Final = 0x05
JUMP_IF_EQUAL: Final = 0x15
JUMP_IF_AT_LEAST: Final = 0x35
JUMP_IF_ANY_BIT: Final = 0x45
RETURN: Final = 0x06
RETURN_ACCUMULATOR: Final = 0x16

MAX_INSTRUCTIONS: Final = 4096  # BPF_MAXINSNS
_TCP_FLAGS_OFFSET: Final = 13  # a socket filter of TCP sees the packet from its TCP header on
_TCP_SYN: Final = 0x02
_WHOLE_PACKET: Final = 0xFFFFFFFF
_NO_INDEX: Final = 0xFFFFFFFF

Instruction: TypeAlias = tuple[int, int, int, int]
"""Operation, instructions to skip if true, if false, operand."""

Program: TypeAlias = tuple[Instruction, ...]


HASH: Final[Program] = ((RETURN, 0, 0, _NO_INDEX),)
"""Leaves the choice to the kernel's hash: no listener has this index."""


def choose(steering: str, cpus: Sequence[int | None], avoided: Collection[int]) -> Program | None:
    """Return the selection that `steering` (hash, cpu, random) means; None for the kernel's hash.

    `cpus` has an entry for each listener, by index: the CPU that its worker is pinned to, or None.
    By `cpu`, a connection goes to a listener that is pinned to the CPU that handles it, with equal
    chances where there are several; from other CPUs, by the hash. Where no worker is pinned, the
    CPUs are dealt out by turns. Listeners in `avoided` get nothing, unless there are no others.

    Raises: ValueError if there is no listener, or more than a program can distinguish.
    """
    indexes = range(len(cpus))
    allowed = [index for index in indexes if index not in avoided] or list(indexes)
    complete = len(allowed) == len(cpus)
    if steering == "random":
        return random_over(allowed)
    if steering == "cpu":
        owners: dict[int, list[int]] = {}
        for index in allowed:
            if (cpu := cpus[index]) is not None:
                owners.setdefault(cpu, []).append(index)
        if not owners:
            return cpu_over(allowed)
        return cpu_table(owners, HASH if complete else random_over(allowed))
    return None if complete else random_over(allowed)


def random_over(indexes: Iterable[int]) -> Program:
    """Return a selection that gives each of `indexes` the same chance.

    2**32 is not always a multiple of their count: some are favoured by one part in 2**32 / count.

    Raises: ValueError if there is no index, or if they leave more gaps than a program can hold.
    """
    return _over(_AD_RANDOM, indexes)


def cpu_over(indexes: Iterable[int]) -> Program:
    """Return a selection that deals the CPUs out to `indexes` by turns.

    Raises: ValueError as `random_over`.
    """
    return _over(_AD_CPU, indexes)


def cpu_table(owners: Mapping[int, Sequence[int]], others: Program) -> Program:
    """Return a selection by the CPU that handles the SYN: one of its owners, with equal chances.

    A CPU without owners is left to `others`.

    Raises: ValueError as `random_over`.
    """
    program: list[Instruction] = []
    for cpu in sorted(owners):
        choice = random_over(owners[cpu])
        # An unconditional jump over the choice: the conditional ones reach 255 instructions.
        program += [(JUMP_IF_EQUAL, 1, 0, cpu), (JUMP, 0, 0, len(choice)), *choice]
    return _checked([(LOAD_WORD, 0, 0, _AD_CPU), *program, *others])


def _over(number: int, indexes: Iterable[int]) -> Program:
    """Return a selection by a number of the kernel's, modulo the count of `indexes`.

    The result is the rank of the chosen index; each gap between the indexes, in ascending order,
    then raises it by the gap's width. Leaving out one of 512 listeners costs two instructions; a
    table of jumps would take two for each that stays.
    """
    allowed = sorted(set(indexes))
    if not allowed or allowed[0] < 0:
        raise ValueError("steering needs at least one index, and none below 0")
    if len(allowed) == 1:
        return ((RETURN, 0, 0, allowed[0]),)
    program: list[Instruction] = [(LOAD_WORD, 0, 0, number), (MODULO, 0, 0, len(allowed))]
    expected = 0
    for index in allowed:
        if index > expected:
            program += [(JUMP_IF_AT_LEAST, 0, 1, expected), (ADD, 0, 0, index - expected)]
        expected = index + 1
    program.append((RETURN_ACCUMULATOR, 0, 0, 0))
    return _checked(program)


def _checked(program: Sequence[Instruction]) -> Program:
    if len(program) > MAX_INSTRUCTIONS:
        raise ValueError(f"{len(program)} instructions; the kernel takes {MAX_INSTRUCTIONS}")
    return tuple(program)


def drop_syn() -> Program:
    """Return a socket filter that drops segments with the SYN flag and passes all others whole."""
    return (
        (LOAD_BYTE, 0, 0, _TCP_FLAGS_OFFSET),
        (JUMP_IF_ANY_BIT, 0, 1, _TCP_SYN),
        (RETURN, 0, 0, 0),
        (RETURN, 0, 0, _WHOLE_PACKET),
    )


def assemble(program: Program) -> bytes:
    """Return the program as an array of struct sock_filter, in the machine's byte order."""
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
