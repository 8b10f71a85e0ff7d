"""Numbers of a run that follow from the project and the data."""

from dataclasses import dataclass

from mtrec_ray.data.shards import Prepared
from mtrec_ray.learning.feed import quotas
from mtrec_ray.schema import Project


@dataclass
class Plan:
    """Numbers of a run that follow from the project and the data."""

    quotas: dict[str, int]
    steps_per_epoch: int
    num_steps: int
    sampling_shares: dict[str, float]
    loss_shares: dict[str, float]


def make_plan(project: Project, prepared: Prepared, world_size: int) -> Plan:
    """Quotas of a rank's micro-batch and steps of an epoch.

    An epoch is `rows_per_epoch` rows (default: as many as there are training rows) over the
    global batch; scenarios pass at their own pace within it.
    """
    options = project.training
    rows = {n: f.num_rows("train") for n, f in prepared.scenarios.items()}
    own = quotas(rows, options.batch_size // (world_size * options.accumulation), options.alpha)
    real_batch = sum(own.values()) * world_size * options.accumulation
    steps = max(-(-(options.rows_per_epoch or sum(rows.values())) // real_batch), 1)
    total = sum(s.weight for s in project.scenarios.values())
    return Plan(
        quotas=own,
        steps_per_epoch=steps,
        num_steps=steps * options.epochs,
        sampling_shares={n: q / sum(own.values()) for n, q in own.items()},
        loss_shares={n: s.weight / total for n, s in project.scenarios.items()},
    )
