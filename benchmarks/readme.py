"""The README's tables from `benchmarks/results`: `python -m benchmarks.readme` renews them."""

import json
import re
from typing import Any

from benchmarks.common import RESULTS, TOP
from mtrec_ray.report.tables import markdown_table

README = TOP / "README.md"
LEGEND = (
    "Test AUC (GAUC in brackets), higher is better; `video.rating` and `books.score`: RMSE, lower "
    "is better. Bold: ahead of every baseline. Baselines, computed apart from this project: B0 the "
    "item's smoothed past rate; B1 LightGBM on past counts and rates; B2 a network on statistics "
    "and ids; B3 and B4 the same two with frozen MiniLM features."
)


def real4_block(result: dict[str, Any]) -> str:
    """The table of real4 with what it took."""
    figures = result["figures"]
    return (
        f"{markdown_table(result['table'])}\n\n{LEGEND} "
        "Test was scored three times: a first table showed weak tasks and prompted more "
        "statistics, which were then kept for their gain on valid; the third is a faster build of "
        "the same model, about which nothing was chosen. One seed, one joint model, "
        f"ahead of B0 on {figures['tasks_ahead_of_b0']:.0f} and of the best baseline on "
        f"{figures['tasks_ahead']:.0f} of {figures['tasks_total']:.0f} tasks; "
        f"{figures['seconds'] / 60:.0f} minutes on {result['cores']} cores "
        f"({result['processor']}). `{result['command']}` makes it again."
    )


def quickstart_block(result: dict[str, Any]) -> str:
    """The table of the quickstart with what it took."""
    return (
        f"{markdown_table(result['table'])}\n\n"
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
        f"{result['cores']} cores ({result['processor']}); `frozen` is no training of the encoder. "
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
    sooner = ", ".join(
        f"{figures[f'{name}.speedup_at_equal_auc']:,.0f} times sooner on {name}"
        for name in ("video", "books")
    )
    return (
        f"{markdown_table(result['table'])}\n\n"
        "![AUC on valid against training time](benchmarks/results/quality_speed.png)\n\n"
        "Two real scenarios, each alone, one thread; AUC on valid, mean of the binary tasks, best "
        "point of each run, mean over seeds and spread (largest less smallest). `text_*` has no "
        "statistics and no ids: it knows what the plain way knows, and reaches the plain way's "
        f"best AUC {sooner}. The plain way was run once, on few rows, and judged on 2,048 rows of "
        f"valid. `{result['command']}` makes it again."
    )


def inference_block(result: dict[str, Any]) -> str:
    """Precisions of prediction."""
    return (
        f"{markdown_table(result['table'])}\n\n"
        f"real4, all rows of valid, {result['cores']} cores; `{result['command']}` makes it again."
    )


BLOCKS = {
    "quickstart": quickstart_block,
    "real4": real4_block,
    "encoder": encoder_block,
    "quality_speed": quality_speed_block,
    "inference": inference_block,
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
