"""Connecting to Ray: the cluster that the job was submitted to, or a local one."""

import logging
import os

import ray

from mtrec_ray.schema import Run

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
    # Inherited by the local Ray's worker processes, which `quiet` does not reach.
    os.environ.setdefault("RAY_DATA_LOG_LEVEL", "WARNING")
    need = run.num_workers * run.cpus_per_worker + SPARE_CPUS
    ray.init(
        address="local",
        num_cpus=max(need, os.cpu_count() or 1),
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        logging_level=logging.WARNING,
    )


def quiet() -> None:
    """Keep Ray Data's per-operator output out of the job's own progress."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
