"""`python -m jobs.prepare --config FILE --storage DIR`: see `mtrec_ray/stages/prepare.py`."""

from jobs.common import Config, Override, Storage, open_job, program


def main(config: Config, storage: Storage = "runs", override: Override = None) -> None:
    """Turn logs and catalogues into training shards."""
    with open_job("prepare", config, storage, override) as job:
        from mtrec_ray.stages.prepare import run_prepare

        found = run_prepare(job.project, job.storage, job.log)
        job.result(report=found)


if __name__ == "__main__":
    program(main)
