"""The pipeline stage: all stages in order; what is finished is skipped."""

from mtrec_ray.data import storage
from mtrec_ray.progress import Log
from mtrec_ray.project.load import with_overrides
from mtrec_ray.project.project import Project
from mtrec_ray.stages.evaluate import run_evaluate
from mtrec_ray.stages.finetune import run_finetune
from mtrec_ray.stages.prepare import run_prepare
from mtrec_ray.stages.recommend import run_recommend
from mtrec_ray.stages.run_folder import Record, RunFolder, keep_search_choice, with_search_choice
from mtrec_ray.stages.train import run_train
from mtrec_ray.stages.tune import run_tune


def run_pipeline(project: Project, storage_path: str, log: Log) -> Record:
    """Runs the stages in order; returns the evaluation, with what was recommended.

    With `search.pipeline_trials` the joint model, where there is none yet, is trained with what a
    search of so many chose; the run's other jobs then know of it.
    """
    run = RunFolder.of(project, storage_path)
    if searches(project, run):  # the search prepares
        short = {"search.trials": project.search.pipeline_trials, "search.confirm_seeds": 0}
        outcome = run_tune(with_overrides(project, short), storage_path, log)
        keep_search_choice(project, run, outcome["chosen"])
    else:
        run_prepare(project, storage_path, log)
    project = with_search_choice(project, run, log)
    run_train(project, storage_path, log)
    tuned = run_finetune(project, storage_path, log)
    evaluation = run_evaluate(project, storage_path, log)
    recommended = run_recommend(project, storage_path, log)
    chosen = {name: decision["chosen"] for name, decision in tuned["scenarios"].items()}
    return evaluation | {"chosen": chosen, "recommended": recommended["scenarios"]}


def searches(project: Project, run: RunFolder) -> bool:
    """Returns whether a search is still to come before the joint model."""
    return (
        project.search.pipeline_trials > 0
        and not storage.exists(run.search_choice)
        and run.train.made_from is None
    )
