"""One local Ray for all of these tests, small logs prepared once, a small world trained once."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from mtrec_ray.data.prepared import Prepared, load_prepared
from mtrec_ray.project.load import parse_project
from mtrec_ray.project.project import Project, Run
from mtrec_ray.stages.cluster import connect
from mtrec_ray.stages.serving.versions import ServedVersion
from tests.cluster.logs import NUM_ROWS, Logs, logs_project, make_logs, write_logs
from tests.cluster.runs import (
    Trained,
    prepare_again,
    prepare_in_partitions,
    prepared_folder,
    train_world,
    world_project,
)
from tests.cluster.serving import version_of

NUM_CPUS = 6  # logical: Ray Data's tasks must find one beside three workers
ROWS_PER_PARTITION = 250


@pytest.fixture(autouse=True, scope="session")
def _ray() -> Iterator[None]:
    """A local Ray as the jobs start it, with its dashboard and a fixed number of logical CPUs.

    Its idle workers are kept: Ray ends them after a second, and starting one anew takes several.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_num_workers_soft_limit", "8")
        patch.setenv("RAY_idle_worker_killing_time_threshold_ms", "600000")
        connect(Run(name="tests", num_workers=NUM_CPUS - 2))
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def logs() -> Logs:
    """The logs of five scenarios, as they are written to Parquet."""
    return make_logs()


@pytest.fixture(scope="session")
def logs_root(logs: Logs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The logs as Parquet files of one row group each."""
    root = tmp_path_factory.mktemp("logs")
    write_logs(root, logs)
    return root


@pytest.fixture(scope="session")
def project(logs_root: Path) -> Project:
    """The project of the logs."""
    return parse_project(logs_project(logs_root))


@pytest.fixture(scope="session")
def logs_storage(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage of the run that prepared the logs, in several partitions."""
    folder = tmp_path_factory.mktemp("prepared")
    prepare_in_partitions(project, folder, ROWS_PER_PARTITION)
    return folder


@pytest.fixture(scope="session")
def prepared(project: Project, logs_storage: Path) -> Prepared:
    """The logs, prepared."""
    return load_prepared(prepared_folder(project, str(logs_storage)))


@pytest.fixture(scope="session")
def pieces(logs: Logs, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Path]:
    """Project and storage of the same logs in small row groups, in as many partitions."""
    return prepare_again(tmp_path_factory, logs, 97, ROWS_PER_PARTITION)


@pytest.fixture(scope="session")
def whole(logs: Logs, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Path]:
    """Project and storage of the same logs in one row group and one partition each."""
    return prepare_again(tmp_path_factory, logs, NUM_ROWS, 10 * NUM_ROWS)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Two scenarios of the sample world, prepared and trained for two epochs."""
    project = world_project(tmp_path_factory.mktemp("world"))
    return train_world(project, tmp_path_factory.mktemp("trained"))


@pytest.fixture
def untrained(trained: Trained, tmp_path: Path) -> Path:
    """A storage with the prepared data of the sample world and nothing else."""
    shutil.copytree(trained.folder / "prepared", tmp_path / trained.project.run.name / "prepared")
    return tmp_path


@pytest.fixture(scope="session")
def version(trained: Trained) -> ServedVersion:
    """What the trained run is served from."""
    return version_of(trained)
