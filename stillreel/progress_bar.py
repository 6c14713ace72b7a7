"""The progress bar of the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from stillreel.progress import Listener
from stillreel.progress import Progress as JobProgress


@contextmanager
def progress_bar(console: Console) -> Iterator[Listener]:
    """A listener that draws a bar; on a console that is no terminal, one line per stage."""
    if not console.is_terminal:
        yield _StageLines(console)
        return
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("starting", total=100)

        def listener(progress: JobProgress) -> None:
            bar.update(task, completed=progress.percent, description=progress.text)

        yield listener
        bar.update(task, completed=100, description="done")


class _StageLines:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._stage = ""

    def __call__(self, progress: JobProgress) -> None:
        if progress.stage != self._stage:
            self._stage = progress.stage
            self._console.print(f"{progress.percent:3.0f} %  {progress.stage}")
