"""`python -m jobs.tune --config FILE --storage DIR`: see `mtrec_ray/stages/tune.py`."""

import typer
from rich.console import Console

from jobs.common import Config, Override, Storage, last_line, run_job
from mtrec_ray.report.tables import plain_table
from mtrec_ray.stages.tune import run_tune


def main(config: Config, storage: Storage = "runs", override: Override = None) -> None:
    """Search loss weights and other fields; choose a point of the front."""
    project, found = run_job("tune", run_tune, config, storage, override)
    Console(width=150).print(plain_table(f"{project.run.name}: search", found["comparison"]))
    last_line("tune", project, **{k: v for k, v in found.items() if k != "comparison"})


if __name__ == "__main__":
    typer.run(main)
