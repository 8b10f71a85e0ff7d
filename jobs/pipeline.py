"""`python -m jobs.pipeline --config FILE --storage DIR`: see `mtrec_ray/stages/pipeline.py`."""

import typer

from jobs.common import Config, Override, Storage, last_line, run_job, show, show_ranking
from mtrec_ray.stages.pipeline import run_pipeline


def main(config: Config, storage: Storage = "runs", override: Override = None) -> None:
    """All stages in order, a short search with search.pipeline_trials; skip what is done."""
    project, found = run_job("pipeline", run_pipeline, config, storage, override)
    show(project, found["metrics"])
    show_ranking(project, found["ranking"])
    told = ("metrics", "joint_metrics", "ranking", "chosen", "recommended")
    last_line("pipeline", project, **{k: found[k] for k in told})


if __name__ == "__main__":
    typer.run(main)
