"""Two scenarios of the same people, with profiles and what each took elsewhere; no Ray.

The model's weights are stirred, not learned: what the service says of it is exact all the same.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mtrec_ray.data import storage
from mtrec_ray.data.catalogue import TOKENS, load_catalogue
from mtrec_ray.data.columns import hash_strings
from mtrec_ray.data.elsewhere import COLUMNS, ElsewhereFacts, item_texts_path, timeline_path
from mtrec_ray.data.mapped_arrays import write_array
from mtrec_ray.data.preparing import inputs
from mtrec_ray.data.preparing.features import numeric_names
from mtrec_ray.data.preparing.profiles import TrainingUsers, write_profiles
from mtrec_ray.data.profiles import Profiles, profiles_path, write_texts
from mtrec_ray.data.snapshot import SnapshotColumns
from mtrec_ray.data.tokens import item_texts, load_tokenizer, tokenise
from mtrec_ray.project.load import parse_project
from mtrec_ray.project.project import Project
from mtrec_ray.serving.event_store import open_store
from mtrec_ray.serving.fresh_crowd import FreshTimeline
from mtrec_ray.serving.fresh_state import FreshState
from mtrec_ray.serving.profile_reader import ProfileReader
from mtrec_ray.stages.list_ranker import PairScorer
from mtrec_ray.stages.ranker import Ranker
from mtrec_ray.stages.serving.asking import Askers
from mtrec_ray.stages.serving.filters import ItemFilters
from mtrec_ray.stages.serving.item_texts import ItemTexts
from mtrec_ray.stages.serving.new_items import Encoders
from mtrec_ray.stages.serving.profiles import RequestProfiles
from mtrec_ray.stages.serving.scenario import ScenarioEngine
from mtrec_ray.stages.serving.views import ScenarioViews
from mtrec_ray.stages.trained_model import joint_model, load_with_vectors
from mtrec_ray.training import checkpoint
from mtrec_ray.training.build import build_model
from tests.builders import CPU, project_tree, scenario_tree, small_model, stir
from tests.cluster.logs import ENCODER
from tests.prepared_log import prepare_log

NUM_ITEMS, NUM_USERS, NUM_ROWS, TEXT_WIDTH, LAST = 12, 12, 160, 384, 3
HOUR = 3_600_000
NAMES = ("video", "shop")
USERS = {
    "path": "people.parquet", "categorical": ["country", "plan"], "numeric": ["age", "points"],
    "lists": ["likes"], "vectors": ["face"], "text": "{city}, {job}", "missing": {"age": [0]},
}  # fmt: skip


def items_of(name: str) -> pa.Table:
    """A catalogue with columns of every kind."""
    rng = np.random.default_rng(len(name))
    faces = rng.normal(size=(NUM_ITEMS, 3)).astype(np.float32)
    return pa.table({
        "item_id": [f"{name} {i}" for i in range(NUM_ITEMS)],
        "title": [f"{name} number {i}" for i in range(NUM_ITEMS)],
        "brand": ["ab"[i % 2] if i % 5 else None for i in range(NUM_ITEMS)],
        "price": [float(i) if i % 4 else None for i in range(NUM_ITEMS)],
        "tags": ["x|y" if i % 3 else "y" for i in range(NUM_ITEMS)],
        "cover": pa.array([v if i % 6 else None for i, v in enumerate(faces.tolist())]),
    })  # fmt: skip


def people() -> pa.Table:
    """The table of users: the last two users of the logs have no row, three others are alike."""
    num = NUM_USERS - 2
    rng = np.random.default_rng(5)
    faces = rng.normal(size=(num, 4)).round(2).tolist()
    return pa.table({
        "user_id": [f"user {i}" for i in range(num)],
        "country": ["no" if i % 2 else "se" for i in range(num)],
        "plan": pa.array([i % 2 for i in range(num)], pa.int32()),
        "age": pa.array([0 if i == 3 else 20 + i for i in range(num)], pa.int64()),
        "points": [None if i == 4 else i / 7 for i in range(num)],
        "likes": [["tea", "jazz"] if i % 2 else ["tea"] for i in range(num)],
        "face": [None if i == 5 else face for i, face in enumerate(faces)],
        "city": ["Oslo" if i % 2 else "Lund" for i in range(num)],
        "job": [None if i == 6 else "cook" for i in range(num)],
    })  # fmt: skip


def project_of(root: Path) -> Project:
    """The project file of both scenarios."""
    items = {
        "text": "{title}", "categorical": ["brand"], "numeric": ["price"],
        "separators": {"tags": "|"}, "vectors": ["cover"], "statistics_of": ["brand"],
    }  # fmt: skip
    tasks = {"click": {"kind": "binary"}, "stars": {"kind": "regression"}}
    scenarios = {
        name: scenario_tree(
            tasks, users="people", items={"path": f"{name}.parquet", **items},
            history={"of": "any", "last": 4, "outcomes": True, "elsewhere": LAST},
        )
        for name in NAMES
    }  # fmt: skip
    tree = project_tree(scenarios, root=str(root), users={"people": USERS})
    tree["training"] = {"precision": "fp32"}
    project = parse_project(tree)
    encoder = {"source": ENCODER, "trainable": "none", "max_tokens": 16}
    model = small_model(encoder=encoder, retrieval={"width": 6, "negatives": 3}, bins=3)
    return project.model_copy(update={"model": model})


def log_of(seed: int) -> dict[str, np.ndarray]:
    """A log without order in its values, for `prepare_log`."""
    rng = np.random.default_rng(seed)
    return {
        "user": rng.integers(0, NUM_USERS, NUM_ROWS),
        "item": rng.integers(0, NUM_ITEMS, NUM_ROWS),
        "time": np.sort(rng.integers(0, 500, NUM_ROWS)) * HOUR,
        "split": np.sort(rng.choice(3, NUM_ROWS, p=[0.8, 0.1, 0.1])).astype(np.int8),
        "labels": np.stack([rng.integers(0, 2, NUM_ROWS), rng.integers(1, 6, NUM_ROWS)], 1) * 1.0,
    }


def by_chance(layout: SnapshotColumns) -> dict[str, Any]:
    """Scales of a scenario's columns, drawn."""
    rng, names = np.random.default_rng(1), numeric_names(layout.scenario)
    quantiles = np.sort(rng.normal(size=(len(names), 5)), 1)
    return {
        "numeric_names": names, "numeric_quantiles": quantiles.tolist(),
        "numeric_mean": quantiles.mean(1).tolist(), "numeric_std": [1.0] * len(names),
        "item_numeric_mean": [4.0], "item_numeric_std": [2.0],
        "item_numeric_quantiles": [[0.0, 2.0, 5.0, 7.0, 11.0]], "item_category_sizes": [3],
        "popularity": dict.fromkeys(("click", "stars"), "item.log_count"),
        "num_users": NUM_USERS + 1,
    }  # fmt: skip


