"""`python -m jobs.finetune --config FILE --storage DIR`: see `mtrec_ray/stages/finetune.py`."""

import functools
from typing import Annotated

import typer

from jobs.common import Config, Override, Storage, last_line, run_job
from mtrec_ray.stages.finetune import run_finetune


def main(
    config: Config,
    storage: Storage = "runs",
    override: Override = None,
    scenario: Annotated[
        list[str] | None, typer.Option(help="A scenario to fine-tune; by default all.")
    ] = None,
) -> None:
    """Fine-tune every scenario from the joint model, side by side."""
    stage = functools.partial(run_finetune, names=scenario or ())
    project, found = run_job("finetune", stage, config, storage, override)
    last_line("finetune", project, **found)


if __name__ == "__main__":
    typer.run(main)
