"""The README's tables from `benchmarks/results`: `python -m benchmarks.readme` renews them."""

import json
import re
from typing import Any

from benchmarks.common import RESULTS, TOP
from mtrec_ray.report.tables import markdown_table

README = TOP / "README.md"
SWEEP_TRIALS = 16
RMSE_TASKS = ("video.rating", "books.score")
LEGEND = (
    "Test AUC (GAUC in brackets), higher is better; `video.rating` and `books.score`: RMSE, lower "
    "is better. **Bold: ahead of every other model here.** B0-B4: the best of the reference "
    "baselines that were computed apart from this project on the same rows (LightGBM and networks, "
    "with and without frozen text)."
)
OURS = (
    " On exactly the prepared rows: the network without text and without statistics, item "
    "popularity, LightGBM on the prepared statistics, and with frozen MiniLM features. The last "
    "column is the joint model less the best of these, with a 95 % interval (paired bootstrap over "
    "users)."
)
LOOKED = (
    "Everything was chosen on valid. Test was not blind: it was scored three times with an earlier "
    "model, whose first table showed weak tasks and prompted more statistics (kept for their gain "
    "on valid), once with LightGBM on the present statistics, three times with one seed of models "
    "before this, which were behind on shop and news (bins, weights, ranges of columns and the "
    "teacher followed, chosen on valid), and twice with the present one: with one seed, and for "
    "this table; and by quick runs on fewer rows, from which nothing was chosen."
)


def behind(result: dict[str, Any]) -> str:
    """Where the joint model is not ahead, and why."""
    figures, rows = result["figures"], result["table"]
    if not result["seeds"]:
        return ""
    surely = {"ahead": 0, "behind": 0}
    for task in (row["task"] for row in rows):
        low, high = figures[f"{task}.gap_low"], figures[f"{task}.gap_high"]
        if f"{task}.rmse" in figures:
            low, high = -high, -low
        surely["ahead"] += low > 0
        surely["behind"] += high < 0
    binary = sum(f"{row['task']}.auc" in figures for row in rows)
    return (
        f"In GAUC it is ahead of all on {figures['tasks_ahead_gauc']:.0f} of {binary}. "
        f"Against the best of ours the interval excludes zero on {surely['ahead']} tasks where it "
        f"is ahead and on {surely['behind']} where it is behind: on video and `news.read` the "
        "network and LightGBM with text on the same statistics cannot be told apart. Where B0 to "
        "B4 are ahead, the four small tasks of news (2,507 test rows, 60 to 340 positives), their "
        "statistics knew of likes, bookmarks, follows and comments from their own second in the "
        "raw log on; here a label enters statistics 31 days later, when its window has closed: "
        "LightGBM on our rows loses as much. "
    )


def real4_block(result: dict[str, Any]) -> str:
    """The table of real4, joint against each scenario alone, and what it took."""
    figures, rows = result["figures"], result["table"]
    single = ("alone", "joint less alone")
    table = markdown_table([{k: v for k, v in row.items() if k not in single} for row in rows])
    text = (
        f"{table}\n\n{LEGEND}{OURS if result['seeds'] else ''} "
        f"Seeds: {result['seeds'] or 1}. "
        f"Ahead of all on {figures['tasks_ahead']:.0f} of "
        f"{figures['tasks_total']:.0f} tasks, of the best of B0 to B4 on "
        f"{figures['tasks_ahead_of_reference']:.0f}. {behind(result)}{LOOKED} "
        f"{figures['seconds'] / 60:.0f} "
        f"minutes on {result['cores']} cores ({result['processor']}), of which the joint model's "
        f"pipeline {figures['pipeline_seconds'] / 60:.0f}; `{result['command']}` makes it again."
    )
    text += (
        "\n\nThe first seed on rows of known and of new users and items (number of rows), with its "
        f"calibration:\n\n{markdown_table(result['slices'])}"
    )
    if "alone" not in rows[0]:
        return text
    last = [curve[-1] for curve in result["gradient_cosine"].values()]
    cosines = ", ".join(
        f"{pair.replace('/', ' and ')} {sum(c[pair] for c in last) / len(last):+.2f}"
        for pair in last[0]
    )
    shared = markdown_table([{k: row[k] for k in ("task", "joint", *single)} for row in rows])
    return (
        f"{text}\n\nWho gains from sharing, and who is harmed: the same model trained on each "
        "scenario alone, with as many steps and as many of its rows. Joint is ahead on "
        f"{figures['tasks_ahead_of_alone']:.0f} tasks:\n\n{shared}\n\n"
        "Cosine of the scenarios' gradients at the first shared weight after the last epoch (below "
        f"0 they conflict): {cosines}. All epochs are in `benchmarks/results/real4.json`."
    )


