"""`python -m jobs.tune --config FILE --storage DIR`: see `mtrec_ray/stages/tune.py`."""

from rich.text import Text

from jobs.common import Config, Override, Storage, open_job, program


def main(config: Config, storage: Storage = "runs", override: Override = None) -> None:
    """Search loss weights and other fields; choose a point of the front."""
    with open_job("tune", config, storage, override) as job:
        from mtrec_ray.report.tables import plain_table
        from mtrec_ray.stages.tune import run_tune

        found = run_tune(job.project, job.storage, job.log)
        table = plain_table(f"{job.title}: search", found["comparison"])
        told = Text("\n".join(["What to do:", *(f"- {line}" for line in found["advice"])]))
        job.result(table, told, **{k: v for k, v in found.items() if k != "comparison"})


if __name__ == "__main__":
    program(main)
