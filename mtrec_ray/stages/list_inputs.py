"""What a scenario's lists are made from: its model, its crowd, the texts of the crowd's items."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import ray
import torch

from mtrec_ray.candidates.candidates import Candidates, choose
from mtrec_ray.candidates.crowd import Asked, Crowd
from mtrec_ray.candidates.item_item import EASE_ITEMS
from mtrec_ray.candidates.scores import Hidden, Scores
from mtrec_ray.candidates.search_index import EXACT_UP_TO
from mtrec_ray.candidates.sources import HISTORY, Sources, Taken, Texts, fit_sources
from mtrec_ray.data.arrays import Bools, Float32s
from mtrec_ray.data.end_states import read_catalogue
from mtrec_ray.data.interactions import END, Interactions, Moments, read_interactions
from mtrec_ray.data.snapshot import SnapshotColumns, UserSnapshot
from mtrec_ray.evaluation.catalogue_ranking import main_task
from mtrec_ray.project.project import Project, Run
from mtrec_ray.stages.cluster import task_of
from mtrec_ray.stages.ranker import Ranker
from mtrec_ray.stages.trained_model import TrainedModel, ensure_vectors, pretrained_texts

ModelByScenario = Mapping[str, TrainedModel]

SCORES_PER_BLOCK = 2**23  # of a source: users times items, 32 MB
MOST_USERS = 128


@dataclass(frozen=True)
class ListInputs:
    """What a Ray task needs to make a scenario's lists; it travels.

    Attributes:
        model, name: the scenario and its model.
        vectors: f32[., D], a handle of the model's item vectors.
        crowd: a handle of the interactions of the scenarios with the same people.
        texts: handles of unit vectors f32[n, D] of these scenarios' items, by frozen encoder.
        task: whose positives are taken items.
    """

    model: TrainedModel
    name: str
    vectors: ray.ObjectRef
    crowd: ray.ObjectRef
    texts: Mapping[str, ray.ObjectRef]
    task: str

    def layout(self) -> SnapshotColumns:
        """Returns where the columns of the scenario's rows stand."""
        return layout_of(self.model, self.name)


def layout_of(model: TrainedModel, name: str) -> SnapshotColumns:
    """Returns where the columns of a scenario's rows stand."""
    return SnapshotColumns(model.open_prepared(), name, model.project.scenarios[name])


def collect_inputs(models: ModelByScenario, source: Project) -> dict[str, ListInputs]:
    """Returns the inputs of each scenario that has a binary task, read by Ray tasks.

    `source` is the project whose encoder is the pretrained one.
    """
    read = task_of(read_scenario, source.run)
    tasks = {name: list_task(model, name) for name, model in models.items()}
    tasks = {name: task for name, task in tasks.items() if task}
    distinct = dict.fromkeys(models[name] for name in tasks)
    vectors = {model: ray.put(ensure_vectors(model)) for model in distinct}
    parts = {
        name: read.options(num_returns=2).remote(
            models[name], vectors[models[name]], source, name, task
        )
        for name, task in tasks.items()
    }
    crowds = {space: ray.put(crowd) for space, crowd in crowds_of(models, parts).items()}
    members = {space: list(ray.get(ref).scenarios) for space, ref in crowds.items()}
    return {
        name: ListInputs(
            model=models[name],
            name=name,
            vectors=vectors[models[name]],
            crowd=crowds[space],
            texts={other: parts[other][1] for other in members[space]},
            task=task,
        )
        for name, task in tasks.items()
        for space in [user_space(models[name], name)]
    }


def list_task(model: TrainedModel, name: str) -> str | None:
    """Returns the task whose positives lists should hold; None without a binary one."""
    by = model.project.recommend.by.get(name, {})
    return main_task(model.open_prepared(), name, by)


def user_space(model: TrainedModel, name: str) -> str:
    """Returns the id space of a scenario's users."""
    return model.open_prepared().scenarios[name].user_space


