"""`python -m jobs.prepare --config FILE --storage DIR`: see `mtrec_ray/stages/prepare.py`."""

import typer

from jobs.common import Config, Override, Storage, last_line, run_job
from mtrec_ray.stages.prepare import run_prepare


def main(config: Config, storage: Storage = "runs", override: Override = None) -> None:
    """Turn logs and catalogues into training shards."""
    project, found = run_job("prepare", run_prepare, config, storage, override)
    last_line("prepare", project, report=found)


if __name__ == "__main__":
    typer.run(main)
