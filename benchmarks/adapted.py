"""Does an encoder that behaviour taught know new items better than the frozen one?

    python -m benchmarks.adapted [--data real4 --data grocery ..] [--steps 150] [--layers 2]
                                 [--root DATA] [--storage DIR] [--out FILE]

A linear map of the vectors, and then the top layers of the encoder with it, learn by InfoNCE
(1807.03748) over pairs of training rows: an item that a person took, and one of the ten that he
took before it. Negatives are the other items of the same scenario's pairs in the batch, corrected
for popularity; items of the catalogue seen twice under dropout (SimCSE, 2104.08821) stand for those
without behaviour. The step is kept whose neighbours of valid rows are best (recall@20 of 2,000 rows
among 5,000 items and the rows' own).

What texts then say of a row of valid and test, which come later than what taught them: the mean,
the greatest and the recency-weighted cosine of the item and the person's history. They stand as
three more columns beside the joint model of `benchmarks.shared_users` (same storage; its first
seed), blended by weights of valid. Test AUC of each scenario's main task, all rows and those of
items that training has not, for vectors of

    frozen      the pretrained encoder
    adapted     the encoder that behaviour taught
    permuted    the same teaching with texts permuted among a catalogue's items: the control
"""

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.beside import Rows, predict, predictions_of, with_opinions
from benchmarks.common import TOP, write_result
from benchmarks.ranking import project_of
from mtrec_ray.data import storage as files
from mtrec_ray.data.catalogue import Catalogue
from mtrec_ray.data.prepared import Prepared, PreparedScenario, load_prepared
from mtrec_ray.data.shards import concatenate, read_columns
from mtrec_ray.evaluation.blend import Blend
from mtrec_ray.evaluation.bootstrap import paired_difference
from mtrec_ray.evaluation.metrics import roc_auc
from mtrec_ray.model.encoder import TextEncoder
from mtrec_ray.project.project import Project
from mtrec_ray.report.tables import markdown_table
from mtrec_ray.stages.predictions import SOURCE, read_predictions, said_of_task
from mtrec_ray.stages.second_opinion import blends_of
from mtrec_ray.training.build import autocast_for, cache_folder
from mtrec_ray.training.item_vectors import ItemVectors

DATA = ("real4", "grocery", "anime")
VERSIONS = ("frozen", "adapted", "permuted")
PAIRS, VIEWS, TEMPERATURE, LATEST = 128, 32, 0.05, 10
RATE, MAP_RATE, MAP_STEPS = 5e-5, 1e-3, 3_000
JUDGED_ROWS, JUDGED_ITEMS, JUDGED_TIMES = 2_000, 5_000, 3
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Teaching:
    """How many steps are taken, and how many layers of the encoder learn."""

    steps: int
    layers: int


