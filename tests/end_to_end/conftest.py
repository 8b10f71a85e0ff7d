"""Jobs as a user starts them; those whose mistake Ray finds out share one Ray of the session."""

from collections.abc import Iterator

import pytest
import ray

from mtrec_ray.project.project import Run
from mtrec_ray.stages.cluster import connect


@pytest.fixture(scope="session")
def session_ray() -> Iterator[str]:
    """The address of a local Ray that all in-process jobs share."""
    with pytest.MonkeyPatch.context() as patch:
        # Ray ends idle workers after a second, and starting one anew takes several.
        patch.setenv("RAY_num_workers_soft_limit", "8")
        patch.setenv("RAY_idle_worker_killing_time_threshold_ms", "600000")
        connect(Run(name="tests", num_workers=4))
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()
