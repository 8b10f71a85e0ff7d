"""The section `training.weighting`: how the weights of losses move while a model trains."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from mtrec_ray.project.base import Section

Method = Literal[
    "fixed",
    "random",  # 2111.10603
    "uncertainty",  # 1705.07115
    "dwa",  # 1803.10704
    "geometric",  # 1904.08492
    "famo",  # 2306.03792
    "tchebycheff",  # 2402.19078
    "gradnorm",  # 1711.02257
    "upgrad",  # 2406.16232
    "pcgrad",  # 2001.06782
    "cagrad",  # 2110.14048
    "mgda",  # 1810.04650
    "nash",  # 2202.01017
    "aligned",  # 2305.19000
]


# What methods of torchjd need: the extra `weighting`.
PACKAGES = {
    "upgrad": ("torchjd", "qpsolvers", "quadprog"),
    "pcgrad": ("torchjd",),
    "cagrad": ("torchjd", "cvxpy", "clarabel"),
    "mgda": ("torchjd",),
    "aligned": ("torchjd",),
}
# Methods that read the gradient of each loss at the first weight that all scenarios share.
OF_GRADIENTS = ("gradnorm", "nash", *PACKAGES)


# Methods whose weights do not rest on those of the project file, or only at the start.
FREE = ("nash", "gradnorm", "famo")


class Weighting(Section):
    """Weights of losses that follow from losses or gradients, times those of the project file."""

    method: Method = Field(
        default="fixed",
        description="fixed: the weights of the project file. The others multiply these, step by "
        "step; nash, gradnorm and famo end with weights of their own. Those by torchjd need the "
        "extra `weighting`.",
    )
    by: Literal["scenarios", "tasks"] = Field(
        default="scenarios",
        description="What has a weight of its own: each scenario, or each task of each.",
    )
    lr: PositiveFloat = Field(
        default=0.025,
        description="Learning rate (Adam) of the weights of uncertainty, famo and gradnorm.",
    )
    temperature: PositiveFloat | None = Field(
        default=None,
        description="Of the softmax of dwa, null: 2; mu of tchebycheff, null: 1, and the lower the "
        "more the worst loss counts.",
    )
    alpha: Annotated[float, Field(ge=0)] = Field(
        default=1.5, description="How much gradnorm favours losses that fall slowly."
    )
    c: Annotated[float, Field(ge=0)] = Field(
        default=0.4, description="How far cagrad may leave the mean gradient, over its norm."
    )
    every: PositiveInt | None = Field(
        default=None,
        description="Steps between two looks at losses (dwa) or gradients. null: 1, of dwa a tenth "
        "of an epoch.",
    )

    @property
    def reads_gradients(self) -> bool:
        """Whether the method reads gradients."""
        return self.method in OF_GRADIENTS

    @property
    def own_temperature(self) -> float:
        """The temperature, or that of the method's paper."""
        return self.temperature or (2.0 if self.method == "dwa" else 1.0)

    def single(self, num_scenarios: int, num_tasks: int) -> Iterator[str]:
        """Yields a line for weights of one loss alone."""
        number = num_scenarios if self.by == "scenarios" else num_tasks
        if self.method != "fixed" and number < 2:
            yield (
                f"training.weighting.by: found {self.by}, of which there is one; allowed: "
                f"method fixed, or two {self.by} or more"
            )