def write_vectors_of(folder: Path, name: str, items: pa.Table) -> None:
    """The ready vectors of a catalogue, which `prepare_log` leaves out."""
    faces = np.array(
        [[np.nan] * 3 if v is None else v for v in items.column("cover").to_pylist()], np.float16
    )
    path = str(folder / name / "catalogue.vectors.0.npy")
    write_array(path, np.float16, faces.shape, [faces])


def write_timeline(folder: Path, name: str, seed: int) -> ElsewhereFacts:
    """What people took in the other scenario, by chance; the last user took nothing."""
    rng, sizes = np.random.default_rng(seed), dict.fromkeys(NAMES, NUM_ITEMS)
    ids = pa.array([f"user {i}" for i in range(NUM_USERS - 1)])
    person = np.repeat(hash_strings(ids).view(np.int64), 4)
    other = NUM_ITEMS * (1 - NAMES.index(name))
    known = rng.integers(0, 400, len(person)) * HOUR
    item = other + rng.integers(0, NUM_ITEMS, len(person))
    order = np.lexsort([known, person])
    for column, values in (("person", person), ("known", known), ("item", item)):
        path = timeline_path(str(folder), name, column)
        write_array(path, COLUMNS[column], values.shape, [values[order]])
    return ElsewhereFacts(LAST, True, sizes, dict.fromkeys(NAMES, 0))


def write_people(project: Project, folder: Path, users: pa.Table) -> dict[str, Any]:
    """The prepared table of users, with the texts as the pretrained encoder reads them."""
    options = project.users["people"]
    tokens = tokenise(load_tokenizer(ENCODER), item_texts(users, options), 16)
    table = users.append_column(
        TOKENS, pa.array([own.tolist() for own in tokens], pa.list_(pa.int32()))
    )
    known = TrainingUsers(np.sort(hash_strings(table.column("user_id"))))
    facts = write_profiles(project, {"people": table}, {"people": known}, {}, str(folder))
    texts = load_catalogue(profiles_path(str(folder), "people"))
    read = encoders().read_users(project, "people", texts, CPU)
    write_texts(str(folder), "people", read.numpy())
    return facts


