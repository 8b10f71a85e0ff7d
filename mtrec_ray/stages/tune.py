"""The tune stage: a search over loss weights and other fields, its front, and a chosen point.

tune/trials/NAME.json   a trial: values, status, curve; an interrupted search goes on from these
tune/trials.parquet     all trials, a row each
tune/front.json         the Pareto front over scenarios, its hypervolume, the chosen trial
tune/chosen.yaml        a project file with the chosen values, which the train job takes as it is
tune/confirm.json       whole runs of the chosen and of uniform weights, with several seeds, on test
tune/report.html        all of it with plots (plots/*.png), for a person
"""

import os
from typing import Any

from mtrec_ray.data import storage
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.stream import training_source
from mtrec_ray.model.encoder import encoder_problems
from mtrec_ray.progress import Log, begin_stage
from mtrec_ray.project.base import refuse
from mtrec_ray.project.load import with_overrides
from mtrec_ray.project.project import Project
from mtrec_ray.search.problems import space_problems
from mtrec_ray.search.records import Trial, load_trials
from mtrec_ray.search.space import Overrides, Point, Space, references, space_of
from mtrec_ray.stages.cluster import connect
from mtrec_ray.stages.prepare import open_prepared, run_prepare
from mtrec_ray.stages.run_folder import DONE, find_finished, mark_started
from mtrec_ray.stages.teacher import add_teacher_labels
from mtrec_ray.stages.train import joint_made_with
from mtrec_ray.stages.tuning.confirm import confirm
from mtrec_ray.stages.tuning.outcome import outcome_of, write_outcome
from mtrec_ray.stages.tuning.population import Population
from mtrec_ray.stages.tuning.runner import Recorder, run_trials
from mtrec_ray.stages.tuning.searcher import Halving, Suggester, drawn, optuna_search
from mtrec_ray.stages.tuning.trial import Train, TrialInputs, train_trial, trial_project
from mtrec_ray.training.batches import make_plan

# What may change from one call to the next: more trials, another choice among them.
RESUMABLE_FIELDS = (
    "trials",
    "concurrent",
    "pipeline_trials",
    "choose",
    "preference",
    "confirm_seeds",
)


TRIALS, RUNS = "trials", "runs"


def search_depends_on(project: Project, prepared: Prepared) -> dict[str, Any]:
    """Whatever the trials of a search depend on, as a tree."""
    search = project.search.model_dump(mode="json")
    return {
        **joint_made_with(project, prepared),
        "search": {k: v for k, v in search.items() if k not in RESUMABLE_FIELDS},
    }


def run_tune(project: Project, storage_path: str, log: Log) -> dict[str, Any]:
    """Search, or go on searching, or find it done; prepares the data where that is still to do."""
    refuse(space_problems(project))
    storage.check_writable(storage_path)
    room = with_room(project)
    run_prepare(room, storage_path, log)
    prepared = open_prepared(project, storage_path)
    run_folder = storage.join(storage_path, project.run.name)
    folder = storage.join(run_folder, "tune")
    made_with = search_depends_on(project, prepared)
    asked = {key: project.dump()["search"][key] for key in RESUMABLE_FIELDS}
    finished = find_finished(folder, made_with, job="tune", run=project.run.name)
    if finished and finished["asked"] == asked:
        begin_stage(log, "tune: already done")
        return finished
    refuse(encoder_problems(project.model.encoder))
    make_plan(trial_project(project), prepared, trial_project(project).run.most_workers)
    mark_started(folder, made_with)
    connect(room.run)
    prepared = add_teacher_labels(room, prepared, run_folder, log)
    source = training_source(prepared, project.run.cache, room.run.most_workers)
    shared = TrialInputs(prepared, source, runs_folder(folder))
    trials = search(project, folder, train_trial, shared, log)
    outcome = outcome_of(project, trials)
    log(f"chosen: {outcome.chosen.name}, joint score {outcome.chosen_score:.4f}")
    confirmed = confirm(project, outcome, folder, shared, log)
    storage.remove_folder(shared.folder)
    summary = write_outcome(project, outcome, confirmed, folder)
    storage.write_json(storage.join(folder, DONE), summary | {"asked": asked})
    return summary


def with_room(project: Project) -> Project:
    """The project as a local Ray is started for: with a CPU of its own for a trial on each core."""
    run = project.run
    most = max(run.most_workers, (os.cpu_count() or 1) // run.cpus_per_worker)
    return with_overrides(project, {"run.num_workers": most})


def search(project: Project, folder: str, train: Train, shared: Any, log: Log) -> list[Trial]:
    """All trials of the project's search, those that an earlier call left undone included.

    `train` trains one; `shared` is handed to it as it is.
    """
    space, options = space_of(project), project.search
    records = storage.join(folder, TRIALS)
    trials = planned(project, space, load_trials(records))
    grid = options.algorithm == "grid"
    total = len(trials) if grid else max(options.trials, len(trials))
    ended = [t for t in trials.values() if t.ended]
    recorder = Recorder(trials, records, runs_folder(folder), total, log)
    if len(ended) == total:
        return list(trials.values())
    waiting = [t for t in trials.values() if not t.ended]
    begin_stage(
        log,
        f"tune: {total - len(ended)} trials of {', '.join(space.distributions())}"
        + (f"; {len(ended)} are there already" if ended else ""),
    )
    suggester = Suggester(
        waiting,
        None if grid else optuna_search(project, space, list(trials.values())),
        lambda point: add_trial(trials, space.overrides(point), point),
    )
    epochs = options.epochs or project.training.epochs
    spared = list(references(project))
    scheduler = None
    if options.scheduler == "asha":
        scheduler = Halving(epochs, options.grace, spared)
        scheduler.fill(ended)
    if options.scheduler == "pbt":
        scheduler = Population(space, epochs, options.grace, spared, options.seed)
        begun = last_number(trials)
        for point in drawn(space, begun + total - len(trials), options.seed)[begun:]:
            suggester.waiting.append(add_trial(trials, space.overrides(point), point))
    num = total - len(ended)
    run_trials(
        trial_project(project), suggester, scheduler, recorder,
        num=num, train=train, shared=shared,
    )  # fmt: skip
    return list(trials.values())


def runs_folder(folder: str) -> str:
    """Where trials have their checkpoints while they run."""
    return storage.join(folder, RUNS)


def planned(project: Project, space: Space, kept: dict[str, Trial]) -> dict[str, Trial]:
    """Trials that are there, those that every search begins with, and in a grid all its points.

    References come first, then those that ran when the search was interrupted.
    """
    trials: dict[str, Trial] = {}
    for name, overrides in references(project).items():
        point = space.point_of(with_overrides(project, overrides))
        trials[name] = kept.get(name) or Trial(name, overrides, point)
    trials |= {name: trial for name, trial in kept.items() if name not in trials}
    if project.search.algorithm == "grid":
        known = [t.overrides for t in trials.values()]
        for point in space.grid(project.search.grid_steps):
            overrides = space.overrides(point)
            if overrides not in known:
                add_trial(trials, overrides, point)
    return trials


def add_trial(trials: dict[str, Trial], overrides: Overrides, point: Point) -> Trial:
    """A new trial among the trials."""
    trial = Trial(f"t{last_number(trials) + 1:03d}", overrides, point)
    trials[trial.name] = trial
    return trial


def last_number(trials: dict[str, Trial]) -> int:
    """The number of the last of the trials that are no references; 0 without one."""
    return max((int(n[1:]) for n in trials if n[0] == "t" and n[1:].isdigit()), default=0)