def ablation_block(result: dict[str, Any]) -> str:
    """What each part of the model brings."""
    return (
        f"{markdown_table(result['table'])}\n\n"
        "NE on valid (log-loss over that of the training rate, RMSE over that of the mean; lower "
        "is better), mean over a scenario's tasks and two seeds of 300,000 rows (from `frozen, "
        "short` on 80,000); in brackets the difference to `frozen`, from `top_1` on to `frozen, "
        "short`; for `first task only` of that task. The seeds differ by less than 0.004 in most "
        "cells, and by up to 0.03 on news, whose small tasks have few labels. Past counts and "
        "rates carry most; text, history, bins and the teacher each add to them. Embeddings of "
        "ids add nothing: they are off by default. Layers of the encoder that learn add nothing "
        "at this budget. `mmoe`, `ple` and `pepnet` gain on three scenarios and lose on news, for "
        "up to 1.8 times the time: the default is the shared bottom. Equal weights are better on "
        "news than those of `real4.yaml`, which were chosen on valid with more rows and an "
        "earlier model. "
        f"`{result['command']}` makes it again."
    )


def quickstart_block(result: dict[str, Any]) -> str:
    """The tables of the quickstart with what it took."""
    figures = result["figures"]
    ranked = [
        {
            "scenario": name,
            **{
                f"{metric}@20 {model}": f"{figures[f'{name}.{metric}.{model}']:.4f}"
                for metric in ("recall", "ndcg")
                for model in ("model", "popularity", "neighbours")
            },
        }
        for name in dict.fromkeys(row["scenario"] for row in result["table"])
    ]
    return (
        f"{markdown_table(result['table'])}\n\n"
        "The first task's positives of test among all items of the catalogue, beside popularity "
        "and nearest neighbours of the history by frozen text vectors:\n\n"
        f"{markdown_table(ranked)}\n\n"
        f"{result['figures']['seconds'] / 60:.1f} minutes on {result['cores']} cores; "
        f"`{result['command']}` makes it again."
    )


def encoder_block(result: dict[str, Any]) -> str:
    """Rows/s of the variants on the base cell, scaling over workers, and what was not run."""
    figures = result["figures"]
    first = result["table"][0]
    same = ("items", "history", "precision")
    base = [row for row in result["table"] if all(row[k] == first[k] for k in same)]
    shown = [{k: v for k, v in row.items() if k not in same} for row in base]
    return (
        f"{markdown_table(shown)}\n\n"
        f"{first['items']} items, history {first['history']}, {first['precision']}, "
        f"{result['cores']} cores ({result['processor']}); what each variant is stands at the "
        "head of `benchmarks/encoder.py`, `frozen` is no training of the encoder. "
        f"The fastest that trains it, `{result['best']}`, is {figures['speedup']:,.0f} times the "
        "plain way (a cross encoder in a Hugging Face `Trainer`, padded to 128 tokens). "
        f"`{result['command']}` makes it again, with other catalogues, histories and fp32.\n\n"
        f"Two workers of one thread did {figures['scaling.two_over_one']:.2f} times the rows/s of "
        f"one (gloo, {figures['scaling.all_reduce_bytes'] / 1e6:.1f} MB a step). For GPUs there is "
        "only a calculation from these bytes (25 GB/s a GPU, 4,096 rows a GPU and step of 20 ms "
        "assumed); nothing was run on one:\n\n"
        f"{markdown_table(result['clusters'])}"
    )


