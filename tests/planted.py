"""Small worlds of one scenario in which a label rests on one column alone, and training in them."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from mtrec_ray.data.catalogue import Catalogue
from mtrec_ray.data.prepared import PreparedScenario
from mtrec_ray.data.shards import Arrays
from mtrec_ray.model.encoder import TextEncoder
from mtrec_ray.model.recommender import NO_PROFILES, NO_TIMELINES, Recommender
from mtrec_ray.model.samples import Samples
from mtrec_ray.training.forward import Forward
from mtrec_ray.training.item_vectors import ItemVectors
from mtrec_ray.training.retrieval_loss import CandidateDraws
from mtrec_ray.training.step import accumulate
from tests.builders import CPU, HISTORY, SHOP, small_model

STEPS, BATCH_ROWS = 100, 500


def planted_facts(num_items: int, item_category_sizes: list[int]) -> PreparedScenario:
    """A shop with one binary task, and one numeric column, which says nothing."""
    return replace(
        SHOP,
        kinds={"click": "binary"},
        given={},
        entire=[],
        label_means={"click": 0.4},
        label_stds={"click": 0.49},
        numeric_names=["item.log_count"],
        numeric_mean=[0.0],
        numeric_std=[1.0],
        numeric_quantiles=[[-1.0, 0.0, 1.0]],
        item_numeric_mean=[],
        item_numeric_std=[],
        item_numeric_quantiles=[],
        item_category_sizes=item_category_sizes,
        category_sizes=[],
        num_items=num_items,
        num_users=1,
        popularity={"click": "item.log_count"},
    )


def planted_rows(
    rng: np.random.Generator,
    item: np.ndarray,
    person: np.ndarray,
    likes: np.ndarray,
    time: np.ndarray | None = None,
) -> Arrays:
    """Rows of users without a past, who mostly take what they like (bool[N])."""
    num, none = len(item), np.full((len(item), HISTORY), -1)
    return {
        "item": item, "person": person, "user": np.zeros(num, int), "history": none,
        "time": np.zeros(num, int) if time is None else time, "history_age": np.zeros_like(none),
        "numeric": rng.normal(size=(num, 1)),
        "categorical": np.zeros((num, 0), int),
        "labels": (rng.random(num) < np.where(likes, 0.85, 0.15))[:, None].astype("f4"),
    }  # fmt: skip


def planted_model(
    facts: PreparedScenario, catalogue: Catalogue, profiles=NO_PROFILES, timelines=NO_TIMELINES
) -> tuple[Recommender, ItemVectors]:
    """A model at its start, with a retrieval side, without embeddings of users and items."""
    retrieval = {"width": 8, "negatives": facts.num_items, "item_ids": False}
    sizes = {"width": 32, "hidden": (64, 32), "user_ids": False, "item_ids": False}
    options = small_model("none", retrieval=retrieval, **sizes)
    torch.manual_seed(0)
    encoder = TextEncoder(options.encoder)
    parts = {"shop": facts}, {"shop": catalogue}
    model = Recommender(options, *parts, encoder, profiles, timelines)
    vectors = ItemVectors(model.encoder, {"shop": catalogue}, CPU)
    vectors.refresh()
    return model, vectors


def learn(
    model: Recommender,
    vectors: ItemVectors,
    rows_of: Callable[[int], Arrays],
    lr: float = 0.02,
) -> None:
    """Train on the first rows of each step's."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    counts = {"shop": torch.full((model.facts["shop"].num_items,), 100.0, dtype=torch.float64)}
    draws = CandidateDraws(model.options, model.facts, counts, 0)
    weights, forward = torch.ones(1, dtype=torch.float64), Forward(model.train(), vectors)
    for step in range(STEPS):
        optimizer.zero_grad()
        arrays = {k: v[:BATCH_ROWS] for k, v in rows_of(step).items()}
        batch = [{"shop": Samples.of(arrays)}]
        drawn = draws.of_step(batch, step)
        accumulate(forward, model.facts, batch, weights, encode=False, drawn=drawn)
        optimizer.step()
    model.eval()


@torch.no_grad()
def predicted(model: Recommender, vectors: ItemVectors, rows: Arrays) -> np.ndarray:
    """Logits f32[N] of the task."""
    samples = Samples.of(rows)
    text = vectors.of_items("shop", samples.items)
    return model.score("shop", samples, text)[:, 0].numpy()
