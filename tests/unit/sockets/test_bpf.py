"""The programs for the kernel, run here on a machine of ten lines."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greeterd.sockets import bpf
from greeterd.sockets.bpf import (
    HASH,
    Program,
    assemble,
    choose,
    cpu_over,
    cpu_table,
    drop_syn,
    random_over,
)

SLOTS = 512
SYN, ACK, FIN, RST, PSH = 0x02, 0x10, 0x01, 0x04, 0x08


def run(program: Program, load: Callable[[int, int], int]) -> int:  # noqa: C901 - an operation each
    """Execute `program`; `load(operation, offset)` answers its loads. Returns what it returns."""
    accumulator = counter = 0
    while True:
        operation, if_true, if_false, operand = program[counter]
        counter += 1
        if operation in {bpf.LOAD_WORD, bpf.LOAD_BYTE}:
            accumulator = load(operation, operand)
        elif operation == bpf.MODULO:
            accumulator %= operand
        elif operation == bpf.ADD:
            accumulator = (accumulator + operand) % 2**32
        elif operation == bpf.JUMP_IF_AT_LEAST:
            counter += if_true if accumulator >= operand else if_false
        elif operation == bpf.JUMP_IF_EQUAL:
            counter += if_true if accumulator == operand else if_false
        elif operation == bpf.JUMP:
            counter += operand
        elif operation == bpf.JUMP_IF_ANY_BIT:
            counter += if_true if accumulator & operand else if_false
        elif operation == bpf.RETURN:
            return operand
        elif operation == bpf.RETURN_ACCUMULATOR:
            return accumulator
        else:
            raise AssertionError(f"unknown operation {operation:#x}")


def chosen(program: Program, random: int) -> int:
    """Return the index that the selection gives for this random number."""

    def load(operation: int, offset: int) -> int:
        assert (operation, offset) == (bpf.LOAD_WORD, 0xFFFFF000 + 56)
        return random

    return run(program, load)


def spread(indexes: Sequence[int]) -> Counter[int]:
    """Count the choices over whole periods of the random number, the last one included."""
    program = random_over(indexes)
    period = len(indexes)
    last = 2**32 // period * period - period
    return Counter(
        chosen(program, start + rank) for start in (0, period, last) for rank in range(period)
    )


def gated(flags: int) -> int:
    """Return how many bytes of a segment with these TCP flags pass the gate."""
    header = bytes(13) + bytes([flags]) + bytes(6)

    def load(operation: int, offset: int) -> int:
        assert operation == bpf.LOAD_BYTE
        return header[offset]

    return run(drop_syn(), load)


def test_every_subset_of_six_is_chosen_from_evenly_and_exclusively() -> None:
    for size in range(1, 7):
        for subset in combinations(range(6), size):
            assert spread(subset) == dict.fromkeys(subset, 3), subset


@given(st.sets(st.integers(0, SLOTS - 1), min_size=1))
def test_any_set_of_slots_is_chosen_from_evenly_and_exclusively(indexes: set[int]) -> None:
    assert spread(sorted(indexes)) == dict.fromkeys(indexes, 3)


@given(st.sets(st.integers(0, SLOTS - 1), min_size=1), st.integers(0, 2**32 - 1))
def test_no_random_number_leads_elsewhere(indexes: set[int], random: int) -> None:
    assert chosen(random_over(indexes), random) in indexes


def test_order_and_repetition_of_the_indexes_do_not_matter() -> None:
    assert random_over([3, 1, 3]) == random_over([1, 3])


def test_one_index_needs_no_random_number() -> None:
    assert random_over([7]) == ((bpf.RETURN, 0, 0, 7),)


def test_leaving_out_one_of_many_costs_two_instructions() -> None:
    everyone = range(SLOTS)
    assert len(random_over(set(everyone) - {100})) == len(random_over(everyone)) + 2


def test_the_worst_set_of_slots_is_a_program_that_the_kernel_takes() -> None:
    assert len(random_over(range(1, SLOTS, 2))) <= bpf.MAX_INSTRUCTIONS


def test_more_gaps_than_a_program_can_hold_are_refused() -> None:
    with pytest.raises(ValueError, match="instructions"):
        random_over(range(1, 2 * bpf.MAX_INSTRUCTIONS, 2))


@pytest.mark.parametrize("indexes", [[], [-1, 2]])
def test_steering_to_nobody_is_refused(indexes: list[int]) -> None:
    with pytest.raises(ValueError, match="at least one index"):
        random_over(indexes)


def on_cpu(program: Program, cpu: int, random: int = 0) -> int | None:
    """Return the index for a SYN that this CPU handles; None where the hash has to choose."""

    def load(operation: int, offset: int) -> int:
        assert operation == bpf.LOAD_WORD
        return {0xFFFFF000 + 36: cpu, 0xFFFFF000 + 56: random}[offset]

    index = run(program, load)
    return None if index == 0xFFFFFFFF else index


def choices(program: Program | None, cpu: int, count: int = 12) -> set[int | None]:
    """Return what a SYN on this CPU can lead to, whatever the random number."""
    assert program is not None
    return {on_cpu(program, cpu, random) for random in range(count)}


def test_cpus_are_dealt_out_by_turns() -> None:
    assert [on_cpu(cpu_over([0, 2, 3]), cpu) for cpu in range(5)] == [0, 2, 3, 0, 2]


def test_a_table_gives_a_cpu_to_its_owners_evenly_and_the_others_to_the_rest() -> None:
    program = cpu_table({7: [1], 2: [0, 3]}, HASH)
    assert [on_cpu(program, cpu) for cpu in (7, 1, 8)] == [1, None, None]
    assert Counter(on_cpu(program, 2, random) for random in range(10)) == {0: 5, 3: 5}
    assert choices(cpu_table({7: [1]}, random_over([0, 2])), 5) == {0, 2}


def test_each_steering_is_the_program_of_its_name() -> None:
    assert choose("hash", [None] * 3, []) is None
    assert choose("random", [None] * 3, []) == random_over(range(3))
    assert choose("cpu", [None] * 3, []) == cpu_over(range(3))
    assert choose("cpu", [0, 1, 0], []) == cpu_table({0: [0, 2], 1: [1]}, HASH)


def test_by_cpu_the_index_is_that_of_the_pinned_worker_in_any_order() -> None:
    program = choose("cpu", [3, 0, 2, 1], [])
    assert [choices(program, cpu) for cpu in range(5)] == [{1}, {3}, {2}, {0}, {None}]


@pytest.mark.parametrize("steering", ["hash", "cpu", "random"])
def test_the_only_listener_cannot_be_avoided(steering: str) -> None:
    assert choose(steering, [0], [0]) == choose(steering, [0], [])


@given(
    st.sampled_from(["hash", "cpu", "random"]),
    st.lists(st.integers(0, 3), min_size=2, max_size=8),
    st.booleans(),
    st.data(),
)
def test_what_is_avoided_gets_nothing_and_nobody_else_is_left_out(
    steering: str, cpus: list[int], pinned: bool, data: st.DataObject
) -> None:
    avoided = data.draw(st.sets(st.integers(0, len(cpus) - 1), min_size=1, max_size=len(cpus) - 1))
    program = choose(steering, [cpu if pinned else None for cpu in cpus], avoided)
    found = {index for cpu in range(8) for index in choices(program, cpu, 840)}
    assert found == set(range(len(cpus))) - avoided


@given(st.lists(st.integers(0, 40), min_size=SLOTS, max_size=SLOTS))
def test_any_table_of_all_slots_is_right_for_each_cpu(cpus: list[int]) -> None:
    program = choose("cpu", cpus, [])
    for cpu in range(41):
        owners: set[int | None] = {index for index, own in enumerate(cpus) if own == cpu}
        assert choices(program, cpu, max(1, len(owners))) == (owners or {None})


def test_steering_by_cpu_over_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one index"):
        choose("cpu", [], [])


@pytest.mark.parametrize("flags", [SYN, SYN | 0xC0, SYN | ACK])
def test_the_gate_drops_whatever_opens_a_connection(flags: int) -> None:
    assert gated(flags) == 0


@pytest.mark.parametrize("flags", [ACK, ACK | PSH, ACK | FIN, RST, RST | ACK, 0xFF & ~SYN])
def test_the_gate_passes_all_other_segments_whole(flags: int) -> None:
    assert gated(flags) == 0xFFFFFFFF


def test_an_instruction_is_eight_bytes_of_struct_sock_filter() -> None:
    assert len(assemble(drop_syn())) == 8 * len(drop_syn())
    assert assemble(((0x0102, 3, 4, 0x05060708),)) in {
        bytes([2, 1, 3, 4, 8, 7, 6, 5]),
        bytes([1, 2, 3, 4, 5, 6, 7, 8]),
    }
