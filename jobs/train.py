"""`python -m jobs.train --config FILE --storage DIR`: see `mtrec_ray/stages/train.py`."""

from jobs.common import Config, Override, Storage, open_job, program


def main(config: Config, storage: Storage = "runs", override: Override = None) -> None:
    """Train the joint model."""
    with open_job("train", config, storage, override) as job:
        from mtrec_ray.stages.train import run_train

        found = run_train(job.project, job.storage, job.log)
        job.result(**{k: v for k, v in found.items() if k != "curve"})


if __name__ == "__main__":
    program(main)
