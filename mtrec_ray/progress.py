"""How a stage tells a person what it does. Knows neither Ray nor the terminal.

A stage takes a `Log`: any function of a line of text. A `Reporter` is a Log that can do more: it
has headings of stages, progress that a terminal shows as a bar, and warnings. The functions below
use what a log can do, and say the rest as lines, so that a plain function is enough in a test.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

Log = Callable[[str], None]


def no_log(text: str) -> None:
    """Write nothing."""


@dataclass(frozen=True)
class Progress:
    """How far a piece of work is.

    Attributes:
        label: names the work; the same label is the same bar.
        done: the part of `total` that is done, in any unit; the bar ends with `total`.
        text: rate, loss, score, whatever else a person wants to know.
    """

    label: str
    done: float
    total: float
    text: str = ""

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return min(max(self.done / self.total, 0.0), 1.0) if self.total > 0 else 1.0


@runtime_checkable
class Reporter(Protocol):
    """A log with headings, progress and warnings."""

    def __call__(self, text: str) -> None:
        """Say a line."""
        ...

    def stage(self, title: str) -> None:
        """Show that a stage begins, or is done already."""
        ...

    def progress(self, progress: Progress) -> None:
        """Show how far a piece of work is."""
        ...

    def warn(self, text: str) -> None:
        """Say what a person should look at."""
        ...


def begin_stage(log: Log, title: str) -> None:
    """Say which stage begins, as a heading where the log has headings."""
    if isinstance(log, Reporter):
        log.stage(title)
    else:
        log(title)


def tell_progress(
    log: Log, label: str, done: float, total: float, text: str = "", *, quiet: bool = False
) -> None:
    """Show how far a piece of work is: as a bar where the log has bars, else as a line.

    `quiet`: no line where there are no bars.
    """
    progress = Progress(label, done, total, text)
    if isinstance(log, Reporter):
        log.progress(progress)
    elif not quiet:
        log(progress_line(progress))


def warn(log: Log, text: str) -> None:
    """Say what a person should look at."""
    if isinstance(log, Reporter):
        log.warn(text)
    else:
        log(f"warning: {text}")


def progress_line(progress: Progress) -> str:
    """Returns `training 42%  5,936 rows/s`."""
    return f"{progress.label} {progress.share:.0%}  {progress.text}".rstrip()


def clock(seconds: float) -> str:
    """Returns `12 s`, `3:05` (minutes) or `2:03:05` (hours)."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}:{rest:02}"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
