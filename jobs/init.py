"""`python -m jobs.init PATH... --out FILE`: see `mtrec_ray/stages/init.py`."""

import json
import shlex
from typing import Annotated

import typer

from jobs.common import problems_of, program, say_error, teller

Paths = Annotated[list[str], typer.Argument(help="Files and folders: logs and catalogues.")]
Out = Annotated[str, typer.Option("--out", help="The project file. Default: named as the data.")]


def main(paths: Paths, out: Out = "") -> None:
    """Write a project file for data as it is: Parquet, CSV, JSON lines, public data sets."""
    from mtrec_ray.stages.init import default_out, run_init

    terminal = teller()
    try:
        found = run_init(paths, out or default_out(paths), terminal)
    except ValueError as error:
        problems = problems_of(error)
        if problems is None:
            raise
        terminal.close()
        raise SystemExit(say_error("init", error, problems, None)) from None
    terminal.close()
    for note in found["notes"]:
        terminal.warn(note)
    config = found["config"]
    terminal.print(f"\nWrote {config}: {', '.join(found['scenarios'])}", style="bold")
    terminal.print(f"Next (what would a run do?):\n  mtrec check --config {shlex.quote(config)}")
    print(json.dumps({"job": "init", **found}), file=terminal.console.file, flush=True)


if __name__ == "__main__":
    program(main)
