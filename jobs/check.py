"""`python -m jobs.check --config FILE`: see `mtrec_ray/stages/check.py`."""

from jobs.common import Config, Override, Storage, open_job, program


def main(config: Config, storage: Storage = "runs", override: Override = None) -> None:
    """Validate project, files and resources; say what a run would do, without doing it."""
    with open_job("check", config, storage, override, keeps_log=False) as job:
        from mtrec_ray.report.tables import facts_table, plain_table
        from mtrec_ray.stages.check import run_check

        found = run_check(job.project, job.storage)
        tables = [plain_table(f"{job.title}: data", found["tables"]["data"])]
        tables.append(facts_table("what a run would do", found["tables"]["run"]))
        job.result(*tables, **{k: v for k, v in found.items() if k != "tables"})


if __name__ == "__main__":
    program(main)
