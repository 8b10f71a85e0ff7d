"""`python -m jobs.finetune --config FILE --storage DIR`: see `mtrec_ray/stages/finetune.py`."""

from typing import Annotated

import typer

from jobs.common import Config, Override, Storage, open_job, program


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
    with open_job("finetune", config, storage, override) as job:
        from mtrec_ray.report.tables import comparison_tables
        from mtrec_ray.stages.finetune import Options, run_finetune
        from mtrec_ray.stages.finetuning.few_shot import check_shots

        points = check_shots(shots.split(",")) if shots else ()
        options = Options(tuple(scenario or ()), compare, points)
        found = run_finetune(job.project, job.storage, job.log, options)
        tables = comparison_tables(job.title, found["comparison"]) if compare else ()
        job.result(*tables, **found)


if __name__ == "__main__":
    program(main)