def quality_speed_block(result: dict[str, Any]) -> str:
    """What each way of training reaches, and how much sooner than the plain way."""
    figures = result["figures"]
    sooner, whole = (
        " and ".join(
            f"{figures[f'{name}{key}.speedup_at_equal_auc']:,.0f} times sooner on {name}"
            for name in ("video", "books")
        )
        for key in ("", ".carry_8")
    )
    return (
        f"{markdown_table(result['table'])}\n\n"
        "![AUC on valid against training time](benchmarks/results/quality_speed.png)\n\n"
        "Two real scenarios, each alone, one thread; AUC on valid, mean of the binary tasks, best "
        "point of each run, mean over seeds and spread (largest less smallest). `text_*` has no "
        "statistics and no ids: it knows what the plain way knows, and reaches the plain way's "
        f"best AUC {sooner}; the whole model with the encoder learning (`carry_8`) {whole}. At "
        "this budget layers of the encoder that learn add nothing that the spread of three seeds "
        "would show, and `carry_8` costs least of them: it is the default. The plain way was run "
        "once, on few rows, and judged on 2,048 rows of valid. "
        f"`{result['command']}` makes it again."
    )


def inference_block(result: dict[str, Any]) -> str:
    """Precisions of prediction."""
    return (
        f"{markdown_table(result['table'])}\n\n"
        f"real4, all rows of valid, {result['cores']} cores; `{result['command']}` makes it again."
    )


def faults_block(result: dict[str, Any]) -> str:
    """What each fault cost."""
    difference = result["figures"]["weight_difference"]
    weights = (
        f"differ by at most {difference:.0e} of the largest"
        if difference
        else "are the same to the bit"
    )
    return (
        f"{markdown_table(result['table'])}\n\n"
        f"Every fault at a random step of a run of two workers, {len(result['runs'])} seed(s), a "
        "Ray of three nodes on one machine of two cores, on which other jobs ran; steps are the "
        "most, seconds the mean over seeds (checkpoint every 20 steps; the longest part is the "
        "start of Python processes). After a notice the ranks write a checkpoint and go on until "
        "the node is gone: those steps are made again. Rows are compared step by step with an "
        f"undisturbed run; the final weights {weights}. "
        f"`{result['command']}` makes it again."
    )


def ingest_block(result: dict[str, Any]) -> str:
    """Rows/s of both ways to feed, against plain loaders."""
    figures = result["figures"]
    table = [
        {
            "fed from": f"`cache: {kind}`",
            "rows/s": f"{figures[f'{kind}.rows_per_s']:,.0f}",
            "over DataLoader": f"{figures[f'{kind}.over_dataloader']:.1f}",
            "first batch": f"{figures[f'{kind}.first_batch_s']:.1f} s",
            "pause between passes": f"{1000 * figures[f'{kind}.pause_between_passes_s']:.0f} ms",
            "waiting in training": f"{figures[f'{kind}.data_wait_share']:.1%}",
        }
        for kind in ("object_store", "stream")
    ]
    return (
        f"{markdown_table(table)}\n\n"
        "One consumer, composed batches of three scenarios, "
        f"{figures['rows']:,.0f} rows a pass. A plain `DataLoader` over the same files does "
        f"{figures['dataloader_rows_per_s']:,.0f} rows/s where it shuffles shards as arrays, "
        f"{figures['dataloader_each_rows_per_s']:,.0f} row by row. Waiting: share of a training "
        "epoch with MiniLM (top layer) and two workers. "
        f"`{result['command']}` makes it again."
    )


def memory_block(result: dict[str, Any]) -> str:
    """Peak memory by size of the data."""
    figures = result["figures"]
    kinds = {"training worker": "workers", "reading task": "readers", "job": "driver"}
    table = [
        {
            "data": f"{times}x: {figures[f'{times}x.rows']:,.0f} rows, "
            f"{figures[f'{times}x.rows_mb']:.0f} MB",
            **{k: f"{figures[f'{times}x.{v}.peak_rss_mb']:,.0f} MB" for k, v in kinds.items()},
        }
        for times in (1, 4, 16)
    ]
    return (
        f"{markdown_table(table)}\n\n"
        "Peak resident memory of the largest process of each kind, while two workers stream with "
        f"an object store of {figures['store_mb']:.0f} MB, all sizes with as many steps (one pass "
        f"of the largest, sixteen of the smallest); largest over smallest: {figures['growth']:.2f}"
        f", without pages that processes share {figures['growth_private']:.2f}. The largest run's "
        f"last quarter took {figures['16x.drift']:.2f} of what its second took. "
        f"`{result['command']}` makes it again."
    )


