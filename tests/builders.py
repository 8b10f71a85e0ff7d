"""A small world for tests: two scenarios that differ in everything that a scenario may have.

`shop` has a conditional task over the entire space, item and event categories and item numbers;
`video` has a regression and none of these. Their users are shared. No Ray, no downloads: the
encoder is `tiny`. Weights are stirred, because heads start at zero, where the gradient of
everything below them is zero and a test that compares gradients could not fail.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from mtrec_ray.data import storage
from mtrec_ray.data.catalogue import NO_TIME, Catalogue
from mtrec_ray.data.columns import fixed_list
from mtrec_ray.data.elsewhere import ElsewhereFacts, Timeline
from mtrec_ray.data.order import Slice
from mtrec_ray.data.prepared import Classes, Prepared, PreparedScenario, Shard, load_prepared
from mtrec_ray.data.shards import LISTS, OUTCOME, SCALARS, WEIGHT, Arrays, concatenate
from mtrec_ray.model.encoder import TextEncoder
from mtrec_ray.model.recommender import NO_TIMELINES, Recommender
from mtrec_ray.project.load import parse_project
from mtrec_ray.project.model import Encoder, Model
from mtrec_ray.project.project import Project
from mtrec_ray.project.split import SPLITS
from mtrec_ray.training.item_vectors import ItemVectors

NUM_USERS, NUM_ITEMS, HISTORY = 12, 30, 4
VOCABULARY = 97  # of the tiny encoder
CPU = torch.device("cpu")

SHOP = PreparedScenario(
    name="shop",
    kinds={"click": "binary", "buy": "binary"},
    given={"buy": "click"},
    entire=["buy"],
    history_last=HISTORY,
    label_means={"click": 0.4, "buy": 0.25},
    label_stds={"click": 0.49, "buy": 0.43},
    numeric_names=["item.log_count", "item.rate.click", "item.rate.buy"],
    numeric_mean=[0.1, 0.0, -0.2],
    numeric_std=[1.0, 1.5, 0.7],
    numeric_quantiles=[[-2.0, -0.5, 0.0, 0.5, 2.0]] * 3,
    item_numeric_mean=[0.3],
    item_numeric_std=[1.2],
    item_numeric_quantiles=[[-1.0, -0.2, 0.3, 0.8, 1.6]],
    item_category_sizes=[3],
    category_sizes=[4],
    user_space="people",
    num_users=NUM_USERS,
    num_items=NUM_ITEMS,
    popularity={"click": "item.rate.click", "buy": "item.rate.buy"},
    end_ms=0,
    shards={split: [] for split in SPLITS},
)
VIDEO = replace(
    SHOP,
    name="video",
    kinds={"like": "binary", "stars": "regression"},
    given={},
    entire=[],
    label_means={"like": 0.6, "stars": 3.5},
    label_stds={"like": 0.49, "stars": 1.1},
    numeric_names=["item.log_count", "item.rate.like"],
    numeric_mean=[0.0, 0.2],
    numeric_std=[1.0, 0.8],
    numeric_quantiles=[[-1.5, -0.5, 0.0, 0.5, 1.5]] * 2,
    item_numeric_mean=[],
    item_numeric_std=[],
    item_numeric_quantiles=[],
    item_category_sizes=[],
    category_sizes=[],
    popularity={"like": "item.rate.like", "stars": "item.log_count"},
    end_ms=0,
)
FACTS = {"shop": SHOP, "video": VIDEO}

# Shop with a task of every kind, a chain of three whose last one is over the entire space, and
# histories that tell what came of their items.
EVERY_KIND = FACTS | {
    "shop": replace(
        SHOP,
        kinds={"click": "binary", "cart": "binary", "buy": "binary", "visits": "count",
               "seconds": "duration"},
        given={"cart": "click", "buy": "cart"},
        entire=["buy"],
        label_means={"click": 0.4, "cart": 0.5, "buy": 0.5, "visits": 2.0, "seconds": 60.0},
        label_stds={"click": 0.5, "cart": 0.5, "buy": 0.5, "visits": 1.6, "seconds": 90.0},
        label_log_means={"seconds": 3.4},
        label_log_stds={"seconds": 1.2},
        popularity=dict.fromkeys(("click", "cart", "buy", "visits", "seconds"), "item.log_count"),
        history_outcomes=True,
    )
}  # fmt: skip

# Shop with a multiclass task between its others, defined where there was a click.
WITH_CLASSES = FACTS | {
    "shop": replace(
        SHOP,
        kinds={"click": "binary", "reaction": "multiclass", "buy": "binary"},
        given={"buy": "click", "reaction": "click"},
        label_means={"click": 0.4, "reaction": 1.3, "buy": 0.25},
        label_stds={"click": 0.49, "reaction": 1.2, "buy": 0.43},
        popularity=dict.fromkeys(("click", "reaction", "buy"), "item.log_count"),
        classes={"reaction": Classes(["skip", "like", "love"], [0.0, 1.0, 3.0], [0.5, 0.2, 0.3])},
    )
}


def scenario_tree(tasks: Mapping[str, Any], **fields: object) -> dict[str, Any]:
    """A scenario of a project file."""
    return {
        "items": {"path": "items.parquet", "text": "{title}"},
        "events": {"path": "events.parquet", "time": "time"},
        "split": {"column": "split"},
        "tasks": dict(tasks),
        **fields,
    }


def project_tree(scenarios: Mapping[str, Any], **sections: object) -> dict[str, Any]:
    """A project file."""
    return deepcopy({"scenarios": dict(scenarios), "run": {"name": "test"}, **sections})


def two_scenario_project(shop: float = 2.0, video: float = 1.0) -> Project:
    """The project of `FACTS`, with the scenarios' lambdas."""
    buy = {"kind": "binary", "given": "click", "space": "entire", "weight": 0.5}
    tasks = {"click": {"kind": "binary"}, "buy": buy}
    more = {"like": {"kind": "binary"}, "stars": {"kind": "regression", "weight": 3.0}}
    scenarios = {
        "shop": scenario_tree(tasks, weight=shop),
        "video": scenario_tree(more, weight=video),
    }
    return parse_project(project_tree(scenarios))


