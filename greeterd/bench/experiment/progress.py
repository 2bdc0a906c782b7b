"""Tells on standard error how far an experiment is: a bar on a terminal, else a line a pair."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar

from greeterd.bench.experiment.runner import Progress as News
from greeterd.bench.labels import approach
from greeterd.bench.model import Case, Trial
from greeterd.screen import Screen
from greeterd.system.escape import escape

Tell = Callable[[News], None]


@contextmanager
def telling(names: Mapping[Case, str]) -> Iterator[Tell]:
    """Yield what takes the news; `names` are those of the cases."""
    console = Screen(stderr=True)
    if not console.is_terminal:
        yield lambda news: _tell_in_lines(console, names, news)
        return
    columns = (
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.description}", markup=False),
    )
    # Drawn between two trials: nothing of it may run beside a measurement.
    with Bar(*columns, console=console, transient=True, auto_refresh=False) as bar:
        yield _Drawn(bar, names)


class _Drawn:
    """The bar; what is invalid stays above it."""

    def __init__(self, bar: Bar, names: Mapping[Case, str]) -> None:
        self._bar, self._names = bar, names
        self._task: TaskID | None = None

    def __call__(self, news: News) -> None:
        for line in _wrong(self._names, news):
            self._bar.console.print(f"greeter: {line}", style="red")
        if self._task is None:
            self._task = self._bar.add_task("", total=1.0, visible=False)
        described = escape(self._names[news.next]) if news.next is not None else ""
        self._bar.update(
            self._task, visible=True, completed=news.done, description=described, refresh=True
        )


def _tell_in_lines(console: Screen, names: Mapping[Case, str], news: News) -> None:
    lines = list(_wrong(names, news))
    if news.trial is not None and news.is_last_of_pair and not lines:
        lines.append(f"pair {news.trial.pair + 1}: {_outcome(names, news.trial)}")
    for line in lines:
        console.print(f"greeter: {100 * news.done:.0f} %: {line}", soft_wrap=True)


def _wrong(names: Mapping[Case, str], news: News) -> Iterator[str]:
    if news.objection is not None:
        yield escape(f"{approach(news.objection.case)}: {news.objection.reason}")
    if news.trial is not None and news.trial.invalid:
        yield _outcome(names, news.trial)


def _outcome(names: Mapping[Case, str], trial: Trial) -> str:
    name = escape(names.get(trial.case, trial.case.server))
    if trial.invalid:
        return f"{name}: invalid: {escape(trial.invalid)}"
    lost = f", {trial.lost} lost" if trial.lost else ""
    return f"{name}: {trial.cpu_us:.1f} us CPU a greeting{lost}"
