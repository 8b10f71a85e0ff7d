"""Progress of Ray workers as data: from any process of a job to the reporter of its driver.

Workers put messages into a queue, an actor without a CPU on the driver's node; a thread of the
driver hands them on. Nothing waits for the queue: where its actor is lost, training goes on, and
messages are lost. (Ray's own way, lines of a worker's output that it prints on the driver with a
prefix, comes late, in pieces, and mixed with whatever else the worker's libraries print.)
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mtrec_ray.progress import Log, Progress, progress_line, tell_progress, warn

POLL_SECONDS = 0.5

# How long messages on their way are awaited when a run ends.
LAST_SECONDS = 3.0

Message = tuple[str, str, Progress | None]  # kind, text, progress


@dataclass(frozen=True)
class Sender:
    """A reporter for a worker, which the driver's reporter shows.

    Attributes:
        queue: of the driver; None: lines go to the worker's own output.
        label: of the bar, and before each line where it is not empty.
        is_named: whether lines begin with the label.
    """

    queue: Any = None
    label: str = "training"
    is_named: bool = False

    def __call__(self, text: str) -> None:
        """Send a line."""
        self._send("line", f"{self.label}: {text}" if self.is_named else text)

    def stage(self, title: str) -> None:
        """Send a heading as a line: stages begin on the driver."""
        self(title)

    def progress(self, progress: Progress) -> None:
        """Send how far something is, under this sender's label."""
        self._send("progress", "", replace(progress, label=self.label))

    def warn(self, text: str) -> None:
        """Send a warning."""
        self._send("warning", text)

    def named(self, label: str) -> "Sender":
        """Returns the same sender for one of several runs that go on at a time."""
        return replace(self, label=label, is_named=True)

    def _send(self, kind: str, text: str, progress: Progress | None = None) -> None:
        said = text or (progress_line(progress) if progress else "")
        # Not by `print`, which Ray Train patches: it would come twice.
        sys.stdout.write(f"{said}\n")
        sys.stdout.flush()
        if self.queue is not None:
            with suppress(Exception):  # a lost queue must not end a training
                self.queue.actor.put_nowait.remote((kind, text, progress))


@contextmanager
def open_channel(log: Log | None) -> Iterator[Sender]:
    """Yields the sender by which workers report to `log` while the context is open.

    A log that is a Sender already is shared, so that several runs have one queue. Without a log,
    and where no queue can be made, workers write to their own output.
    """
    if isinstance(log, Sender):
        yield log
        return
    queue = None if log is None else make_queue()
    if log is None or queue is None:
        yield Sender()
        return
    ends = threading.Event()
    thread = threading.Thread(target=drain, args=(queue, log, ends), daemon=True)
    thread.start()
    try:
        yield Sender(queue)
    finally:
        ends.set()
        thread.join(LAST_SECONDS)
        with suppress(Exception):
            queue.shutdown(force=True)


def make_queue() -> Queue | None:
    """Returns a queue on the driver's node; None where that has no room for its actor."""
    try:
        node = ray.get_runtime_context().get_node_id()
        where = NodeAffinitySchedulingStrategy(node, soft=True)
        return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": where})
    except Exception:  # noqa: BLE001 progress is not worth a run
        return None


def drain(queue: Queue, log: Log, ends: threading.Event) -> None:
    """Hand on what arrives until the context ends and the queue is empty, or its actor is lost."""
    while True:
        last = ends.is_set()
        try:
            while True:
                hand_on(queue.get(timeout=POLL_SECONDS), log)
        except Empty:
            if last:
                return
        except Exception:  # noqa: BLE001 the actor is lost: nothing more will come
            return


def hand_on(message: Message, log: Log) -> None:
    """Pass a worker's message to a log."""
    kind, text, progress = message
    if progress is not None:
        tell_progress(log, progress.label, progress.done, progress.total, progress.text)
    elif kind == "warning":
        warn(log, text)
    else:
        log(text)
