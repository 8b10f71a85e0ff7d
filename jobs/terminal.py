"""What a person sees of a job: lines, bars, tables, the result; and the log file with the rest.

A job that is this process's program takes the file descriptors 1 and 2 away from everything else
and keeps copies for itself: what Ray's C++ processes, its workers and libraries print is written
into a log file. In a terminal there are bars; in a pipe, a file or under `ray job submit` lines, at
most one every few seconds, at least one every half minute.
"""

import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, TextIO

from rich.console import Console, RenderableType
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Column

from mtrec_ray.progress import Progress, clock, progress_line

LINE_SECONDS = 5.0  # between two lines of the same progress, at least
SILENT_SECONDS = 25.0  # after so long a line says that the job still goes on
SLOWEST_LINES = 30.0
PLAIN_WIDTH = 80  # of tables in a pipe or a file


class Streams:
    """The process's own output and error streams, and the log file that has everything else.

    The log lies in the folder for temporary files until `keep_in` gives it its place: a job that
    is refused leaves no file behind.
    """

    def __init__(self) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self.saved = os.dup(1), os.dup(2)
        self.out: TextIO = os.fdopen(os.dup(1), "w", encoding="utf-8")
        self.err: TextIO = os.fdopen(os.dup(2), "w", encoding="utf-8")
        handle, name = tempfile.mkstemp(prefix="mtrec-", suffix=".log")
        self.path = Path(name)
        self.made: list[Path] = []  # folders for the log alone, the innermost first
        self._redirect(handle)

    def _redirect(self, handle: int) -> None:
        """Have whatever writes to the descriptors 1 and 2 write to the open file."""
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.close(handle)

    def keep_in(self, folder: Path, name: str) -> Path:
        """Move the log to its place; what was written before comes along."""
        self.made = [f for f in (folder, *folder.parents) if not f.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / name
        sys.stdout.flush()
        sys.stderr.flush()
        shutil.copyfile(self.path, target)
        self._redirect(os.open(target, os.O_WRONLY | os.O_APPEND))
        self.path.unlink()
        self.path = target
        return target

    def discard(self) -> None:
        """Delete the log, and folders that were made for it and hold nothing else."""
        self.path.unlink(missing_ok=True)
        with suppress(OSError):  # the first that holds something else
            for folder in self.made:
                folder.rmdir()

    def restore(self) -> None:
        """Give the descriptors back."""
        sys.stdout.flush()
        sys.stderr.flush()
        for number, saved in zip((1, 2), self.saved, strict=True):
            os.dup2(saved, number)
            os.close(saved)
        self.out.close()
        self.err.close()


class Terminal:
    """A reporter for a person: bars where `file` is a terminal, else lines.

    Args:
        file: where lines go.
        ticks: whether a thread says that the job still goes on where it is silent for long.
    """

    def __init__(
        self, file: IO[str] | None = None, *, ticks: bool = False,
        now: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.console = Console(file=file, highlight=False)
        if not self.console.is_terminal:
            self.console = Console(file=file, highlight=False, width=PLAIN_WIDTH)
        self.now, self.started = now, now()
        self.lock = threading.RLock()
        self.inside, self.said_at, self.last = False, self.started, "loading libraries"
        self.shown: dict[str, Shown] = {}
        self.bars = StageBars(self.console) if self.console.is_terminal and ticks else None
        self.ends = threading.Event()
        if self.bars:
            self.bars.start()
        if ticks:
            threading.Thread(target=self._tick, daemon=True).start()

    def __call__(self, text: str) -> None:
        """Say a line below the heading of its stage."""
        self._line(text, "  " if self.inside else "")

    def stage(self, title: str) -> None:
        """Say a heading; bars of the stage before are gone."""
        with self.lock:
            for label in list(self.shown):
                self._remove(label)
            self._line(title, "", style="bold")
            self.inside = True

    def warn(self, text: str) -> None:
        """Say a warning, in colour where there is one."""
        self._line(f"warning: {text}", "  " if self.inside else "", style="yellow")

    def progress(self, progress: Progress) -> None:
        """Show how far something is."""
        with self.lock:
            shown = self.shown.get(progress.label)
            if shown is None:
                if progress.share >= 1:
                    return
                shown = self.shown[progress.label] = Shown(self.now(), progress)
                if self.bars:
                    shown.task = self.bars.add_task(
                        progress.label, total=1.0, text="", left="", percent="  0%"
                    )
            shown.progress = progress
            if progress.share >= 1:
                self._remove(progress.label)
                took = clock(self.now() - shown.started)
                self(f"{progress.label}: {progress.text} in {took}" if progress.text else
                     f"{progress.label}: done in {took}")  # fmt: skip
            elif self.bars and shown.task is not None:
                self.bars.update(
                    shown.task,
                    completed=progress.share,
                    percent=f"{progress.share:4.0%}",
                    text=progress.text,
                    left=shown.left(self.now()),
                )
            elif self.now() - shown.told_at >= self._pause(shown):
                self._tell(shown)

    def print(self, renderable: RenderableType = "", *, style: str | None = None) -> None:
        """Print a table, or text as it is."""
        with self.lock:
            if isinstance(renderable, str):
                self.console.print(renderable, markup=False, style=style, soft_wrap=True)
            else:
                self.console.print(renderable)
            self.said_at = self.now()

    def close(self) -> None:
        """End the bars."""
        self.ends.set()
        with self.lock:
            if self.bars:
                self.bars.stop()
                self.bars = None

    def _remove(self, label: str) -> None:
        shown = self.shown.pop(label)
        if self.bars and shown.task is not None:
            self.bars.remove_task(shown.task)

    def _pause(self, shown: "Shown") -> float:
        """Seconds between two lines: fewer lines the longer it takes."""
        return min(max(LINE_SECONDS, (self.now() - shown.started) / 20), SLOWEST_LINES)

    def _tell(self, shown: "Shown") -> None:
        shown.told_at = self.now()
        left = shown.left(self.now())
        self(progress_line(shown.progress) + (f", {left}" if left else ""))

    def _line(self, text: str, indent: str, style: str | None = None) -> None:
        with self.lock:
            self.said_at, self.last = self.now(), text
            stamp = f"{clock(self.now() - self.started):>7}  "
            width = max(self.console.width - len(stamp) - len(indent), 20)
            first, *rest = wrapped(text, width)
            self.console.print(f"{stamp}{indent}{first}", markup=False, style=style, soft_wrap=True)
            for line in rest:
                self.console.print(
                    " " * (len(stamp) + len(indent) + 2) + line, markup=False, style=style,
                    soft_wrap=True,
                )  # fmt: skip

    def _tick(self) -> None:
        """Say that the job goes on, where nothing else says it."""
        while not self.ends.wait(1.0):
            with self.lock:
                silent = self.now() - self.said_at
                if self.bars:
                    self.bars.elapsed(self.now() - self.started)
                elif silent >= SILENT_SECONDS:
                    self._still_there()

    def _still_there(self) -> None:
        if self.shown:
            self._tell(min(self.shown.values(), key=lambda s: s.told_at))
        else:
            last = self.last
            self(f"... {last.removeprefix('... ')}")
            self.last = last


class Shown:
    """A progress that is shown, when it was first heard of, and when a line was said."""

    def __init__(self, now: float, first: Progress) -> None:
        self.started = now
        self.told_at = now - LINE_SECONDS
        self.first = self.progress = first
        self.task: TaskID | None = None

    def left(self, now: float) -> str:
        """`2:05 left`, or nothing before there is something to go by."""
        done = self.progress.share - self.first.share
        if done <= 0:
            return ""
        return f"{clock((now - self.started) / done * (1 - self.progress.share))} left"


class StageBars(Bars):
    """Bars that fit 80 columns, below them a line that says how long the job has run."""

    def __init__(self, console: Console) -> None:
        super().__init__(
            SpinnerColumn(),
            TextColumn("{task.description}", table_column=Column(no_wrap=True, max_width=18)),
            BarColumn(bar_width=12),
            TextColumn("{task.fields[percent]}"),
            TextColumn("{task.fields[text]}", table_column=Column(no_wrap=True, ratio=1)),
            TextColumn("{task.fields[left]}", justify="right", table_column=Column(no_wrap=True)),
            console=console,
            transient=True,
            expand=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def elapsed(self, seconds: float) -> None:
        """Keep a line that moves, where no bar does."""
        running = [t for t in self.tasks if t.fields.get("clock")]
        if len(self.tasks) > len(running):
            for task in running:
                self.remove_task(task.id)
        elif running:
            self.update(running[0].id, text=f"{clock(seconds)} so far")
        else:
            self.add_task("working", total=None, text="", left="", percent="", clock=True)


def wrapped(text: str, width: int) -> list[str]:
    """The text in lines of at most so many characters, cut at blanks; a long word stays whole."""
    lines = [""]
    for word in text.split(" "):
        room = width if len(lines) == 1 else width - 2
        if lines[-1] and len(lines[-1]) + 1 + len(word) > room:
            lines.append(word)
        else:
            lines[-1] += f" {word}" if lines[-1] or not word else word
    return lines
