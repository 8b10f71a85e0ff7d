"""Batches that hold every scenario, composed from one endless stream a scenario."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from mtrec_ray.data.shards import Arrays

# A pass: the rows of this rank in a fixed order for the pass's number.
OpenPass = Callable[[int], Iterator[Arrays]]

WINDOW_ROWS = 65_536


@dataclass
class Position:
    """Where a stream stands: passes finished and rows of the present pass that were taken."""

    passes: int = 0
    rows: int = 0


class Stream:
    """The rows of one scenario on this rank, pass after pass, shuffled in windows by seed."""

    def __init__(self, open_pass: OpenPass, seed: int, start: Position | None = None) -> None:
        self.open_pass = open_pass
        self.seed = seed
        self.position = start or Position()
        self.rows_of_pass: int | None = None
        self._start = Position(self.position.passes, self.position.rows)
        self._rest: Arrays | None = None
        self._windows = self._endless()

    def take(self, num_rows: int) -> Arrays:
        """The next rows; a pass that ends runs into the next."""
        parts: list[Arrays] = []
        missing = num_rows
        while missing:
            rest = self._rest if self._rest is not None else next(self._windows)
            have = len(rest["row"])
            parts.append({k: v[:missing] for k, v in rest.items()})
            self._rest = {k: v[missing:] for k, v in rest.items()} if have > missing else None
            taken = min(have, missing)
            missing -= taken
            self.position.rows += taken
        return concatenate(parts)

    def _endless(self) -> Iterator[Arrays]:
        self.position = Position(self._start.passes, 0)
        skip = self._start.rows
        while True:
            passed = 0
            for number, window in enumerate(windows(self.open_pass(self.position.passes))):
                size = len(window["row"])
                passed += size
                if skip >= size:
                    skip -= size
                    self.position.rows += size
                    continue
                rng = np.random.default_rng([self.seed, self.position.passes, number])
                order = rng.permutation(size)[skip:]
                self.position.rows += skip
                skip = 0
                yield {k: v[order] for k, v in window.items()}
            if not passed:
                raise RuntimeError("a scenario's stream has no rows on this rank")
            self.rows_of_pass = passed
            self.position = Position(self.position.passes + 1, 0)


def windows(batches: Iterator[Arrays], size: int = WINDOW_ROWS) -> Iterator[Arrays]:
    """Batches joined into windows of at least `size` rows; the last may be smaller."""
    held: list[Arrays] = []
    rows = 0
    for batch in batches:
        held.append(batch)
        rows += len(batch["row"])
        if rows >= size:
            yield concatenate(held)
            held, rows = [], 0
    if rows:
        yield concatenate(held)


def concatenate(parts: list[Arrays]) -> Arrays:
    """Rows of several parts, one after another."""
    if len(parts) == 1:
        return parts[0]
    return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}


def quotas(rows: Mapping[str, int], batch_rows: int, alpha: float) -> dict[str, int]:
    """Rows of each scenario in a batch: shares proportional to n^alpha, at least one row each.

    Largest remainders make the sum exact.

    Raises:
        ValueError: fewer rows than scenarios.
    """
    if batch_rows < len(rows):
        raise ValueError(
            f"training.batch_size: found {batch_rows} rows for each worker's step; "
            f"allowed: at least {len(rows)}, one a scenario"
        )
    weight = np.array([float(n) ** alpha for n in rows.values()])
    least = np.zeros(len(weight), bool)  # those whose share is below one row
    exact = weight * batch_rows / weight.sum()
    while (exact < 1).any():
        least |= exact < 1
        rest = np.where(least, 0.0, weight)
        exact = rest * (batch_rows - least.sum()) / max(rest.sum(), 1.0)
        exact[least] = 1
    whole = np.floor(exact).astype(int)
    order = np.argsort(-(exact - whole), kind="stable")
    whole[order[: batch_rows - int(whole.sum())]] += 1
    return dict(zip(rows, whole.tolist(), strict=True))
