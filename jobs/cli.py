"""The console command `mtrec NAME`: the same jobs as `python -m jobs.NAME`."""

from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from jobs import (
    check,
    evaluate,
    export,
    finetune,
    init,
    pipeline,
    prepare,
    recommend,
    serve,
    train,
    tune,
)
from jobs.common import program

EXAMPLES = {
    init: ("ml-latest-small", "logs/events catalogue.csv --out mine.yaml"),
    check: ("--config mine.yaml", "--config mine.yaml --set run.num_workers=8"),
    pipeline: (
        "--config jobs/quickstart.yaml",
        "--config mine.yaml --storage s3://bucket/runs --set training.epochs=5",
    ),
    prepare: ("--config mine.yaml", "--config mine.yaml --storage /shared/runs"),
    train: (
        "--config mine.yaml --set training.lr=3e-4 --set run.name=mine-lr3",
        "--config runs/mine/tune/chosen.yaml",
    ),
    tune: ("--config mine.yaml", "--config mine.yaml --set search.trials=32"),
    finetune: (
        "--config mine.yaml --scenario shop --scenario news",
        "--config mine.yaml --compare",
        "--config mine.yaml --scenario books --shots 0,64,1024,all",
    ),
    evaluate: ("--config mine.yaml", "--config mine.yaml --set evaluation.precision=int8"),
    recommend: (
        "--config mine.yaml --set recommend.k=50",
        "--config mine.yaml --scenario shop --users users.txt",
    ),
    export: ("--config mine.yaml", "--config mine.yaml --scenario shop --format onnx-int8"),
    serve: (
        "--config jobs/quickstart.yaml",
        "--config mine.yaml --set serve.token=env:TOKEN --set serve.replicas=2",
    ),
}


def examples(name: str, calls: tuple[str, ...]) -> str:
    """The end of a command's help."""
    lines = "\n\n".join(f"mtrec {name} {call}" for call in calls)
    return f"Examples:\n\n{lines}"


def show_version(wanted: bool) -> None:
    """Print the version, and end."""
    if wanted:
        try:
            found = version("mtrec-ray")
        except PackageNotFoundError:
            found = "unknown (not installed)"
        typer.echo(f"mtrec {found}")
        raise typer.Exit


app = typer.Typer(
    name="mtrec",
    help="Distributed training of multi-scenario, multi-task recommenders on Ray.",
    epilog=examples("pipeline", EXAMPLES[pipeline]) + "\n\nmtrec check --config mine.yaml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Options before the name of a job."""


for module, calls in EXAMPLES.items():
    job = module.__name__.rsplit(".", 1)[-1]
    app.command(job, epilog=examples(job, calls))(module.main)


def main() -> None:
    """Run the console command."""
    program(app)


if __name__ == "__main__":
    main()
