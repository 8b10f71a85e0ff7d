"""`python -m jobs.recommend --config FILE --storage DIR`: see `mtrec_ray/stages/recommend.py`."""

import functools
from typing import Annotated

import typer

from jobs.common import Config, Override, Storage, absolute, last_line, run_job
from mtrec_ray.stages.recommend import run_recommend


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
    file = absolute(users) if users else None
    stage = functools.partial(run_recommend, names=scenario or (), users=file)
    project, found = run_job("recommend", stage, config, storage, override)
    last_line("recommend", project, **found)


if __name__ == "__main__":
    typer.run(main)