def ray_cost_block(result: dict[str, Any]) -> str:
    """Ray Train against torchrun."""
    figures = result["figures"]
    table = [
        {
            "ranks": ranks,
            "Ray Train": f"{figures[f'{ranks}.ray_rows_per_s']:,.0f} rows/s",
            "`torchrun`": f"{figures[f'{ranks}.torchrun_rows_per_s']:,.0f} rows/s",
            "ratio": f"{figures[f'{ranks}.ray_over_torchrun']:.3f}",
            "of medians": f"{figures[f'{ranks}.ray_over_torchrun_median']:.3f}",
            "Ray's other processes": f"{figures[f'{ranks}.ray_cores']:.2f} cores",
            "first step": f"{figures[f'{ranks}.ray_start_s']:.0f} s, "
            f"{figures[f'{ranks}.torchrun_start_s']:.0f} s",
        }
        for ranks in ("1", "2")
    ]
    return (
        f"{markdown_table(table)}\n\n"
        "The same loop on the same rows in the same order, to the same losses: the fastest "
        f"epoch of three rounds in turns, {result['cores']} cores, one thread a rank. "
        "What Ray Train costs is the time of its other processes (raylet, control store, "
        "dashboard, actors), which does not grow with the ranks of a node. Where a core is free "
        "for them, nothing can be told from the machine's noise; two ranks on two cores leave none "
        "to them, and each waits for whatever holds up the other. "
        f"`{result['command']}` makes it again."
    )


def length(epochs: int, rows: int | None) -> str:
    """How long a run is."""
    return f"{epochs} epochs of {f'{rows:,} rows' if rows else 'all rows'}"


def tune_block(result: dict[str, Any]) -> str:
    """Own, uniform and chosen weights by scenario, and plots of the front."""
    figures, values = result["figures"], result["chosen"]["values"]
    named = ", ".join(f"`{f}` {v:.3g}" for f, v in values.items() if isinstance(v, int | float))
    fronts = [p for p in result["plots"] if "_front_" in p]
    pictures = " ".join(f"![{p}](benchmarks/results/{p})" for p in fronts)
    verdict = "on every seed" if figures["better_on_all_seeds"] else "not on every seed"
    trial = [a or b for a, b in zip(result["trial"], result["whole_run"], strict=True)]
    weighty = ", ".join(f"`{f}` {v:.2f}" for f, v in list(result["importance"].items())[:3])
    return (
        f"{markdown_table(result['table'])}\n\n{pictures}\n\n"
        f"{figures['trials']:.0f} trials ({figures['trials_stopped']:.0f} ended early, "
        f"{figures['trials_failed']:.0f} failed); scores are means of NE or relative RMSE, lower "
        f"is better; in the search on valid, of trials of {length(*trial)}; below, runs "
        f"of {length(*result['whole_run'])}, {result['seeds']} seeds, ± half of the spread. Chosen "
        f"by {result['chosen']['rule']}: {named}. On test it is better than uniform weights by "
        f"{figures['gain_on_test']:.4f} "
        f"({verdict}); what mattered in the search: {weighty} (importance). "
        f"{figures['seconds'] / 60:.1f} minutes on {result['cores']} cores; "
        f"`{result['command']}` makes it again."
    )


def sweep_block(result: dict[str, Any]) -> str:
    """What a search costs in full runs, with and without sharing and early stopping."""
    figures = result["figures"]
    return (
        f"{markdown_table(result['table'])}\n\n"
        f"The quickstart with half of its events, {result['cores']} cores; one full run of the "
        f"train stage, of {result['epochs']} epochs, took {figures['full_run.seconds']:.0f} s. "
        "Trials have as many epochs and rows: the fewer, the less there is to end early. "
        f"`plain` was measured for {figures['plain.trials']:.0f} trials, times "
        f"{SWEEP_TRIALS / figures['plain.trials']:.0f}. "
        f"The goal was 4 full runs, it is {figures['sweep_over_full_run']:.1f}. "
        f"`{result['command']}` makes it again."
    )


