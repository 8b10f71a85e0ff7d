"""`python -m jobs.evaluate --config FILE --storage DIR`: see `mtrec_ray/stages/evaluate.py`."""

from jobs.common import Config, Override, Storage, open_job, program


def main(config: Config, storage: Storage = "runs", override: Override = None) -> None:
    """Predict and measure the test split."""
    with open_job("evaluate", config, storage, override) as job:
        from mtrec_ray.report.tables import evaluation_tables
        from mtrec_ray.stages.evaluate import run_evaluate

        found = run_evaluate(job.project, job.storage, job.log)
        told = ("metrics", "joint_metrics", "score", "joint_score", "ranking", "models")
        tables = evaluation_tables(job.title, found["metrics"], found["ranking"])
        job.result(*tables, **{k: found[k] for k in told})


if __name__ == "__main__":
    program(main)
