"""Reports as files and in a terminal: well-formed, complete, with nothing from elsewhere."""

import csv
import io
import re
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from msgspec.structs import replace
from rich.console import Console

from greeterd.bench import extras
from greeterd.bench.analysis.rows import question, rows
from greeterd.bench.analysis.summary import summarise
from greeterd.bench.experiment import store
from greeterd.bench.experiment.plan import Plan, compared
from greeterd.bench.model import Case, Held, Results, Trial
from greeterd.bench.report import export, html
from greeterd.bench.report.charts import Chart, make_charts
from greeterd.bench.report.export import COLUMNS, UnreadableError, read, to_csv, to_json
from greeterd.bench.report.sheets import make_sheets
from greeterd.bench.report.tables import render, show
from greeterd.errors import MissingPackageError
from tests.bench_results import ARTICLE, ENVIRONMENT, WIDE, make_results

SVG = "{http://www.w3.org/2000/svg}"
VOID = {"meta", "br", "hr", "img", "link", "input", "col"}
WIDE_RUN = make_results([replace(case, greetings=1000) for case in WIDE], 3)
ARTICLE_RUN = make_results(ARTICLE, 3)
FAILED = replace(
    ARTICLE_RUN,
    trials=[
        replace(one, invalid="it <died>\x1b[31m & that", load=None) for one in ARTICLE_RUN.trials
    ],
)
RUNS = {"wide": WIDE_RUN, "article": ARTICLE_RUN, "failed": FAILED}


