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
        "Test was scored twice: a first table showed weak tasks and prompted more statistics, "
        "which were then kept for their gain on valid. One seed, one joint model, "
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


BLOCKS = {"quickstart": quickstart_block, "real4": real4_block}


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
