"""`python -m jobs.train --config FILE --storage DIR`: see `mtrec_ray/stages/train.py`."""

import typer

from jobs.common import Config, Override, Storage, last_line, run_job
from mtrec_ray.stages.train import run_train


def main(config: Config, storage: Storage = "runs", override: Override = None) -> None:
    """Train the joint model."""
    project, found = run_job("train", run_train, config, storage, override)
    last_line("train", project, **{k: v for k, v in found.items() if k != "curve"})


if __name__ == "__main__":
    typer.run(main)