class Page(HTMLParser):
    """Reads a page, and fails where an end does not belong to the last beginning."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a beginning."""
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what begins and ends at once."""
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """Close what was opened last."""
        assert self.open.pop() == tag


@pytest.fixture(scope="module", params=RUNS)
def page(request: pytest.FixtureRequest) -> str:
    """Return a report."""
    return html.render(RUNS[request.param])


def drawings(page: str) -> list[ET.Element]:
    return [ET.fromstring(one) for one in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def test_a_page_is_well_formed_and_no_two_things_have_one_name(page: str) -> None:
    named = [attributes["id"] for _, attributes in Page(page).tags if "id" in attributes]
    assert len(named) == len(set(named))
    assert page.startswith("<!DOCTYPE html>")


def test_a_page_needs_nothing_but_itself(page: str) -> None:
    parsed = Page(page)
    assert {"script", "link", "img", "iframe", "object", "embed"}.isdisjoint(
        tag for tag, _ in parsed.tags
    )
    for _, attributes in parsed.tags:
        assert {"src", "href", "srcset"}.isdisjoint(attributes)
        assert not [name for name in attributes if name.startswith("on")]
        own = attributes.get("xlink:href") or "#"
        assert own.startswith("#")
    assert not re.search(r"@import|url\([^#]", page)
    assert set(re.findall(r"https?://[^\"' ]+", page)) <= {
        "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink",
    }  # fmt: skip


def test_a_page_is_for_light_dark_phone_and_paper(page: str) -> None:
    for rule in ("prefers-color-scheme: dark", "@media print", "max-width: 40rem"):
        assert rule in page
    assert 'name="viewport"' in page


def test_every_drawing_says_in_words_what_it_shows() -> None:
    page = html.render(WIDE_RUN)
    shown = drawings(page)
    assert len(shown) == 3
    for one in shown:
        assert one.get("role") == "img"
        title, description = one.find(f"{SVG}title"), one.find(f"{SVG}desc")
        assert title is not None
        assert description is not None
        assert title.text
        assert description.text
        assert one.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
        assert escape(description.text) in page.split("The charts in words")[1]


def test_a_drawing_has_the_colours_of_the_page_and_no_other() -> None:
    for one in charts(WIDE_RUN):
        assert set(re.findall(r"#[0-9a-f]{6}\b", one.drawing)) <= {"#000000"}
        used = set(re.findall(r"var\(--(\w+)\)", one.drawing))
        assert {"text", "soft"} <= used
        page = html.render(WIDE_RUN)
        # Light, dark and paper each have a value for it.
        assert all(page.count(f"--{name}:") == 3 for name in used)


def charts(results: Results) -> list[Chart]:
    return make_charts(results, summarise(results), rows(results))


def test_the_forest_has_a_dot_for_each_pair_of_each_comparison() -> None:
    forest = next(one for one in charts(ARTICLE_RUN) if "beside the first" in one.title)
    (row,) = rows(ARTICLE_RUN)
    (dots,) = re.findall(r'<g id="forest-line2d_\d+">(?:(?!</g>).)*var\(--c0\).*?</g>\s*</g>',
                         forest.drawing, re.DOTALL)  # fmt: skip
    assert dots.count("<use ") == len(row.pairs) == 3
    assert "reuseport / inherit: " in forest.text


def test_nothing_is_drawn_that_there_are_no_figures_of() -> None:
    assert charts(FAILED) == []
    alone = make_results([Case(server="uvloop", greetings=400)], 2)
    assert [one.title for one in charts(alone)] == ["Latency"]


def test_a_census_is_drawn_beside_the_counts() -> None:
    held = Held(case=ARTICLE[1], kind="held", per_process={7: 90, 8: 110})
    balance = charts(replace(ARTICLE_RUN, held=[held]))[1]
    assert "reuseport, held: 90 110, by census" in balance.text


def test_no_drawing_reaches_beyond_its_frame() -> None:
    for one in drawings(html.render(WIDE_RUN)):
        width, height = map(float, str(one.get("viewBox")).split()[2:])
        for mark in one.iter(f"{SVG}use"):
            assert -1 <= float(str(mark.get("x"))) <= width + 1
            assert -1 <= float(str(mark.get("y"))) <= height + 1


def test_the_first_screen_has_the_question_the_answer_and_the_charts() -> None:
    page = html.render(ARTICLE_RUN)
    first, _, folded = page.partition("<details>")
    assert f"<h1>{escape(question(ARTICLE_RUN))}</h1>" in first
    assert '<p class="answer">' in first
    assert first.count("<svg") == 3
    assert "<table" not in first
    assert "<svg" not in folded


def test_text_is_escaped(page: str) -> None:
    assert "A CPU &lt;of&gt; some &amp; kind" in page
    assert "<of>" not in page
    assert "<died>" not in page


def test_text_of_a_drawing_is_escaped() -> None:
    cases = [Case(server="<a>&b", greetings=400), Case(server="c", greetings=400)]
    for one in charts(make_results(cases, 2)):
        ET.fromstring(one.drawing)
        assert "<a>" not in one.drawing


def test_a_run_without_a_valid_trial_is_reported_as_that() -> None:
    page = html.render(FAILED)
    assert "6 of 6 trials are invalid and left out" in page
    assert "it &lt;died&gt;" in page
    assert drawings(page) == []
    assert page.count("There is no valid trial.") == 1
    assert html.render(replace(FAILED, trials=[])).count("There is no valid trial.") == 1
    assert "There is no valid trial." not in html.render(ARTICLE_RUN)


def test_without_its_packages_a_report_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda _name: None)
    with pytest.raises(MissingPackageError, match=r"scipy .*greeterd\[bench\]"):
        html.render(ARTICLE_RUN)


# The terminal -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_a_report_is_no_wider_than_its_terminal(name: str) -> None:
    console = Console(width=80, no_color=True, file=io.StringIO())
    with console.capture() as capture:
        console.print(render(RUNS[name]))
    assert max(map(len, capture.get().splitlines())) <= 80


def test_in_a_narrow_terminal_names_are_folded_and_figures_never() -> None:
    console = Console(width=80, no_color=True, file=io.StringIO())
    with console.capture() as capture:
        console.print(render(WIDE_RUN))
    text = capture.get()
    for sheet in make_sheets(summarise(WIDE_RUN)):
        figures = [i for i, head in enumerate(sheet.head) if i and head not in sheet.words]
        for group in sheet.groups:
            for row in group.rows:
                assert all(row[index] in text for index in figures)


def test_in_a_pipe_nothing_is_folded_or_coloured() -> None:
    text = show(render(WIDE_RUN), io.StringIO())
    assert "\x1b" not in text
    (line,) = (line for line in text.splitlines() if line.startswith("advice"))
    assert line.endswith(".")
    assert len(line) > 120
    for title in ("Comparisons", "Cost", "Balance", "Latency, ms", "Wake-ups", "Losses"):
        assert title in text


def test_what_a_server_said_cannot_change_the_terminal() -> None:
    text = show(render(FAILED), io.StringIO())
    assert "\x1b" not in text
    assert "it <died>\\x1b[31m & that" in text


# JSON and CSV -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_json_is_read_as_what_was_written(name: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(to_json(RUNS[name]))
    assert read(path) == RUNS[name]


def test_what_a_run_has_kept_is_read_as_well(tmp_path: Path) -> None:
    path = tmp_path / "anything"
    plan = Plan(preset="article", comparisons=compared(ARTICLE), pairs=3, seed=1)
    kept = store.create(path, store.Header(environment=ENVIRONMENT, plan=plan))
    for trial in ARTICLE_RUN.trials[:2]:
        kept.append(trial)
    kept.close()
    found = read(path)
    assert (found.trials, found.pairs, found.finished) == (ARTICLE_RUN.trials[:2], 3, False)
    with path.open("ab") as file:
        file.write(b'{"case":')  # a run that is under way, or was cut off
    assert read(path) == found


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "holds no results"),
        (b"[]", "holds no results"),
        (b"{}", "holds no results"),
        (b'{"format":2}', "holds no results"),
        (b'{"format":1}', "has format 1; this program knows 2"),
        (b'{"format":3}', "has format 3; this program knows 2"),
        (b"\xff\xfe", "holds no results"),
        (b'{"kind":"greeter bench"}\n', "holds no results"),
        (b'{"kind":"other"}', "holds no results"),
    ],
)
def test_another_file_is_refused_by_its_name(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_bytes(content)
    with pytest.raises(UnreadableError, match=rf"other\.json.* {reason}") as refused:
        read(path)
    assert refused.value.exit_code == 66


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match=r"none: No such file"):
        read(tmp_path / "none")
    with pytest.raises(UnreadableError, match="Is a directory"):
        read(tmp_path)


def csv_rows(results: Results) -> list[dict[str, Any]]:
    return list(csv.DictReader(io.StringIO(to_csv(results), newline="")))


def test_csv_has_a_line_for_each_trial_with_its_figures() -> None:
    found = csv_rows(WIDE_RUN)
    assert list(found[0]) == list(COLUMNS)
    assert len(found) == len(WIDE_RUN.trials)
    for row, trial in zip(found, WIDE_RUN.trials, strict=True):
        own = trial.case.arrival == "closed"
        assert row["rate_per_second"] == (str(trial.rate) if own else "")
        assert trial.load is not None
        assert float(row["latency_p999_ms"]) == trial.load.latency.p999
        assert row["greetings_per_worker"].split() == list(map(str, trial.per_worker))
        assert (row["mode"], row["rescue"]) == (
            trial.case.mode,
            "on" if trial.case.rescue else "off",
        )


def test_csv_has_every_field_of_a_case_and_a_unit_in_every_name() -> None:
    fields = set(Case.__struct_fields__) - {"rate"}
    assert fields <= set(COLUMNS)
    figures = set(COLUMNS) - fields - {"comparison", "pair", "order", "invalid", "faults"}
    assert [
        name
        for name in figures
        if not re.search(
            r"(_ms|_us|_seconds?|_utc|_index|_clients|_sockets|_processes|_per_\w+)$|^counted|"
            r"^uncertain|_bottleneck$",
            name,
        )
    ] == []


def test_csv_keeps_invalid_trials_and_leaves_empty_what_is_not_known() -> None:
    trial = Trial(
        case=Case(), comparison=0, pair=0, order=3, began="now", invalid='said "no",\nand died'
    )
    (row,) = csv_rows(replace(ARTICLE_RUN, trials=[trial]))
    assert row["invalid"] == trial.invalid
    assert (row["order"], row["pair"]) == ("4", "1")
    for name in (
        *("latency_p50_ms", "duration_seconds", "counted_in_logs", "jain_index"),
        *("rate_per_second", "cpu_us_per_greeting", "cpu_user_us_per_greeting", "lost_clients"),
        *("switches_voluntary_per_greeting", "wakeups_per_greeting", "drops_clients", "faults"),
    ):
        assert row[name] == ""


def test_csv_errors_are_told_by_kind() -> None:
    assert export.COLUMNS["errors_clients"](WIDE_RUN.trials[0]) == ""
    (first, *_) = (one for one in WIDE_RUN.trials if one.lost > 100)
    assert export.COLUMNS["errors_clients"](first) == f"timeout={first.lost}"