@dataclass(frozen=True)
class Pairs:
    """Rows whose item was taken: items i64[P] and the histories before them i64[P, H], -1: none."""

    item: np.ndarray
    history: np.ndarray

    @classmethod
    def of(cls, prepared: Prepared, name: str, split: str) -> "Pairs":
        """Those of a split that have a history."""
        facts = prepared.scenarios[name]
        columns = ("item", "history", "labels")
        parts = list(read_columns(prepared.shard_paths(name, split), columns))
        rows = concatenate(parts)
        label = rows["labels"][:, facts.tasks.index(facts.main)] if facts.main else np.zeros(0)
        taken = np.flatnonzero((label > 0) & (rows["history"] >= 0).any(1))
        return cls(rows["item"][taken].astype(np.int64), rows["history"][taken].astype(np.int64))

    def draw(self, number: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Items i64[n] and one of the latest ten before each."""
        rows = random.integers(0, len(self.item), number)
        recent = self.history[rows][:, :LATEST]
        order = np.where(recent >= 0, random.random(recent.shape), -1).argmax(1)
        return self.item[rows], recent[np.arange(number), order]


class Taught:
    """An encoder that learns from the behaviour in all scenarios of a data set."""

    def __init__(
        self,
        project: Project,
        prepared: Prepared,
        catalogues: Mapping[str, Catalogue],
        layers: int,
    ) -> None:
        torch.manual_seed(0)
        options = {"trainable": "top_k", "top_k": layers}
        self.encoder = TextEncoder(project.model.encoder.model_copy(update=options))
        self.autocast = autocast_for(CPU, project.training.precision)
        self.vectors = ItemVectors(self.encoder, catalogues, CPU, self.autocast)
        self.vectors.compute_frozen(cache_folder(project))
        named = [n for n, facts in prepared.scenarios.items() if facts.main]
        self.pairs = {n: Pairs.of(prepared, n, "train") for n in named}
        self.pairs = {n: p for n, p in self.pairs.items() if len(p.item)}
        self.judged = {n: Pairs.of(prepared, n, "valid") for n in self.pairs}
        self.popularity = {
            n: np.bincount(p.item, minlength=catalogues[n].num_items) / len(p.item)
            for n, p in self.pairs.items()
        }
        self.map = nn.Linear(self.encoder.width, self.encoder.width, bias=False)
        nn.init.eye_(self.map.weight)
        self.random = np.random.default_rng(0)

    def learn(self, steps: int) -> float:
        """Teach the map, then map and encoder; returns the recall on valid of the best weights."""
        self.best, self.kept = self.recall(), self.weights()
        self.frozen = {name: torch.from_numpy(self.some(name, None)) for name in self.pairs}
        self.go(MAP_STEPS, self.map.parameters(), MAP_RATE, self.loss_of_map)
        self.load(self.kept)
        both = [*self.encoder.parameters(), *self.map.parameters()]
        self.go(steps, both, RATE, self.loss)
        self.load(self.kept)
        return self.best

    def go(
        self,
        steps: int,
        parameters: Iterable[nn.Parameter],
        rate: float,
        loss: Callable[[str], Tensor],
    ) -> None:
        """Take steps, each of one scenario, and keep the best weights."""
        optimizer = torch.optim.AdamW(parameters, rate, weight_decay=0.0)
        weight = np.sqrt([len(p.item) for p in self.pairs.values()])
        for step in range(1, steps + 1):
            name = str(self.random.choice(list(self.pairs), p=weight / weight.sum()))
            for group in optimizer.param_groups:
                group["lr"] = rate * min(step / 20, 1)
            self.encoder.train()
            optimizer.zero_grad()
            loss(name).backward()
            optimizer.step()
            if step % (steps // JUDGED_TIMES) == 0:
                found = self.recall()
                print(f"step {step} of {steps}: recall@20 {found:.4f}", flush=True)
                if found > self.best:
                    self.best, self.kept = found, self.weights()

    def weights(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """A copy of the present weights of the encoder and of the map."""
        parts = (part.state_dict() for part in (self.encoder, self.map))
        encoder, linear = ({k: v.clone() for k, v in part.items()} for part in parts)
        return encoder, linear

    def load(self, weights: tuple[dict[str, Tensor], dict[str, Tensor]]) -> None:
        """Take weights back."""
        self.encoder.load_state_dict(weights[0])
        self.map.load_state_dict(weights[1])

    def loss_of_map(self, name: str) -> Tensor:
        """InfoNCE of a batch of pairs, by frozen vectors."""
        items, before = self.pairs[name].draw(4 * PAIRS, self.random)
        vectors = self.frozen[name]
        taken, context = (F.normalize(self.map(vectors[part]), dim=1) for part in (items, before))
        return self.contrast(name, items, taken, context)

    def loss(self, name: str) -> Tensor:
        """InfoNCE of a batch of pairs, and of two views of items of the catalogue."""
        items, before = self.pairs[name].draw(PAIRS, self.random)
        views = self.random.integers(0, self.vectors.sizes[name], VIEWS)
        base = self.vectors.bases[name]
        wanted = np.concatenate([items, before, views])
        with self.autocast():
            first, second = self.vectors.run(base + wanted), self.vectors.run(base + views)
        first, second = (F.normalize(self.map(x), dim=1) for x in (first, second))
        taken, context, seen = first.split([PAIRS, PAIRS, VIEWS])
        both = F.cross_entropy(seen @ second.T / TEMPERATURE, torch.arange(VIEWS))
        return self.contrast(name, items, taken, context) + 0.1 * both

    def contrast(self, name: str, items: np.ndarray, taken: Tensor, context: Tensor) -> Tensor:
        """InfoNCE, corrected for how often an item is drawn; equal items are no negatives."""
        drawn = torch.from_numpy(np.log(self.popularity[name][items])).float()
        score = context @ taken.T / TEMPERATURE - drawn
        same = torch.from_numpy(items[:, None] == items[None])
        same.fill_diagonal_(False)
        return F.cross_entropy(score.masked_fill(same, -1e9), torch.arange(len(items)))

    @torch.no_grad()
    def recall(self) -> float:
        """Mean over scenarios of recall@20 of valid rows' items near their histories."""
        self.encoder.eval()
        return float(np.mean([self.recall_of(n, p) for n, p in self.judged.items() if len(p.item)]))

    def recall_of(self, name: str, pairs: Pairs) -> float:
        """Share of sampled valid rows whose item is among the 20 nearest to their history."""
        random = np.random.default_rng(1)
        rows = random.permutation(len(pairs.item))[: JUDGED_ROWS // len(self.judged)]
        history = pairs.history[rows][:, :LATEST]
        others = random.permutation(self.vectors.sizes[name])[: JUDGED_ITEMS // len(self.judged)]
        items = np.unique(np.concatenate([pairs.item[rows], others, history[history >= 0]]))
        vectors = self.some(name, items)
        place = np.searchsorted(items, np.where(history >= 0, history, history[:, :1]))
        person = (vectors[place] * (history >= 0)[:, :, None]).sum(1)
        score = person @ vectors.T
        np.put_along_axis(score, place, -1e9, 1)  # what he has
        own = np.take_along_axis(score, np.searchsorted(items, pairs.item[rows])[:, None], 1)
        return float(((score > own).sum(1) < 20).mean())

    @torch.no_grad()
    def some(self, name: str, items: np.ndarray | None) -> np.ndarray:
        """f32[n, D]: normalised vectors of a scenario's items; of all without a list."""
        self.encoder.eval()
        items = np.arange(self.vectors.sizes[name]) if items is None else items
        parts = np.array_split(items, max(len(items) // 4096, 1))
        with self.autocast():
            found = [self.vectors.run(self.vectors.bases[name] + part) for part in parts]
        return F.normalize(self.map(torch.cat(found).float()), dim=1).numpy()


def permuted(catalogue: Catalogue, seed: int) -> Catalogue:
    """A catalogue whose texts are permuted among its items."""
    order = np.random.default_rng(seed).permutation(catalogue.num_items)
    spans = [catalogue.tokens[catalogue.offsets[i] : catalogue.offsets[i + 1]] for i in order]
    offsets = np.concatenate([[0], np.cumsum([len(span) for span in spans])]).astype(np.int64)
    fields = vars(catalogue) | {"tokens": np.concatenate(spans), "offsets": offsets}
    return Catalogue(**fields)


def teach(
    project: Project, prepared: Prepared, version: str, teaching: Teaching, folder: Path
) -> Mapping[str, np.ndarray]:
    """Vectors f32[n, D] of all items by scenario, `recall`, `seconds`; what was done is kept."""
    path = folder / f"{version}-{teaching.steps}-{teaching.layers}.npz"
    if not path.exists():
        names = list(prepared.scenarios)
        catalogues = {name: prepared.catalogue(name) for name in names}
        if version == "permuted":
            catalogues = {n: permuted(c, i) for i, (n, c) in enumerate(catalogues.items())}
        started = time.monotonic()
        taught = Taught(project, prepared, catalogues, teaching.layers)
        recall = taught.recall() if version == "frozen" else taught.learn(teaching.steps)
        seconds = time.monotonic() - started
        found = {n: taught.some(n, None) for n in names}
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(path, recall=recall, seconds=seconds, **found)  # pyright: ignore[reportArgumentType]
    return np.load(path)


def cosines(vectors: np.ndarray, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """f32[N] each: mean, greatest and recency-weighted cosine of a row's item and history."""
    names = ("mean", "greatest", "recent")
    parts = list(_cosines(vectors, rows))
    return {f"text_{n}": np.concatenate([p[i] for p in parts]) for i, n in enumerate(names)}


def _cosines(vectors: np.ndarray, rows: Mapping[str, np.ndarray]) -> Iterator[tuple[Any, ...]]:
    for start in range(0, len(rows["item"]), 8192):
        item, history = (rows[c][start : start + 8192] for c in ("item", "history"))
        known = history >= 0
        cosine = np.einsum("nhd,nd->nh", vectors[history.clip(0)], vectors[item])
        number = np.maximum(known.sum(1), 1)
        age = 1 / (1 + np.arange(history.shape[1]))
        greatest = np.where(known, cosine, -1).max(1, initial=-1)
        recent = (cosine * known * age).sum(1) / np.maximum((known * age).sum(1), 1e-9)
        yield (cosine * known).sum(1) / number, greatest, recent


def samples(prepared: Prepared, name: str, split: str) -> dict[str, np.ndarray]:
    """Items and histories of a split's rows."""
    paths = prepared.shard_paths(name, split)
    return concatenate(list(read_columns(paths, ("item", "history"))))


def compare(
    prepared: Prepared, facts: PreparedScenario, said: Mapping[str, Rows], taught: Mapping[str, Any]
) -> dict[str, float]:
    """AUC of test of the main task by version, of all rows and of new items, with intervals."""
    assert facts.main
    name, task = facts.name, facts.tasks.index(facts.main)
    rows = {split: samples(prepared, name, split) for split in said}
    label, person = said["test"]["label"][:, task], said["test"]["person"]
    known = np.isfinite(label)
    seen = concatenate(list(read_columns(prepared.shard_paths(name, "train"), ("item",))))["item"]
    new = known & ~np.isin(rows["test"]["item"], seen)
    scores = {"without": blended(facts, task, said)}
    found: dict[str, float] = {"rows": float(known.sum()), "new.rows": float(new.sum())}
    for version in VERSIONS:
        own = {split: cosines(taught[version][name], rows[split]) for split in said}
        more = {
            split: said[split] | {SOURCE + k: v for k, v in own[split].items()} for split in said
        }
        scores[version] = blended(facts, task, more)
        found[f"cosine.{version}"] = auc(label, own["test"]["text_mean"], known)
        found[f"cosine.new.{version}"] = auc(label, own["test"]["text_mean"], new)
    for version, score in scores.items():
        found |= {f"{version}": auc(label, score, known), f"new.{version}": auc(label, score, new)}
    for part, mask in (("", known), ("new.", new)):
        for other in ("frozen", "permuted"):
            if np.isfinite(found[f"{part}adapted"]):
                taught_score, its = (
                    [scores[v][mask].astype(np.float64)] for v in ("adapted", other)
                )
                truth = label[mask].astype(np.float64)
                gap = paired_difference("auc", truth, taught_score, its, person[mask])
                found |= {f"{part}less_{other}_{end}": getattr(gap, end) for end in ("low", "high")}
    return {key: value for key, value in found.items() if np.isfinite(value)}


def blended(facts: PreparedScenario, task: int, said: Mapping[str, Rows]) -> np.ndarray:
    """f64[N]: scores of test of a task, with the blend that pays on valid."""
    blend = blends_of(said["valid"], facts).get(facts.tasks[task])
    rows = said["test"]
    return Blend(**blend).of(said_of_task(rows, task)) if blend else rows["network"][:, task]


def auc(label: np.ndarray, score: np.ndarray, rows: np.ndarray) -> float:
    """AUC of some rows; NaN where there is none."""
    some = label[rows]
    if not len(some) or some.min() == some.max():
        return float("nan")
    return roc_auc(some, score[rows])


def measure(
    data: str, root: Path, folder: str, teaching: Teaching
) -> tuple[dict[str, float], list[Any]]:
    """Figures and rows of the table of one data set."""
    project = with_opinions(project_of(data, root / data, 0, quick=False))
    predict(project, folder)
    prepared = load_prepared(files.join(folder, f"{data}-0", "prepared"))
    places = {split: predictions_of(project, folder, split) for split in ("valid", "test")}
    at = Path(folder, project.run.name, "adapted")
    taught = {v: teach(project, prepared, v, teaching, at) for v in VERSIONS}
    figures = {f"{data}.recall.{v}": float(taught[v]["recall"]) for v in VERSIONS}
    figures |= {f"{data}.minutes.{v}": float(taught[v]["seconds"]) / 60 for v in VERSIONS[1:]}
    table = []
    for name, facts in prepared.scenarios.items():
        if not facts.main:
            continue
        said = {s: read_predictions(p, name, len(facts.tasks)) for s, p in places.items()}
        found = compare(prepared, facts, said, taught)
        figures |= {f"{name}.{facts.main}.{key}": value for key, value in found.items()}
        table.append({"data": data, "task": f"{name}.{facts.main}"} | cells(found))
    return figures, table


def cells(found: Mapping[str, float]) -> dict[str, str]:
    """A row of the table: AUC of all rows, then of new items."""
    told: dict[str, str] = {}
    for part, word in (("", "all"), ("new.", "new items")):
        told[f"{word}: rows"] = f"{found[f'{part}rows']:,.0f}"
        for version in ("without", *VERSIONS):
            value = found.get(f"{part}{version}")
            told[f"{word}: {version}"] = "-" if value is None else f"{value:.4f}"
        low, high = (found.get(f"{part}less_frozen_{end}") for end in ("low", "high"))
        told[f"{word}: adapted less frozen"] = (
            "-" if low is None or high is None else f"[{low:+.4f}, {high:+.4f}]"
        )
    return told


def main(
    steps: Annotated[int, typer.Option(help="Steps of teaching.")] = 150,
    layers: Annotated[int, typer.Option(help="Layers of the encoder that learn.")] = 2,
    out: Annotated[str | None, typer.Option(help="Where the JSON goes.")] = None,
    root: Annotated[str, typer.Option(help="Folder of the data sets.")] = "../shared/data",
    storage: Annotated[str, typer.Option(help="Folder of the runs, to go on with them.")] = "",
    data: Annotated[list[str] | None, typer.Option(help="Data sets; by default all.")] = None,
) -> None:
    """Teach the encoder by behaviour, and compare what its texts add."""
    torch.set_num_threads(1)
    folder, base = str(Path(storage or tempfile.mkdtemp()).resolve()), (TOP / root).resolve()
    figures: dict[str, float] = {}
    table: list[dict[str, Any]] = []
    for own in data or DATA:
        found, rows = measure(own, base, folder, Teaching(steps, layers))
        figures, table = figures | found, table + rows
        Console().print(markdown_table(rows), soft_wrap=True)
    write_result("adapted", figures, out, table=table, steps=steps, layers=layers)


if __name__ == "__main__":
    typer.run(main)
