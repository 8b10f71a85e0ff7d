"""`python -m jobs.export --config FILE --storage DIR`: see `mtrec_ray/stages/export.py`."""

from typing import Annotated

import typer

from jobs.common import Config, Override, Storage, open_job, program


def main(
    config: Config,
    storage: Storage = "runs",
    override: Override = None,
    scenario: Annotated[
        list[str] | None, typer.Option(help="A scenario to export; by default all.")
    ] = None,
    format: Annotated[
        list[str] | None,
        typer.Option(
            help="What to export, by default all: vectors, user, ranking, huggingface, onnx, "
            "onnx-int8, openvino-int8."
        ),
    ] = None,
) -> None:
    """Write vectors, encoder and user side as files that other programs read."""
    with open_job("export", config, storage, override) as job:
        from mtrec_ray.stages.export import run_export

        found = run_export(job.project, job.storage, job.log, scenario or (), format or ())
        job.result(**found)


if __name__ == "__main__":
    program(main)
