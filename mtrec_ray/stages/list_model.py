"""The list model of a run: fitted once for the models that lists are made by, then kept."""

from collections.abc import Mapping

from mtrec_ray.candidates.list_model import ListModel
from mtrec_ray.data import storage
from mtrec_ray.progress import Log
from mtrec_ray.project.depends_on import Fields
from mtrec_ray.project.project import Project
from mtrec_ray.stages.finetuning.chosen_model import version
from mtrec_ray.stages.finetuning.joint_run import JointRun
from mtrec_ray.stages.list_inputs import ListInputs, ModelByScenario
from mtrec_ray.stages.lists import fit_lists

MODEL = "list_model.json"


def ensure_list_model(
    joint_run: JointRun,
    models: ModelByScenario,
    inputs: Mapping[str, ListInputs],
    project: Project,
    log: Log,
) -> ListModel:
    """Returns the list model of the run's chosen models; fitted where there is none of them."""
    stage = joint_run.run.lists
    made_from = list_model_depends_on(joint_run, models, project)
    path = storage.join(stage.folder, MODEL)
    if stage.current(made_from) is not None:
        return ListModel.parse(storage.read_json(path))
    stage.start_anew(made_from)
    model = fit_lists(inputs, project, log)
    storage.write_json(path, model.dump())
    stage.finish({"users": model.users})
    return model


def list_model_depends_on(joint_run: JointRun, models: ModelByScenario, project: Project) -> Fields:
    """Returns whatever a list model depends on."""
    options = project.recommend
    return {
        "models": {name: version(joint_run, name, model) for name, model in models.items()},
        "recommend": {
            "by": {name: dict(by) for name, by in options.by.items()},
            "exclude_seen": options.exclude_seen,
            "fit_users": options.fit_users,
            "shortlist": options.shortlist,
        },
        "precision": project.evaluation.precision,
    }
