"""`python -m jobs.pipeline --config FILE --storage DIR`: see `mtrec_ray/stages/pipeline.py`."""

from jobs.common import Config, Override, Storage, open_job, program


def main(config: Config, storage: Storage = "runs", override: Override = None) -> None:
    """All stages in order, a short search with search.pipeline_trials; skip what is done."""
    with open_job("pipeline", config, storage, override) as job:
        from mtrec_ray.report.tables import evaluation_tables
        from mtrec_ray.stages.pipeline import run_pipeline

        found = run_pipeline(job.project, job.storage, job.log)
        told = ("metrics", "joint_metrics", "ranking", "chosen", "recommended")
        tables = evaluation_tables(job.title, found["metrics"], found["ranking"])
        job.result(*tables, **{k: found[k] for k in told})


if __name__ == "__main__":
    program(main)
