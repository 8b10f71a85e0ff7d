"""Ready vectors of items or users as the network reads them: mapped to its width, and compared.

Letters: n rows of a table, m of them, D length of a column's vectors, W width, N samples, U
distinct items, B users, C candidates of each, H history items, K similarity kernels.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from mtrec_ray.model.history import NUM_KERNELS, cosines, similarity_kernels
from mtrec_ray.model.layers import shallow
from mtrec_ray.model.samples import Samples

# Vectors are moved to a GPU up to this size; above, each step takes its own from the file.
MAX_DEVICE_BYTES = 2 * 2**30


class ReadyVectors(nn.Module):
    """A linear map of a column's vectors; a row without one has a vector that is learned.

    The vectors are no buffer: a checkpoint does not hold them, and DDP, which writes the buffers
    of its ranks, would give each a copy of what they map from one file.
    """

    def __init__(self, values: NDArray[np.float16], width: int) -> None:
        """`values` f16[n, D]: standardised, NaN where there is none."""
        super().__init__()
        self.values = torch.from_numpy(values)
        self.project = nn.Linear(values.shape[1], width, bias=False)
        self.absent = nn.Parameter(torch.zeros(width))

    def with_rows(self, rows: Tensor, more: NDArray[np.float16]) -> "ReadyVectors":
        """Returns the same map over some rows i64[m], and those of `more` after them."""
        twin = shallow(self)
        assert isinstance(twin, ReadyVectors)
        kept = self.values[rows.to(self.values.device)]
        twin.values = torch.cat([kept, torch.from_numpy(more).to(kept)])
        return twin

    def of(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Returns f32[m, D] of rows i64[m], zeros where there is none, and bool[m], who has one."""
        if self.values.device != rows.device and self.values.nbytes <= MAX_DEVICE_BYTES:
            self.values = self.values.to(rows.device)
        found = self.values[rows.to(self.values.device)].to(rows.device).float()
        return found.nan_to_num(0.0), ~found[:, 0].isnan()

    def forward(self, rows: Tensor) -> Tensor:
        """Returns f32[m, W] of rows i64[m]."""
        found, known = self.of(rows)
        return torch.where(known.unsqueeze(1), self.project(found), self.absent)


def ready_vectors(columns: Sequence[NDArray[np.float16]], width: int) -> nn.ModuleList:
    """Returns the maps of columns of vectors; the random numbers of others stay the same."""
    with torch.random.fork_rng([]):
        return nn.ModuleList(ReadyVectors(values, width) for values in columns)


class VectorLikeness(nn.Module):
    """Linear maps of how like a candidate's vectors those of the history's items are.

    By the cosines of each column, as of texts (`similarity_kernels`). An item without a vector is
    like nothing.
    """

    def __init__(self, num_columns: int, width: int) -> None:
        super().__init__()
        with torch.random.fork_rng([]):  # the others' random numbers stay the same
            self.maps = nn.ModuleList(
                nn.Linear(4 * NUM_KERNELS, width, bias=False) for _ in range(num_columns)
            )

    def of_samples(self, columns: nn.ModuleList, samples: Samples, seen: Tensor) -> list[Tensor]:
        """Returns f32[N, W] by column; `seen` bool[N, H] are history items that the model sees."""
        history, found = samples.history.clamp(min=0), []
        for own, to_width in self._pairs(columns):
            vectors, known = own.of(samples.items)
            mask = seen & known[history] & known[samples.candidate].unsqueeze(1)
            cosine = cosines(vectors, samples.candidate, history)
            found.append(to_width(similarity_kernels(cosine, mask)))
        return found

    def of_pairs(
        self, columns: nn.ModuleList, items: Tensor, history: Tensor, seen: Tensor
    ) -> list[Tensor]:
        """Returns f32[B, C, W] by column, of candidates i64[B, C] and histories [B, H] of users.

        Equal to `of_samples` of all pairs, `seen` bool[B, H].
        """
        (met, place), (old, at) = (rows.unique(return_inverse=True) for rows in (items, history))
        found = []
        for own, to_width in self._pairs(columns):
            (candidates, has), (past, had) = own.of(met), own.of(old)
            unit, past_unit = F.normalize(candidates, dim=-1), F.normalize(past, dim=-1)
            cosine = torch.einsum("bcd,bhd->bch", unit[place], past_unit[at])
            mask = (seen & had[at]).unsqueeze(1) & has[place].unsqueeze(2)
            kernels = similarity_kernels(cosine.flatten(0, 1), mask.flatten(0, 1))
            found.append(to_width(kernels).unflatten(0, items.shape))
        return found

    def _pairs(self, columns: nn.ModuleList) -> Iterator[tuple[ReadyVectors, nn.Module]]:
        for own, to_width in zip(columns, self.maps, strict=True):
            assert isinstance(own, ReadyVectors)
            yield own, to_width