@cache
def encoders() -> Encoders:
    """The pretrained encoder, loaded once."""
    return Encoders()


def prepared_people(root: Path, users: pa.Table | None = None) -> Project:
    """Files of a project and their prepared data, below `root`; returns the project."""
    users, project, folder = people() if users is None else users, project_of(root), root / "out"
    pq.write_table(users, root / "people.parquet")
    scenarios = {}
    for number, name in enumerate(NAMES):
        items = items_of(name)
        pq.write_table(items, root / f"{name}.parquet")
        layout = prepare_log(log_of(number), project.scenarios[name], items, str(folder), name)
        write_vectors_of(folder, name, items)
        elsewhere = write_timeline(folder, name, number)
        scenarios[name] = asdict(replace(layout.facts, **by_chance(layout), elsewhere=elsewhere))
    rng = np.random.default_rng(6)
    texts = rng.normal(size=(len(NAMES) * NUM_ITEMS, TEXT_WIDTH))
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    write_array(item_texts_path(str(folder), "people"), np.float16, texts.shape, [texts])
    facts = write_people(project, folder, inputs.read_users(project, "people"))
    manifest = {"fingerprint": "by hand", "scenarios": scenarios, "users": facts}
    storage.write_json(str(folder / "manifest.json"), manifest)
    return project


class Served:
    """The engines of both scenarios over a stirred model."""

    def __init__(self, root: Path, users: pa.Table | None = None) -> None:
        self.project = prepared_people(root, users)
        prepared, best = str(root / "out"), root / "best"
        self.model = joint_model(self.project, prepared, str(best))
        model, _ = build_model(
            self.project, self.model.open_prepared(), CPU, "fp32", width=TEXT_WIDTH
        )
        stir(model)
        checkpoint.save_model(best, model, {})
        rng = np.random.default_rng(7)
        self.vectors = rng.normal(size=(len(NAMES) * NUM_ITEMS, TEXT_WIDTH)).astype(np.float32)
        self.loaded = load_with_vectors(self.model, self.vectors)
        store = open_store(f"sqlite:///{root / 'events.sqlite'}")
        self.layouts = {
            n: SnapshotColumns(self.model.open_prepared(), n, self.project.scenarios[n])
            for n in NAMES
        }
        self.states = {n: FreshState(self.layouts[n], store) for n in NAMES}
        self.engines = {n: self.engine(n) for n in NAMES}

    def engine(self, name: str) -> ScenarioEngine:
        """The engine of a scenario that has no lists."""
        layout, state = self.layouts[name], self.states[name]
        side = self.loaded[0].elsewhere_side(name)
        side.timeline = FreshTimeline.of(side.timeline, name, self.states)
        ranker = Ranker(self.model, name, self.vectors, state.at_end, None, self.loaded)
        askers = Askers(name, self.states, None, {}, profiles=self.profiles(layout))
        return ScenarioEngine(
            name=name, kind="joint", fingerprint="", version="1", scorer=PairScorer(ranker),
            list_ranker=None, askers=askers, most=50, project=self.project,
            filters=ItemFilters(self.project, name, ranker.items.ids),
            texts=ItemTexts(self.project, name, state.catalogue),
        )  # fmt: skip

    def profiles(self, layout: SnapshotColumns) -> RequestProfiles:
        """What reads profiles of requests."""

        @cache
        def stored() -> Profiles:
            found = layout.prepared.profiles(layout.name)
            assert found is not None
            return found

        facts = layout.prepared.users["people"]
        reader = ProfileReader.of(self.project, "people", facts)
        return RequestProfiles(
            reader, stored, lambda t: encoders().read_users(self.project, "p", t, CPU).numpy()
        )

    def views(self, name: str) -> ScenarioViews:
        """Looks into a scenario, without an encoder."""

        def none() -> Any:
            raise AssertionError("no words are asked for")

        texts = {other: engine.texts for other, engine in self.engines.items()}
        return ScenarioViews(self.engines[name], none, lambda: None, 20, texts.get)


def profile_of(user: int, users: pa.Table | None = None) -> Mapping[str, Any]:
    """The columns of a user's row, as a request bears them."""
    row = (people() if users is None else users).slice(user, 1).to_pylist()[0]
    return {name: value for name, value in row.items() if name != "user_id"}