def fanout_block(result: dict[str, Any]) -> str:
    """Fine-tuning side by side against one after another, and what is stored."""
    figures = result["figures"]
    return (
        f"{figures['k']:.0f} scenarios fine-tuned side by side took "
        f"{figures['parallel_over_serial']:.2f} of the time that they took one after another "
        f"({figures['parallel_seconds']:.0f} and {figures['serial_seconds']:.0f} s; a logical CPU "
        f"for each, but {figures['cores']:.0f} cores: the gain is the waiting of one run behind "
        "the computing of another). Stored are the base once "
        f"({figures['base_megabytes']:.1f} MB, and the encoder that learned jointly as a plain one "
        f"that adapters load on, {figures['encoder_megabytes']:.1f} MB) and "
        f"{figures['delta_megabytes']:.2f} MB a scenario; {figures['k']:.0f} copies of the base "
        f"would be {figures['k'] * figures['base_megabytes']:.1f} MB. "
        f"`{result['command']}` makes it again."
    )


def surely(figures: dict[str, float], pair: str) -> str:
    """On how many tasks the first model of a pair is surely better than the second, and worse."""
    names = [n.removesuffix(f".{pair}.low") for n in figures if n.endswith(f".{pair}.low")]
    signs = {n: -1 if n in RMSE_TASKS else 1 for n in names}
    better = worse = 0
    for name, sign in signs.items():
        low, high = (sign * figures[f"{name}.{pair}.{end}"] for end in ("low", "high"))
        better += min(low, high) > 0
        worse += max(low, high) < 0
    return f"better on {better} of {len(names)} tasks and worse on {worse}"


def few_rows(figures: dict[str, float], shots: str) -> str:
    """On how many tasks joining is ahead of training alone with so many rows."""
    names = [n.removesuffix(f".joined_{shots}") for n in figures if n.endswith(f".joined_{shots}")]
    ahead = sum(
        (figures[f"{n}.joined_{shots}"] > figures[f"{n}.alone_{shots}"]) != (n in RMSE_TASKS)
        for n in names
    )
    return f"{ahead} of {len(names)}"


def joining_block(result: dict[str, Any]) -> str:
    """Joint, fine-tuned or alone; what a joint model is worth to a scenario that joins later."""
    figures = result["figures"]
    return (
        f"{markdown_table(result['three_ways'])}\n\n"
        "Test AUC, higher is better (`video.rating`, `books.score`: RMSE, lower is better), means "
        f"over {result['seeds']} seed(s); the fine-tuned model where it was trained, whatever was "
        "chosen on valid; alone with as many of its rows as joint training and fine-tuning took; "
        "differences with 95 % intervals (paired bootstrap over users), * where zero lies "
        f"outside. Surely, fine-tuned is {surely(figures, 'finetuned-joint')} than joint, "
        f"{surely(figures, 'finetuned-alone')} than alone; joint is "
        f"{surely(figures, 'joint-alone')} than alone: with this budget, these four scenarios, "
        "which have no users or items in common, do not gain from one network.\n\n"
        f"{markdown_table(result['curves'])}\n\n"
        "Joint training on the other three scenarios; this one joins with so many rows to learn "
        "from, against training alone with as many and as long (two epochs); one seed, no teacher. "
        "With 0 rows the general head ranks by the first binary task alone (0.5: all items are "
        f"equal). Joined is ahead with 64 rows on {few_rows(figures, '64')} tasks, with 1,024 on "
        f"{few_rows(figures, '1024')}, with all on {few_rows(figures, 'all')}. "
        "Joint training "
        f"took 2 epochs of {result['rows_per_epoch']:,} rows, a scenario's fine-tuning at most 3 "
        f"of {result['finetune_rows_per_epoch']:,}: less than `real4.yaml` asks for. "
        f"`{result['command']}` makes both again."
    )


BLOCKS = {
    "quickstart": quickstart_block,
    "real4": real4_block,
    "ablation": ablation_block,
    "encoder": encoder_block,
    "quality_speed": quality_speed_block,
    "inference": inference_block,
    "faults": faults_block,
    "ingest": ingest_block,
    "memory": memory_block,
    "ray_cost": ray_cost_block,
    "tune_quickstart": tune_block,
    "tune_real4": tune_block,
    "sweep": sweep_block,
    "fanout": fanout_block,
    "joining": joining_block,
}


def renewed(text: str) -> str:
    """The README's text with every block made from its result, where there is one."""
    for name, block in BLOCKS.items():
        path = RESULTS / f"{name}.json"
        if not path.exists():
            continue
        body = block(json.loads(path.read_text()))
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        text = re.sub(pattern, lambda m, b=body: f"{m[1]}{b}\n{m[2]}", text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    README.write_text(renewed(README.read_text()))
