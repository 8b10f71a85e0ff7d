"""Several training runs side by side on one cluster; the failure of one leaves the others alone.

A thread of the driver waits for each run. As many threads run as the cluster has CPUs (and GPUs)
for their workers, or as `finetune.concurrent` says: more than there is room for, where a cluster
grows. A run takes all of its resources at once, so that no two hold what the other needs.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

import ray

from mtrec_ray.progress import Log, tell_progress, warn
from mtrec_ray.project.project import Project
from mtrec_ray.stages.run_folder import Record


def num_slots(project: Project) -> int:
    """Returns how many runs the cluster has room for now, and at least one."""
    if project.finetune.concurrent:
        return project.finetune.concurrent
    run = project.run.model_copy(update={"num_workers": project.finetune.num_workers or 1})
    have = ray.cluster_resources()
    rooms = [have.get("CPU", 0) // (run.most_workers * run.cpus_per_worker)]
    if run.use_gpu:
        rooms.append(have.get("GPU", 0) // run.most_workers)
    return max(int(min(rooms)), 1)


def run_in_parallel(
    jobs: Mapping[str, Callable[[], Record]], project: Project, log: Log, places: int | None = None
) -> dict[str, Record]:
    """Runs the jobs in threads; returns the result of each.

    Raises:
        RuntimeError: jobs that failed, after all others have ended.
    """
    places = places or num_slots(project)
    log(f"{len(jobs)} runs, {min(places, len(jobs))} at a time")
    tell_progress(log, "runs", 0, len(jobs), quiet=True)
    results: dict[str, Record] = {}
    failed: dict[str, str] = {}
    pool = ThreadPoolExecutor(places)
    try:
        running: dict[Future[Record], str] = {pool.submit(job): n for n, job in jobs.items()}
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(future)
                error = future.exception()
                if error is None:
                    results[name] = future.result()
                else:
                    failed[name] = last_line_of(error)
                    warn(log, f"{name}: failed, the others go on: {failed[name]}")
                tell_progress(log, "runs", len(results) + len(failed), len(jobs), quiet=True)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    if failed:
        lines = "; ".join(f"{n} ({e})" for n, e in failed.items())
        raise RuntimeError(f"{len(failed)} of {len(jobs)} runs failed: {lines}")
    return results


def last_line_of(error: BaseException) -> str:
    """Returns the last line of an error, where a worker's own error stands."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
