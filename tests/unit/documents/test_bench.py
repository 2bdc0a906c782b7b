"""greeterd/bench/README.md says what the code says of loads, columns, expectations and peers."""

import re
from typing import get_args

from greeterd.bench import peers
from greeterd.bench.analysis import expectations
from greeterd.bench.model import Arrival
from greeterd.bench.report import export
from tests.documents import BENCH


def test_the_arrivals_are_those_of_the_code() -> None:
    assert BENCH.column("Load") == list(get_args(Arrival))


def test_the_fields_and_metrics_of_an_expectation_are_those_of_the_code() -> None:
    assert set(BENCH.column("Expectations")) == set(expectations.Predicate.__struct_fields__)
    (listed,) = re.findall(r"Metrics:\n(.*?)\.\n", BENCH.section("Expectations"), re.DOTALL)
    assert re.findall(r"`(\w+)`", listed) == list(expectations.OF)


def test_the_expectation_that_is_shown_makes_sense() -> None:
    (one,) = expectations.parse(BENCH.block("Expectations", "toml", "[[expect]]"))
    assert one.than == {"mode": "inherit"}


def test_the_columns_of_csv_are_those_of_the_code() -> None:
    assert BENCH.column("CSV columns") == list(export.COLUMNS)


def test_the_peers_are_those_of_the_code() -> None:
    assert BENCH.column("Peers") == list(peers.PEERS)