def every_kind_project() -> Project:
    """The project of `EVERY_KIND`."""
    tasks: dict[str, dict[str, Any]] = {
        "click": {"kind": "binary"},
        "cart": {"kind": "binary", "given": "click", "weight": 2.0},
        "buy": {"kind": "binary", "given": "cart", "space": "entire"},
        "visits": {"kind": "count", "weight": 0.5},
        "seconds": {"kind": "duration", "weight": 3.0},
    }
    tree = two_scenario_project().dump()
    tree["scenarios"]["shop"] = scenario_tree(tasks, weight=2.0)
    return parse_project(tree)


def shaped_project() -> Project:
    """The project of `EVERY_KIND`, with a shape of the loss wherever a task may have one."""
    tree = every_kind_project().dump()
    tasks = tree["scenarios"]["shop"]["tasks"]
    tasks["click"]["positive_weight"] = 3.0
    tasks["cart"] |= {"label_smoothing": 0.1, "positive_weight": 0.5}
    tasks["buy"] |= {"focal": 2.0, "positive_weight": 2.0}
    tree["scenarios"]["video"]["tasks"]["stars"]["huber"] = 0.7
    return parse_project(tree)


def classes_project() -> Project:
    """The project of `WITH_CLASSES`; its loss weighs classes, and smooths their labels."""
    tree = two_scenario_project().dump()
    reaction = {
        "kind": "multiclass", "given": "click", "classes": ["skip", "like", "love"],
        "gains": {"like": 1, "love": 3}, "class_weights": {"love": 2.5}, "label_smoothing": 0.1,
    }  # fmt: skip
    click, buy = tree["scenarios"]["shop"]["tasks"].values()
    tree["scenarios"]["shop"]["tasks"] = {"click": click, "reaction": reaction, "buy": buy}
    return parse_project(tree)


def make_catalogue(rng: np.random.Generator, facts: PreparedScenario) -> Catalogue:
    """Items with texts of 3 to 14 tokens; some unknown to training, some numbers null."""
    n = facts.num_items
    lengths = rng.integers(3, 15, n)
    sizes = facts.item_category_sizes
    numeric = rng.normal(size=(n, len(facts.item_numeric_mean))).astype(np.float32)
    numeric[rng.random(numeric.shape) < 0.2] = np.nan
    return Catalogue(
        tokens=rng.integers(5, VOCABULARY, lengths.sum()).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        categorical=rng.integers(0, sizes or 1, (n, len(sizes))).astype(np.int32),
        numeric=numeric,
        published=np.full(n, NO_TIME),
        known=rng.random(n) < 0.8,
    )


