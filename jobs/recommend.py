"""`python -m jobs.recommend --config FILE --storage DIR`: see `mtrec_ray/stages/recommend.py`."""

from typing import Annotated

import typer

from jobs.common import Config, Override, Storage, absolute, open_job, program


def main(
    config: Config,
    storage: Storage = "runs",
    override: Override = None,
    scenario: Annotated[
        list[str] | None, typer.Option(help="A scenario to recommend in; by default all.")
    ] = None,
    users: Annotated[
        str | None, typer.Option(help="Users: Parquet, or text with one id a line; default all.")
    ] = None,
) -> None:
    """Write the best items for every user."""
    with open_job("recommend", config, storage, override) as job:
        from mtrec_ray.stages.recommend import run_recommend

        file = absolute(users) if users else None
        found = run_recommend(job.project, job.storage, job.log, scenario or (), file)
        job.result(**found)


if __name__ == "__main__":
    program(main)
