"""What every benchmark shares: where a result came from, and how it is written."""

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

TOP = Path(__file__).parent.parent
RESULTS = TOP / "benchmarks" / "results"
PACKAGES = (
    "torch",
    "ray",
    "transformers",
    "peft",
    "pyarrow",
    "numpy",
    "scikit-learn",
    "lightgbm",
    "faiss-cpu",
    "polars",
)


def provenance() -> dict[str, Any]:
    """Command, versions, machine, commit and date of a result."""
    return {
        "command": command(),
        "versions": {"python": platform.python_version()} | versions(),
        "cores": os.cpu_count(),
        "processor": processor(),
        "commit": git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--short") else ""),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def command() -> str:
    """The command line, without the folders of this machine (`--storage`, `--out`, `--root`)."""
    line = " ".join([f"python -m benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
    return re.sub(r" --(storage|out|root)[ =]\S+", "", line)


def versions() -> dict[str, str]:
    """Installed versions of the packages that a result depends on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """Name of the processor, with those of its instruction sets that decide bf16 speed."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    model = next((line for line in text.splitlines() if line.startswith("model name")), "")
    flags = [f for f in ("avx512_bf16", "amx_bf16") if f in text]
    return " ".join([model.partition(":")[2].strip() or platform.processor(), *flags])


def git(*words: str) -> str:
    """Output of a git command in the project; empty outside a checkout."""
    found = subprocess.run(["git", *words], cwd=TOP, capture_output=True, text=True, check=False)
    return found.stdout.strip()


def write_result(
    name: str, figures: Mapping[str, float], out: str | None, **more: object
) -> dict[str, Any]:
    """Write a result to `out`, by default `benchmarks/results/NAME.json`; returns it."""
    result = {"figures": dict(figures), **more, **provenance()}
    path = Path(out) if out else RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({"benchmark": name, "out": str(path), "figures": dict(figures)}))
    return result