def make_catalogues(seed: int = 0) -> dict[str, Catalogue]:
    """The catalogues of `FACTS`."""
    rng = np.random.default_rng(seed)
    return {name: make_catalogue(rng, facts) for name, facts in FACTS.items()}


def with_vectors(catalogues: Mapping[str, Catalogue], seed: int = 8) -> dict[str, Catalogue]:
    """The catalogues with a column of ready vectors for shop, which some of its items lack."""
    values = np.random.default_rng(seed).normal(size=(NUM_ITEMS, 5)).astype(np.float16)
    values[::4] = np.nan
    return {**catalogues, "shop": replace(catalogues["shop"], vectors=(values,))}


def make_timelines(seed: int = 4) -> dict[str, Timeline]:
    """What persons 0 to 3 of `FACTS` took in the other scenario; video's rows have no time."""
    rng, found = np.random.default_rng(seed), {}
    sizes, texts = {n: f.num_items for n, f in FACTS.items()}, rng.normal(size=(2 * NUM_ITEMS, 6))
    texts = (texts / np.linalg.norm(texts, axis=1, keepdims=True)).astype(np.float16)
    for name, base in (("shop", NUM_ITEMS), ("video", 0)):
        person, known = np.sort(rng.integers(0, 4, 20)), rng.integers(0, 10**6, 20)
        order = np.lexsort([known, person])
        facts = ElsewhereFacts(3, name == "shop", sizes, {"shop": 0, "video": 7000})
        item = (base + rng.integers(0, NUM_ITEMS, 20)).astype(np.int32)
        found[name] = Timeline(facts, person[order], known[order], item, texts)
    return found


def make_rows(rng: np.random.Generator, facts: PreparedScenario, num_rows: int) -> Arrays:
    """Prepared rows: short histories, null numbers, a third of the labels missing."""
    shape = (num_rows, facts.history_last)
    some = (
        np.arange(facts.history_last) < rng.integers(0, facts.history_last + 1, num_rows)[:, None]
    )
    numeric = rng.normal(size=(num_rows, len(facts.numeric_mean))).astype(np.float32)
    numeric[rng.random(numeric.shape) < 0.1] = np.nan
    sizes = facts.category_sizes
    return {
        "row": np.arange(num_rows),
        "user": rng.integers(0, facts.num_users, num_rows).astype(np.int32),
        "item": rng.integers(0, facts.num_items, num_rows).astype(np.int32),
        "person": np.arange(num_rows) % 5,
        "time": rng.integers(0, 10**6, num_rows),
        "history": np.where(some, rng.integers(0, facts.num_items, shape), -1).astype(np.int32),
        "history_age": np.where(some, rng.integers(0, 30, shape), 0).astype(np.uint8),
        "numeric": numeric,
        "categorical": rng.integers(0, sizes or 1, (num_rows, len(sizes))).astype(np.int32),
        "labels": make_labels(rng, facts, num_rows),
    } | (make_outcomes(rng, facts, some) if facts.history_outcomes else {})


def make_outcomes(rng: np.random.Generator, facts: PreparedScenario, some: np.ndarray) -> Arrays:
    """What came of the items of histories, where bool[N, H] says that there is one."""
    outcomes = rng.integers(0, 4 ** len(facts.tasks), some.shape)
    return {OUTCOME: np.where(some, outcomes, 0).astype(np.int32)}


def with_weights(rows: Arrays, seed: int = 6) -> Arrays:
    """The rows with weights of which some are 0 and others below 1."""
    rng = np.random.default_rng(seed)
    drawn = rng.choice([0.0, 0.01, 0.5, 1.0, 3.0], len(rows["row"]))
    return rows | {WEIGHT: drawn.astype(np.float32)}


def make_labels(rng: np.random.Generator, facts: PreparedScenario, num_rows: int) -> np.ndarray:
    """f32[N, T]: labels with nulls; a conditional one is null where its parent is not positive."""
    columns: dict[str, np.ndarray] = {}
    for task, kind in facts.kinds.items():
        values = {
            "binary": lambda: rng.integers(0, 2, num_rows),
            "regression": lambda: rng.normal(3.5, 1, num_rows),
            "count": lambda: rng.poisson(2, num_rows),
            "duration": lambda: rng.lognormal(3.4, 1.2, num_rows),
            "multiclass": partial(rng.integers, 0, facts.num_logits(task), num_rows),
        }[kind]()
        known = rng.random(num_rows) < 0.67
        if task in facts.given:
            known &= columns[facts.given[task]] == 1
        columns[task] = np.where(known, values, np.nan)
    return np.stack(list(columns.values()), 1).astype(np.float32)