def crowds_of(
    models: ModelByScenario, parts: Mapping[str, list[ray.ObjectRef]]
) -> dict[str, Crowd]:
    """Returns by id space the interactions of the scenarios that share their users."""
    found: dict[str, dict[str, Interactions]] = {}
    for name, (rows, _) in parts.items():
        found.setdefault(user_space(models[name], name), {})[name] = ray.get(rows)
    return {space: Crowd(scenarios) for space, scenarios in found.items()}


def read_scenario(
    model: TrainedModel, vectors: Float32s, source: Project, name: str, task: str
) -> tuple[Interactions, Float32s]:
    """Returns a scenario's interactions, and unit vectors of its items' texts; in a Ray task."""
    layout = layout_of(model, name)
    text = torch.tensor(pretrained_texts(model, vectors, source, name))
    unit = torch.nn.functional.normalize(text, dim=1)
    return read_interactions(layout, task), unit.numpy()


def fit_crowds(
    inputs: Mapping[str, ListInputs], run: Run, split: int
) -> dict[str, ray.ObjectRef | None]:
    """Returns by scenario a handle of its crowd's fit on the splits before one; None if alone."""
    task = task_of(fit_crowd, run, gpu=False)
    shared = {own.crowd: own for own in inputs.values() if len(own.texts) > 1}
    refs = {crowd: task.remote(own, split) for crowd, own in shared.items()}
    return {name: refs.get(own.crowd) for name, own in inputs.items()}


def fit_crowd(inputs: ListInputs, split: int) -> Taken:
    """Returns the fit of all items of a crowd; in a Ray task."""
    return Taken.fit(ray.get(inputs.crowd), split)


def open_sources(
    inputs: ListInputs, split: int, of_crowd: Taken | None, allowed: Bools | None = None
) -> Sources:
    """Returns a scenario's sources of candidates, fitted on the splits before one.

    `allowed` bool[n]: the items that anybody may be shown; by default all.
    """
    crowd: Crowd = ray.get(inputs.crowd)
    vectors = {name: ray.get(ref) for name, ref in inputs.texts.items()}
    texts = Texts.of(vectors, inputs.name, allowed)
    layout = inputs.layout()
    published = read_catalogue(layout).published
    counted = 1 if layout.scenario.statistics == "frozen" else END
    return fit_sources(crowd, inputs.name, split, texts, published, of_crowd, counted, allowed)


@dataclass(frozen=True)
class Answer:
    """What users may be shown when they ask.

    Attributes:
        asked: what they did by then.
        scores: what each source says.
        hidden: items that they are not shown.
    """

    asked: Asked
    scores: Mapping[str, Scores]
    hidden: Hidden

    @property
    def candidates(self) -> Candidates:
        """The best items of each source, sorted by user, then by item."""
        return self.at_least(0)

    def at_least(self, num: int) -> Candidates:
        """Returns the same, with others where they are fewer than so many."""
        return choose(self.scores, self.hidden, len(self.asked), least=num)


def ask(
    sources: Sources, moments: Moments, ranker: Ranker, users: UserSnapshot, *, exclude_met: bool
) -> Answer:
    """Returns what all sources say to users who ask, the model's retrieval among them."""
    asked = sources.crowd.ask(sources.name, moments, HISTORY)
    scores = sources.scores(asked) | ranker.retrieval_scores(users)
    return Answer(asked, scores, sources.hidden(asked, exclude_met=exclude_met))


def users_per_block(num_items: int) -> int:
    """Returns for how many users candidates are found at a time: memory is bounded.

    In a large catalogue, which is searched by an index, a source scores few of the items.
    """
    scored = num_items if num_items <= EXACT_UP_TO else EASE_ITEMS
    return min(max(SCORES_PER_BLOCK // max(scored, 1), 1), MOST_USERS)


def join(parts: list[Candidates]) -> Candidates:
    """Returns the candidates of users block after block."""
    starts = np.cumsum([0] + [part.num_users for part in parts])
    user = [part.user + start for part, start in zip(parts, starts, strict=False)]
    scores = {s: np.concatenate([p.scores[s] for p in parts]) for s in parts[0].scores}
    item = np.concatenate([p.item for p in parts])
    return Candidates(np.concatenate(user), item, scores, int(starts[-1]))
