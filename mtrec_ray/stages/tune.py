"""The tune stage: a search over loss weights and other fields, its front, and a chosen point.

tune/trials/NAME.json   a trial: values, status, curve; an interrupted search goes on from these
tune/trials.parquet     all trials, a row each
tune/front.json         the Pareto front over scenarios, its hypervolume, the chosen trial
tune/chosen.yaml        a project file with the chosen values, which the train job takes as it is
tune/confirm.json       whole runs of the chosen and of uniform weights, with several seeds, on test
tune/report.html        all of it with plots (plots/*.png), for a person
"""

import os
from collections.abc import Mapping
from typing import Any

from mtrec_ray.data import storage
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.stream import training_source
from mtrec_ray.evaluation.score_weights import score_problems
from mtrec_ray.model.encoder import encoder_problems
from mtrec_ray.progress import Log, begin_stage
from mtrec_ray.project.base import refuse
from mtrec_ray.project.depends_on import Fields, joint_model_depends_on
from mtrec_ray.project.load import with_overrides
from mtrec_ray.project.project import Project
from mtrec_ray.search.problems import space_problems
from mtrec_ray.search.records import Trial, load_trials
from mtrec_ray.search.space import Overrides, Point, Space, references, space_of
from mtrec_ray.stages.cluster import connect
from mtrec_ray.stages.common_people import advice, common_people
from mtrec_ray.stages.prepare import open_prepared, run_prepare
from mtrec_ray.stages.run_folder import Record, RunFolder
from mtrec_ray.stages.teacher import add_teacher_labels
from mtrec_ray.stages.tuning.advice import advice_lines
from mtrec_ray.stages.tuning.confirm import confirm
from mtrec_ray.stages.tuning.outcome import outcome_of, write_outcome
from mtrec_ray.stages.tuning.population import Population
from mtrec_ray.stages.tuning.runner import Recorder, run_trials
from mtrec_ray.stages.tuning.searcher import BRACKETS, Halving, Suggester, drawn, optuna_search
from mtrec_ray.stages.tuning.trial import Train, TrialInputs, train_trial, trial_project
from mtrec_ray.training.batches import make_plan
from mtrec_ray.training.weighting import weighting_problems

# What may change from one call to the next: more trials, another choice among them.
RESUMABLE_FIELDS = (
    "trials", "concurrent", "pipeline_trials", "choose", "preference", "confirm_seeds",
)  # fmt: skip
TRIALS, RUNS = "trials", "runs"


def search_depends_on(project: Project, prepared: Prepared) -> Fields:
    """Returns whatever the trials of a search depend on."""
    return {
        **joint_model_depends_on(project, prepared.fingerprint),
        "search": project.search.model_dump(mode="json", exclude=set(RESUMABLE_FIELDS)),
    }


def run_tune(project: Project, storage_path: str, log: Log) -> Record:
    """Searches, or goes on searching, or finds it done; prepares the data where need be."""
    refuse(space_problems(project))
    storage.check_writable(storage_path)
    run, room = RunFolder.of(project, storage_path), with_room(project)
    run_prepare(room, storage_path, log)
    prepared = open_prepared(project, run)
    made_from = search_depends_on(project, prepared)
    asked = project.search.model_dump(mode="json", include=set(RESUMABLE_FIELDS))
    finished = run.tune.finished(made_from)
    if finished and finished["asked"] == asked:
        begin_stage(log, "tune: already done")
        return finished
    refuse(encoder_problems(project.model) + weighting_problems(project.training.weighting))
    refuse(score_problems(project, prepared))
    make_plan(trial_project(project), prepared, trial_project(project).run.most_workers)
    run.tune.start(made_from)
    connect(room.run)
    prepared = add_teacher_labels(room, prepared, run.path(), log)
    source = training_source(prepared, project.run.cache, room.run.most_workers)
    inputs = TrialInputs(prepared, source, runs_folder(run.tune.folder))
    outcome = search_and_confirm(project, inputs, run.tune.folder, log)
    return run.tune.finish(outcome | {"asked": asked})


