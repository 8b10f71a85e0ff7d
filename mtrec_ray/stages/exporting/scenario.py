"""A scenario's items as vectors with an index, and its user side as ONNX.

Letters: n items, m of them, D width of text vectors, E width of retrieval vectors, B users, H
history items.
"""

from functools import cached_property
from pathlib import Path
from typing import Any, cast

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from mtrec_ray.candidates import inverted_lists
from mtrec_ray.candidates.search_index import EXACT_UP_TO
from mtrec_ray.data.arrays import Float32s
from mtrec_ray.data.columns import fixed_list
from mtrec_ray.data.end_states import items_at_end, read_catalogue, user_parts, users_at_end
from mtrec_ray.data.snapshot import ItemSnapshot, UserSnapshot, rows_of_pairs
from mtrec_ray.model.recommender import Recommender, predictions
from mtrec_ray.model.samples import Samples
from mtrec_ray.stages.exporting.encoder import EncoderFiles, spread
from mtrec_ray.stages.exporting.onnx_file import export_onnx, onnx_session
from mtrec_ray.stages.exporting.parity import Parity
from mtrec_ray.stages.exporting.ranking_part import (
    RankingPart,
    inputs_of_pairs,
    ranking_problem,
    represented,
    represented_elsewhere,
    sizes_of,
)
from mtrec_ray.stages.exporting.user_side import (
    UserSide,
    inputs_of_users,
    profile_table,
    user_side_problem,
)
from mtrec_ray.stages.list_inputs import layout_of
from mtrec_ray.stages.ranker import retrieval_vectors
from mtrec_ray.stages.trained_model import TrainedModel, ensure_vectors, load_with_vectors

ITEMS, TEXTS, VECTORS, INDEX = "items.parquet", "text_vectors.npy", "vectors.npy", "index.faiss"
RANKING, USER, PROFILES = "ranking.onnx", "user.onnx", "profiles.parquet"
ELSEWHERE = "elsewhere.parquet"
FOUND = 10  # items that the index is asked for
PROBES = 16  # lists of a large index that a search looks into, at least


