"""The module that DDP wraps: texts to logits and to the retrieval side's losses."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import cast

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mtrec_ray.model.recommender import Recommender
from mtrec_ray.training.collectives import world
from mtrec_ray.training.item_vectors import Batch, ItemVectors
from mtrec_ray.training.retrieval_loss import (
    RETRIEVAL,
    Candidates,
    positives,
    retrieval_loss_sum,
)


class Forward(nn.Module):
    """Texts to logits, as one module, so that DDP sees every parameter of a step."""

    vectors: ItemVectors

    def __init__(self, model: Recommender, vectors: ItemVectors) -> None:
        super().__init__()
        self.model = model
        object.__setattr__(self, "vectors", vectors)

    def forward(
        self, batch: Batch, encode: bool, drawn: Mapping[str, Candidates] | None = None
    ) -> dict[str, Tensor]:
        """Returns logits f32[N, T] by scenario; with `encode` the encoder learns from it.

        With candidates the retrieval side's loss sums f32[] are `retrieval/NAME`.
        """
        vectors = self.vectors.of_batch(batch, encode=encode)
        sums: dict[str, Tensor] = {}
        for name, own in (drawn or {}).items():
            rows = positives(self.model.facts[name], batch[name])
            texts = vectors[name], self.vectors.of_items(name, own.items)
            sums[RETRIEVAL + name] = retrieval_loss_sum(self.model, name, rows, texts, own)
        return self.model(batch, vectors) | sums


def wrap(forward: Forward, *, some_unused: bool) -> nn.Module:
    """Returns the module, wrapped by DDP where there are several ranks."""
    if world()[1] == 1:
        return forward
    device = next(forward.parameters()).device
    if forward.vectors.gathered is not None:  # it sums the encoder's gradient itself
        names = {f"model.encoder.{n}" for n, _ in forward.model.encoder.named_parameters()}
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(forward, names)
    return DistributedDataParallel(
        forward,
        device_ids=[device] if device.type == "cuda" else None,
        find_unused_parameters=some_unused,
        forward_sync_buffers=False,  # they are constants of the data, the same on every rank
        gradient_as_bucket_view=True,
    )


def unwrapped(module: nn.Module) -> Forward:
    """Returns the module that DDP wraps, or itself."""
    inner = module.module if isinstance(module, DistributedDataParallel) else module
    assert isinstance(inner, Forward)
    return inner


def without_synchronisation(module: nn.Module) -> AbstractContextManager[object]:
    """Returns a context in which DDP leaves gradients on their rank."""
    if isinstance(module, DistributedDataParallel):
        return cast("DistributedDataParallel", module).no_sync()
    return nullcontext()
