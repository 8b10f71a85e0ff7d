"""A head for the main task of any scenario, also of one that training has never seen.

It reads only what every scenario has and what means the same everywhere: how similar the candidate
is to the history (kernels of cosines of text vectors, `model/history.py`), and past counts and
rates of the item and the user, each standardised and ranked among the scenario's own training rows.
What the model's options hide (`text`, `history`, `statistics`) is hidden from it, too. Its inputs
carry no gradient and its loss stands apart, so that it does not change the joint model.

Letters: N samples, K kernels, F numeric columns, G of them common to scenarios.
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
    """Returns the indices of the common columns among a scenario's numeric ones, -1 for none."""
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
        self, similarity: Tensor, columns: NumericInputs, numeric: Tensor, common: list[int]
    ) -> Tensor:
        """Returns f32[N] for similarity kernels f32[N, 4 K] and numeric columns f32[N, F].

        `common` are the indices of the G common columns among the F, -1 where there is none.
        """
        present = torch.tensor([c for c in common if c >= 0], device=numeric.device)
        encodings = numeric.new_zeros(len(numeric), 2, len(common))
        if len(present):
            where = [i for i, c in enumerate(common) if c >= 0]
            part = columns.some_encodings(numeric[:, present], present)
            encodings[:, :, where] = part.view(len(numeric), 2, len(present)).to(encodings)
        inputs = torch.cat([similarity.detach(), encodings.flatten(1)], 1)
        return self.layers(inputs).squeeze(1)
