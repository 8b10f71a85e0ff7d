"""What the lists of a run are made from: fitted where it is not there yet, and kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray

from mtrec_ray.candidates.list_model import ListModel
from mtrec_ray.data.interactions import END
from mtrec_ray.progress import Log
from mtrec_ray.project.project import Project
from mtrec_ray.stages.finetuning.joint_run import JointRun
from mtrec_ray.stages.list_inputs import ListInputs, ModelByScenario, collect_inputs, fit_crowds
from mtrec_ray.stages.list_model import ensure_list_model
from mtrec_ray.stages.list_writer import ListMaker, list_maker
from mtrec_ray.stages.predictions import SecondOpinion
from mtrec_ray.stages.second_opinion import ensure_opinions


@dataclass(frozen=True)
class ListParts:
    """What the lists of all scenarios of a run are made from.

    Attributes:
        inputs: of the scenarios that have lists; opinions: of all scenarios, where they have any.
        crowds: handles of the fits of what the people of these scenarios took.
    """

    inputs: Mapping[str, ListInputs]
    opinions: Mapping[str, SecondOpinion]
    list_model: ListModel
    crowds: Mapping[str, ray.ObjectRef | None]

    def opinion(self, name: str) -> SecondOpinion | None:
        """Returns what the predictions of a scenario are blended with; None: nothing."""
        return self.opinions[name].named if name in self.opinions else None

    def maker(
        self, name: str, project: Project, folder: str = "", wanted: Sequence[str] | None = None
    ) -> ListMaker:
        """Returns what workers need for the lists of a scenario at the end of the data.

        Raises:
            ProjectError: rules on items that do not fit the catalogue file.
        """
        inputs, crowd = self.inputs[name], self.crowds[name]
        parts = (inputs, crowd, self.list_model, project, folder, wanted)
        return list_maker(*parts, self.opinion(name))


def ensure_parts(
    joint_run: JointRun, models: ModelByScenario, project: Project, log: Log
) -> ListParts:
    """Returns what lists are made from by the chosen models of a run, by Ray tasks."""
    inputs = collect_inputs(models, project)
    opinions = ensure_opinions(joint_run, {"": models}, inputs, project, log).get("", {})
    list_model = ensure_list_model(joint_run, models, inputs, project, log)
    return ListParts(inputs, opinions, list_model, fit_crowds(inputs, project.run, END))
