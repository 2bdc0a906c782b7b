"""Tells on standard error how far an experiment is: a bar on a terminal, else a line a trial."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

from greeterd.bench.experiment.runner import Progress as News
from greeterd.bench.model import Case, Trial
from greeterd.screen import Screen, duration
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
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]} left"),
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
        if news.trial is not None and news.trial.invalid:
            self._bar.console.print(f"greeter: {_outcome(self._names, news.trial)}", style="red")
        if self._task is None:
            self._task = self._bar.add_task("", left="", visible=False)
        self._bar.update(
            self._task,
            visible=True,
            total=news.total,
            completed=news.done,
            left=duration(news.left),
            description=escape(self._names[news.next]) if news.next is not None else "",
            refresh=True,
        )


def _tell_in_lines(console: Screen, names: Mapping[Case, str], news: News) -> None:
    if news.trial is not None:
        console.print(
            f"greeter: {news.done} of {news.total}: {_outcome(names, news.trial)}"
            f" ({duration(news.left)} left)",
            soft_wrap=True,
        )


def _outcome(names: Mapping[Case, str], trial: Trial) -> str:
    name = escape(names.get(trial.case, trial.case.server))
    if trial.invalid:
        return f"{name}: invalid: {escape(trial.invalid)}"
    lost = f", {trial.lost} lost" if trial.lost else ""
    return f"{name}: {trial.rate:.0f}/s, {trial.cpu_us:.0f} us CPU a greeting{lost}"