def search_and_confirm(project: Project, inputs: TrialInputs, folder: str, log: Log) -> Record:
    """Runs the trials that are left, chooses one, confirms it; writes and returns the outcome."""
    trials = search(project, folder, train_trial, inputs, log)
    outcome = outcome_of(project, trials)
    log(f"chosen: {outcome.chosen.name}, joint score {outcome.chosen_score:.4f}")
    confirmed = confirm(project, outcome, folder, inputs, log)
    storage.remove_folder(inputs.folder)
    lines = advice_lines(project, outcome, confirmed, advice(common_people(inputs.prepared)))
    return write_outcome(project, outcome, confirmed, lines, folder)


def with_room(project: Project) -> Project:
    """Returns the project that a local Ray is started for: each core has a CPU for a trial."""
    run = project.run
    most = max(run.most_workers, (os.cpu_count() or 1) // run.cpus_per_worker)
    return with_overrides(project, {"run.num_workers": most})


def search(project: Project, folder: str, train: Train, shared: Any, log: Log) -> list[Trial]:
    """Returns all trials of the project's search, with those that an earlier call left unfinished.

    `train` trains one; `shared` is handed to it as it is.
    """
    space, options = space_of(project), project.search
    records = storage.join(folder, TRIALS)
    trials = planned(project, space, load_trials(records))
    grid = options.algorithm == "grid"
    total = len(trials) if grid else max(options.trials, len(trials))
    left = total - sum(trial.ended for trial in trials.values())
    if not left:
        return list(trials.values())
    there = f"; {total - left} are there already" if left < total else ""
    begin_stage(log, f"tune: {left} trials of {', '.join(space.distributions())}{there}")
    scheduler = scheduler_of(project, space, trials)
    if isinstance(scheduler, Population):
        draw_trials(space, trials, total - len(trials), options.seed)
    suggester = Suggester(
        [trial for trial in trials.values() if not trial.ended],
        None if grid else optuna_search(project, space, list(trials.values())),
        lambda point: add_trial(trials, space.overrides(point), point),
    )
    recorder = Recorder(trials, records, runs_folder(folder), total, log)
    run_trials(
        trial_project(project), suggester, scheduler, recorder,
        num=left, train=train, shared=shared,
    )  # fmt: skip
    return list(trials.values())


def scheduler_of(
    project: Project, space: Space, trials: Mapping[str, Trial]
) -> Halving | Population | None:
    """Returns what ends trials early, or moves them; it knows the trials that ended before."""
    options, protected = project.search, list(references(project))
    epochs = options.epochs or project.training.epochs
    if options.scheduler == "pbt":
        return Population(space, epochs, options.first_stop, protected, options.seed)
    if options.scheduler == "none":
        return None
    brackets = BRACKETS if options.scheduler == "hyperband" else 1
    halving = Halving(epochs, options.first_stop, protected, brackets=brackets)
    halving.fill([trial for trial in trials.values() if trial.ended])
    return halving


def draw_trials(space: Space, trials: dict[str, Trial], num: int, seed: int) -> None:
    """Adds so many trials at random points, after those that an earlier call drew."""
    drawn_before = last_number(trials)
    for point in drawn(space, drawn_before + num, seed)[drawn_before:]:
        add_trial(trials, space.overrides(point), point)


def runs_folder(folder: str) -> str:
    """Returns where trials have their checkpoints while they run."""
    return storage.join(folder, RUNS)


def planned(project: Project, space: Space, kept: dict[str, Trial]) -> dict[str, Trial]:
    """Returns earlier trials, those that every search begins with, and all points of a grid.

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
    """Returns a new trial among the trials."""
    trial = Trial(f"t{last_number(trials) + 1:03d}", overrides, point)
    trials[trial.name] = trial
    return trial


def last_number(trials: dict[str, Trial]) -> int:
    """Returns the number of the last of the trials that are no references; 0 without one."""
    return max((int(n[1:]) for n in trials if n[0] == "t" and n[1:].isdigit()), default=0)
