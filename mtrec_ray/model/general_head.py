"""A head for the main task of any scenario, also of one that training has never seen.

It reads only what every scenario has and what means the same everywhere: how like the candidate is
to the history (kernels of cosines of text vectors, `model/interest.py`), and past counts and rates
of the item and the user, each standardised and ranked among the scenario's own training rows. Its
inputs are cut off from the gradient and its loss is apart, so that the joint model is the same
with and without it.

Letters: N samples, K kernels, G common columns.
"""

import torch
from torch import Tensor, nn

from mtrec_ray.data.prepared import PreparedScenario
from mtrec_ray.model.history import NUM_KERNELS
from mtrec_ray.model.numeric import NumericInputs

HIDDEN = 64


COMMON = (
    "item.log_count", "item.log_known.{task}", "item.rate.{task}",
    "user.log_count", "user.log_known.{task}", "user.rate.{task}",
)  # fmt: skip


def common_columns(facts: PreparedScenario) -> list[int]:
    """Places of the common columns among a scenario's numeric ones, -1 where it has none."""
    names = [name.format(task=facts.main) for name in COMMON]
    return [facts.numeric_names.index(n) if n in facts.numeric_names else -1 for n in names]


class GeneralHead(nn.Module):
    """One logit for a scenario's main task, around the logit of its training base rate."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4 * NUM_KERNELS + 2 * len(COMMON), HIDDEN), nn.GELU(), nn.Linear(HIDDEN, 1)
        )
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(
        self, similarity: Tensor, columns: NumericInputs, numeric: Tensor, places: list[int]
    ) -> Tensor:
        """f32[N] from closeness f32[N, 4 K] and a scenario's numeric columns f32[N, F]."""
        known = torch.tensor([p for p in places if p >= 0], device=numeric.device)
        encodings = numeric.new_zeros(len(numeric), 2, len(places))
        if len(known):
            where = [i for i, p in enumerate(places) if p >= 0]
            found = columns.some_encodings(numeric[:, known], known)
            encodings[:, :, where] = found.view(len(numeric), 2, len(known)).to(encodings)
        inputs = torch.cat([similarity.detach(), encodings.flatten(1)], 1)
        return self.layers(inputs).squeeze(1)
