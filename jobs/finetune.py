"""`python -m jobs.finetune --config FILE --storage DIR`: see `mtrec_ray/stages/finetune.py`."""

from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console

from jobs.common import Config, Override, Storage, last_line, run_job
from mtrec_ray.project.project import Project
from mtrec_ray.report.tables import comparison_table
from mtrec_ray.stages.finetune import Options, run_finetune
from mtrec_ray.stages.finetuning.few_shot import check_shots


def main(
    config: Config,
    storage: Storage = "runs",
    override: Override = None,
    scenario: Annotated[
        list[str] | None, typer.Option(help="A scenario to fine-tune; by default all.")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Train each scenario alone, too, and compare.")
    ] = False,
    shots: Annotated[
        str | None, typer.Option(help="A new scenario's learning curve: 0,64,1024,all rows.")
    ] = None,
) -> None:
    """Fine-tune every scenario from the joint model, side by side."""

    def stage(project: Project, path: str, log: Callable[[str], None]) -> dict[str, Any]:
        points = check_shots(shots.split(",")) if shots else ()
        return run_finetune(project, path, log, Options(tuple(scenario or ()), compare, points))

    project, found = run_job("finetune", stage, config, storage, override)
    if compare:
        Console(width=150).print(comparison_table(f"{project.run.name}: test", found["comparison"]))
    last_line("finetune", project, **found)


if __name__ == "__main__":
    typer.run(main)
