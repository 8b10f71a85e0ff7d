"""`python -m jobs.serve --config FILE --storage DIR`: see `mtrec_ray/stages/serve.py`."""

import signal
import threading

from jobs.common import Config, Override, Storage, open_job, program


def main(config: Config, storage: Storage = "runs", override: Override = None) -> None:
    """Answer requests over HTTP: lists and predictions of all scenarios."""
    with open_job("serve", config, storage, override) as job:
        from mtrec_ray.stages.serve import run_serve, stop_serve

        served = run_serve(job.project, job.storage, job.log)
        job.log.close()  # nothing is under way any more
        job.log.print()
        job.log.print(f"Serving {served.version} at {served.url} (its description: /docs)")
        if served.token is not None:
            told = "of serve.token" if job.project.serve.token != "new" else served.token
            job.log.print(f"Requests bear the token {told}: Authorization: Bearer TOKEN")
        job.log.print("Ctrl-C ends it.")
        wait_for_end()
        stop_serve()
        job.result(url=served.url, version=served.version)


def wait_for_end() -> None:
    """Wait until somebody interrupts or ends this process."""
    ended = threading.Event()
    if threading.current_thread() is threading.main_thread():
        for kind in (signal.SIGINT, signal.SIGTERM):
            signal.signal(kind, lambda *_: ended.set())
    ended.wait()


if __name__ == "__main__":
    program(main)