def take(arrays: Arrays, rows: slice | np.ndarray) -> Arrays:
    """Some of the rows."""
    return {name: values[rows] for name, values in arrays.items()}


def pick(shards: Sequence[Arrays], piece: Slice) -> Arrays:
    """The rows of a piece, of shards in memory."""
    parts = [{k: v[a:b] for k, v in shards[i].items()} for i, a, b in piece.segments]
    return {k: v[piece.order] for k, v in concatenate(parts).items()}


def small_model(trainable: str = "all", **fields: Any) -> Model:
    """Options of a narrow model over the tiny encoder, without any dropout or retrieval side."""
    encoder = Encoder.model_validate(
        {"source": "tiny", "trainable": trainable, "tokens_per_chunk": 60, "every": 1}
        | fields.pop("encoder", {})
    )
    sizes = {"width": 8, "attention_heads": 2, "hidden": (12, 10), "head_hidden": 6}
    ids = {"user_ids": True, "item_ids": True, "retrieval": {"enabled": False}}
    return Model.model_validate(
        {"encoder": encoder, "dropout": 0, "id_dropout": 0, **sizes, **ids} | fields
    )


RETRIEVAL = {"width": 6, "negatives": 9, "temperature": 0.5}  # a small retrieval side


def stir(module: torch.nn.Module, seed: int = 1) -> None:
    """Move every trainable weight off its start; the rows of unknown ids stay 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter += 0.2 * noise
        for part in module.modules():
            if isinstance(part, torch.nn.Embedding) and part.padding_idx is not None:
                part.weight[part.padding_idx] = 0


def build(
    options: Model,
    catalogues: Mapping[str, Catalogue],
    facts: Mapping[str, PreparedScenario] = FACTS,
    timelines: Mapping[str, Timeline] = NO_TIMELINES,
) -> tuple[Recommender, ItemVectors]:
    """A stirred model, the same at every call, and its item vectors."""
    torch.manual_seed(0)
    encoder = TextEncoder(options.encoder)
    model = Recommender(options, facts, catalogues, encoder, timelines=timelines)
    stir(model)
    return model, ItemVectors(model.encoder, catalogues, CPU)


def write_prepared(
    folder: Path,
    catalogues: Mapping[str, Catalogue],
    shards: Mapping[str, Mapping[str, Sequence[Arrays]]],
) -> Prepared:
    """Prepared data of `FACTS` on disk: a manifest by hand, catalogues, one file a shard."""
    scenarios = {}
    for name, facts in FACTS.items():
        write_catalogue(folder / name / "catalogue.parquet", catalogues[name])
        listed: dict[str, list[Shard]] = {split: [] for split in SPLITS}
        for split, parts in shards[name].items():
            for number, arrays in enumerate(parts):
                path = f"{name}/{split}/part-{number:05}.parquet"
                write_shard(folder / path, arrays)
                listed[split].append(Shard(path, len(arrays["row"])))
        scenarios[name] = asdict(replace(facts, shards=listed))
    manifest = {"fingerprint": "by hand", "scenarios": scenarios}
    storage.write_json(str(folder / "manifest.json"), manifest)
    return load_prepared(str(folder))


def write_shard(path: Path, arrays: Arrays) -> None:
    """Rows as a Parquet file in the schema of prepared rows."""
    columns: dict[str, Any] = {name: arrays[name] for name in SCALARS}
    storage.write_table(str(path), pa.table(columns | {c: fixed_list(arrays[c]) for c in LISTS}))


def write_catalogue(path: Path, catalogue: Catalogue) -> None:
    """A catalogue as a Parquet file in the schema of prepared catalogues."""
    texts = np.split(catalogue.tokens, catalogue.offsets[1:-1])
    columns: dict[str, Any] = {
        "item_id": [f"item {i}" for i in range(catalogue.num_items)],
        "tokens": pa.array(texts, pa.list_(pa.int32())),
        "known": catalogue.known,
    }
    for kind in ("categorical", "numeric"):
        for i, values in enumerate(getattr(catalogue, kind).T):
            columns[f"{kind}.{i}"] = np.ascontiguousarray(values)
    storage.write_table(str(path), pa.table(columns))
