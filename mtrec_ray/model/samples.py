"""Samples of a scenario as tensors on the training device.

Letters: N samples, U distinct items, H history items, F numeric columns, C categories, T tasks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from mtrec_ray.data.given_profiles import GivenProfiles
from mtrec_ray.data.shards import OUTCOME, SEVERAL, WEIGHT


@dataclass
class Samples:
    """Samples of one scenario on the training device.

    Attributes:
        items: i64[U], the distinct catalogue rows that the samples refer to.
        candidate: i64[N], indices in `items`.
        history: i64[N, H], indices in `items`, -1 where there is none.
        ages: i64[N, H].
        user: i64[N], vocabulary numbers. person: i64[N], hashes of the users' ids.
        moment: i64[N], when the samples happened, in ms.
        several: i64[N, S], codes of columns with several values, side by side, then zeros.
        numeric: f32[N, F]. categorical: i64[N, C]. labels: f32[N, T], NaN unknown.
        outcomes: i64[N, H], what came of the history's items (`data/outcomes.py`); 0 where the data
            does not tell.
        weights: f32[N], of rows in the losses of the tasks; 1 where the data has none.
        given: profiles that the users bring along; None in training, as there are none.
    """

    items: Tensor
    candidate: Tensor
    history: Tensor
    ages: Tensor
    outcomes: Tensor
    user: Tensor
    person: Tensor
    moment: Tensor
    numeric: Tensor
    categorical: Tensor
    labels: Tensor
    weights: Tensor
    several: Tensor
    given: GivenProfiles | None = None

    @property
    def candidate_items(self) -> Tensor:
        """i64[N]: the candidates as catalogue rows."""
        return self.items[self.candidate]

    @property
    def history_items(self) -> Tensor:
        """i64[N, H]: the histories as catalogue rows, -1 where there is none."""
        known = self.history >= 0
        return torch.where(known, self.items[self.history.clamp(min=0)], self.history)

    def some(self, rows: Tensor) -> "Samples":
        """Returns the samples that `rows` i64[M] name, which refer to the same distinct items."""
        names = [f.name for f in fields(self) if f.name not in ("items", "given")]
        given = self.given and self.given.take(rows.cpu().numpy())
        return replace(self, given=given, **{name: getattr(self, name)[rows] for name in names})

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray], device: torch.device | str = "cpu") -> "Samples":
        """Returns samples of prepared arrays, which refer to distinct items."""
        rows = np.concatenate([arrays["item"][:, None], arrays["history"]], 1)
        distinct, index = np.unique(rows, return_inverse=True)
        shift = int(distinct[0] < 0)  # -1, no item, comes first
        index = index.reshape(rows.shape).astype(np.int64) - shift

        def put(values: np.ndarray, dtype: type) -> Tensor:
            owned = np.array(values, dtype, order="C")  # not a view of the arrays' memory
            return torch.from_numpy(owned).to(device)

        return cls(
            items=put(distinct[shift:], np.int64),
            candidate=put(index[:, 0], np.int64),
            history=put(index[:, 1:], np.int64),
            ages=put(arrays["history_age"], np.int64),
            outcomes=put(arrays.get(OUTCOME, np.zeros_like(arrays["history"])), np.int64),
            user=put(arrays["user"], np.int64),
            person=put(arrays["person"], np.int64),
            moment=put(arrays["time"], np.int64),
            numeric=put(arrays["numeric"], np.float32),
            categorical=put(arrays["categorical"], np.int64),
            labels=put(arrays["labels"], np.float32),
            weights=put(arrays.get(WEIGHT, np.ones(len(rows))), np.float32),
            several=put(arrays.get(SEVERAL, np.zeros((len(rows), 0))), np.int64),
        )