class ScenarioFiles:
    """Writes what a scenario's model makes of its items and users."""

    def __init__(self, trained_model: TrainedModel, name: str, encoder: EncoderFiles) -> None:
        self.trained_model, self.name, self.encoder = trained_model, name, encoder
        self.layout = layout_of(trained_model, name)

    @cached_property
    def _trained(self) -> tuple[Recommender, torch.Tensor]:
        """The model, and the text vectors f32[n, D] of the scenario's items."""
        model, vectors = load_with_vectors(self.trained_model, ensure_vectors(self.trained_model))
        start = vectors.bases[self.name]
        assert vectors.cache is not None
        return model.cpu(), vectors.cache[start : start + self.layout.facts.num_items].cpu()

    @property
    def model(self) -> Recommender:
        """The scenario's model, on the CPU."""
        return self._trained[0]

    @property
    def text(self) -> torch.Tensor:
        """f32[n, D], the text vectors of the items in the precision of predictions."""
        return self._trained[1]

    def write_vectors(self, folder: Path) -> dict[str, Any]:
        """Writes the vectors of all items, and an index of those that are searched."""
        ids, text = read_catalogue(self.layout).ids, self.text.numpy()
        found = retrieval_vectors(self.model, self.name, self.text)
        columns = {"id": pa.array(ids, pa.string()), "text_vector": fixed_list(text)}
        np.save(folder / TEXTS, text)
        if found is not None:
            columns |= {"vector": fixed_list(found), "length": pa.array(self.lengths())}
            np.save(folder / VECTORS, found)
        pq.write_table(pa.table(columns), folder / ITEMS, compression="zstd")
        searched = unit(text) if found is None else found
        recall = write_index(searched, folder / INDEX)
        return {
            "items": len(ids),
            "text_width": text.shape[1],
            "width": searched.shape[1],
            "searched": "text vectors of length 1" if found is None else "retrieval vectors",
            "index_recall": recall,
            "parity": self.encoder.items_parity(self.name, text),
        }

    @torch.no_grad()
    def lengths(self) -> Float32s:
        """Returns f32[n], the length of each item's state: the user side reads vector x length."""
        retrieval = self.model.retrieval
        assert retrieval is not None
        parts = torch.arange(len(self.text)).split(inverted_lists.POINTS_PER_LIST * 1024)
        states = [retrieval.states(self.name, rows, self.text[rows]).norm(dim=1) for rows in parts]
        return torch.cat(states).numpy()

    def write_user(self, folder: Path) -> dict[str, Any]:
        """Writes the map from histories to users' vectors as ONNX.

        Where the scenario has none, the record says why.
        """
        if problem := user_side_problem(self.model, self.name):
            return {"absent": problem}
        side, path = UserSide(self.model, self.name).eval(), folder / USER
        users = self.some_users()
        inputs = inputs_of_users(self.model, self.name, users, self.text)
        some, length = torch.export.Dim("users"), torch.export.Dim("history")
        shapes = {n: {0: some} if n == "profile" else {0: some, 1: length} for n in inputs}
        export_onnx(side, inputs, path, "vector", shapes)
        if "profile" in inputs:
            self.write_profiles(folder)
        assert self.model.retrieval is not None
        wanted = self.model.retrieval.user_vectors(self.name, users, self.text).numpy()
        (found,) = onnx_session(path).run(None, {n: v.numpy() for n, v in inputs.items()})
        return {"inputs": list(inputs), "parity": Parity.of(found, wanted).told()}

    def write_ranking(self, folder: Path) -> dict[str, Any]:
        """Writes the network that ranks as ONNX, and what it reads of all items.

        Where it cannot be exported, the record says why.
        """
        if problem := ranking_problem(self.model, self.name):
            return {"absent": problem}
        items = items_at_end(self.layout)
        samples = self.some_pairs(items)
        inputs = inputs_of_pairs(self.model, self.name, samples, self.text)
        part, path = RankingPart(self.model, self.name).eval(), folder / RANKING
        export_onnx(part, inputs, path, "predictions", sizes_of(inputs))
        self.write_items(items, folder / ITEMS)
        if self.name in self.model.elsewhere:
            pq.write_table(self.items_elsewhere(), folder / ELSEWHERE, compression="zstd")
        with torch.no_grad():
            logits = self.model.score(self.name, samples, self.text[samples.items])
        wanted = predictions(self.layout.facts, logits).numpy()
        (found,) = onnx_session(path).run(None, {n: v.numpy() for n, v in inputs.items()})
        names = [*self.layout.facts.numeric_names, *self.layout.scenario.items.numeric]
        told = {"inputs": list(inputs), "columns": names, "tasks": self.layout.facts.tasks}
        return {**told, "parity": Parity.of(found, wanted).told()}

    def write_items(self, items: ItemSnapshot, path: Path) -> None:
        """Writes the items as the network reads them, with their columns at the end of the data."""
        own = represented(self.model, self.name, self.text).numpy()
        raw = self.model.scenario_inputs(self.name).catalogue_raw.numpy()
        columns = fixed_list(np.concatenate([items.numeric, raw], 1))
        ids = pa.array(items.ids, pa.string())
        table = pa.table({"id": ids, "item": fixed_list(own), "columns": columns})
        pq.write_table(table, path, compression="zstd")

    def items_elsewhere(self) -> pa.Table:
        """Returns the items of all scenarios of the people, as the network reads what was taken.

        Its own are among them: their texts are those that candidates are compared by. An item of a
        scenario that the model does not know has no id, but the number of its row.
        """
        vectors, texts = represented_elsewhere(self.model, self.name)
        facts = self.model.elsewhere_side(self.name).timeline.facts
        known = self.layout.prepared.scenarios
        ids: list[str | None] = []
        for name, num in facts.num_items.items():
            there = name in known and name in self.trained_model.project.scenarios
            own = read_catalogue(layout_of(self.trained_model, name)).ids.tolist() if there else []
            ids += own or [None] * num
        sizes = facts.num_items.values()
        return pa.table(
            {
                "scenario": np.repeat(facts.scenarios, list(sizes)),
                "id": pa.array(ids, pa.string()),
                "row": np.concatenate([np.arange(num) for num in sizes]),
                "item": fixed_list(vectors.numpy()),
                "text": fixed_list(texts.numpy()),
            }
        )

    def some_pairs(self, items: ItemSnapshot) -> Samples:
        """Returns some users at the end of the data, each with an item."""
        users = self.some_users()
        num = np.arange(len(users))
        arrays = rows_of_pairs(self.layout, users, items, num, num % len(items.ids))
        labels = np.zeros((len(users), len(self.layout.facts.tasks)), np.float32)
        return Samples.of(arrays | {"labels": labels})

    def write_profiles(self, folder: Path) -> None:
        """Writes the profiles of all users at the end of the data, as the user side reads them."""
        retrieval, prepared = self.model.retrieval, self.layout.prepared
        assert retrieval is not None
        parts = (users_at_end(self.layout, part) for part in user_parts(prepared, self.name))
        table = profile_table(retrieval, retrieval.spaces[self.name], parts)
        pq.write_table(table, folder / PROFILES, compression="zstd")

    def some_users(self) -> UserSnapshot:
        """Returns some users at the end of the data."""
        part = user_parts(self.layout.prepared, self.name)[0]
        users = users_at_end(self.layout, part)
        return users.take(spread(len(users)))


def unit(vectors: Float32s) -> Float32s:
    """Returns vectors f32[n, D] of length 1; those of length 0 stay."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def write_index(vectors: Float32s, path: Path) -> float:
    """Writes an index of faiss of unit vectors f32[n, E] by inner product; returns its recall.

    That is the share of the 10 best that are found, over items as queries. A small catalogue is
    searched whole; of a large one a few lists are, as many as `nprobe` says in the file.
    """
    vectors = np.ascontiguousarray(vectors, np.float32)
    exact = cast("Any", faiss.IndexFlatIP(vectors.shape[1]))
    exact.add(vectors)
    index = exact
    if len(vectors) > EXACT_UP_TO:
        lists = inverted_lists.num_lists(len(vectors))
        kind = f"IVF{lists},Flat"
        made = faiss.index_factory(vectors.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
        index = cast("Any", made)
        index.train(vectors)
        index.add(vectors)
        index.nprobe = max(lists // 16, PROBES)
    faiss.write_index(index, str(path))
    loaded: Any = faiss.read_index(str(path))
    queries = vectors[spread(len(vectors))]
    wanted, found = (own.search(queries, min(FOUND, len(vectors)))[0] for own in (exact, loaded))
    return float((found >= wanted[:, -1:] - 1e-5).mean()) if wanted.size else 1.0
