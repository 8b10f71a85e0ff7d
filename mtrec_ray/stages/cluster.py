"""Connecting to Ray: the cluster that the job was submitted to, or a local one."""

import ctypes
import functools
import gc
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

from mtrec_ray.project.project import Run

# A local Ray on few cores: training workers may take all logical CPUs and starve the read tasks,
# so that there are always some more than the workers take (fact 10 of Ray 2.60, measured).
SPARE_CPUS = 2


def connect(run: Run) -> None:
    """Connect to the running cluster (RAY_ADDRESS, set by `ray job submit`) or start a local Ray.

    The local one has the dashboard: without it, a tuner that stops trials early waits for ever
    for their placement groups (Ray Train frees them through the dashboard's state API).
    """
    if ray.is_initialized():
        return
    quiet()
    if os.environ.get("RAY_ADDRESS"):
        ray.init(logging_level=logging.WARNING)
        return
    need = run.most_workers * run.cpus_per_worker + SPARE_CPUS
    with local_environment():
        ray.init(
            address="local",
            num_cpus=max(need, os.cpu_count() or 1),
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            logging_level=logging.WARNING,
        )


def task_of(function: Callable[..., Any], run: Run, *, gpu: bool = True) -> Any:
    """Returns the function as a Ray task with a worker's CPUs (and GPU) that frees its memory."""

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        try:
            return function(*args)
        finally:
            give_back()

    gpus = 1 if gpu and run.use_gpu else 0
    return ray.remote(num_cpus=run.cpus_per_worker, num_gpus=gpus)(call)


def result_of(ref: ray.ObjectRef) -> Any:
    """Returns what a task returned; Ray types it as a list."""
    return ray.get(ref)


def give_back() -> None:
    """Give the system back what this process has freed.

    glibc keeps freed memory, in an arena of its own for each thread: without this, a process took a
    gigabyte more with every trial of real4, and idle ones that had scored held up to two.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


@contextmanager
def local_environment() -> Iterator[None]:
    """What the processes of a local Ray inherit from this one while they start.

    Their address: Ray Train's cleaner of placement groups looks for a Ray on this machine, and
    fails where there are two. The level of Ray Data's messages in workers. How long idle workers
    are kept: Ray ends them after a second, and starting one anew takes several.
    """
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = str(probe.getsockname()[1])
    address = f"{ray.util.get_node_ip_address()}:{port}"
    ours = {
        "RAY_GCS_SERVER_PORT": port,
        "RAY_ADDRESS": address,
        "RAY_DATA_LOG_LEVEL": "WARNING",
        "RAY_num_workers_soft_limit": str(max(8, os.cpu_count() or 1)),
        "RAY_idle_worker_killing_time_threshold_ms": "60000",
    }
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def quiet() -> None:
    """Keep Ray Data's per-operator output out of the job's own progress."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # how to undo this
