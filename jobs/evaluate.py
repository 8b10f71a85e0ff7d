"""`python -m jobs.evaluate --config FILE --storage DIR`: see `mtrec_ray/stages/evaluate.py`."""

import typer

from jobs.common import Config, Override, Storage, last_line, run_job, show, show_ranking
from mtrec_ray.stages.evaluate import run_evaluate


def main(config: Config, storage: Storage = "runs", override: Override = None) -> None:
    """Predict and measure the test split."""
    project, found = run_job("evaluate", run_evaluate, config, storage, override)
    show(project, found["metrics"])
    show_ranking(project, found["ranking"])
    told = ("metrics", "joint_metrics", "score", "joint_score", "ranking", "models")
    last_line("evaluate", project, **{k: found[k] for k in told})


if __name__ == "__main__":
    typer.run(main)
