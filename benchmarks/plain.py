"""The plain way: a cross encoder in a Hugging Face `Trainer`, as most would write it first.

The titles that a user had before and the candidate's text as one pair of sentences, padded to 128
tokens, the pretrained encoder with a linear head of one output a task, dropout on.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from mtrec_ray.data.tokens import load_tokenizer, resolve_source

MAX_LENGTH = 128


@dataclass(frozen=True)
class PlainRows(torch.utils.data.Dataset):
    """Rows of one scenario as text.

    Attributes:
        source: of the encoder and its tokenizer.
        texts: of the items.
        item: i64[N], history: i64[N, H], latest first, -1 none; labels: f32[N, T], NaN unknown.
    """

    source: str
    texts: Sequence[str]
    item: np.ndarray
    history: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.item)

    def __getitem__(self, i: int) -> dict[str, Any]:
        before = " [SEP] ".join(str(self.texts[h]) for h in self.history[i] if h >= 0)
        encoded = load_tokenizer(self.source)(
            before, self.texts[self.item[i]],
            truncation="longest_first", max_length=MAX_LENGTH, padding="max_length",
        )  # fmt: skip
        return {**encoded, "labels": self.labels[i]}


def masked_loss(kinds: Mapping[str, str]) -> Callable[..., Tensor]:
    """Mean over tasks of cross entropy or squared error, over the labels that are there."""

    def loss(outputs: Any, labels: Tensor, num_items_in_batch: object = None) -> Tensor:
        del num_items_in_batch
        parts = []
        for i, kind in enumerate(kinds.values()):
            known = labels[:, i].isfinite()
            if not known.any():
                continue
            own, wanted = outputs.logits[known, i].float(), labels[known, i]
            of = F.mse_loss if kind == "regression" else F.binary_cross_entropy_with_logits
            parts.append(of(own, wanted))
        return torch.stack(parts).mean() if parts else outputs.logits.sum() * 0

    return loss


class PlainTrainer(Trainer):
    """A `Trainer` that keeps the order of the rows, which are shuffled already."""

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler:
        rows: Any = train_dataset or self.train_dataset
        return torch.utils.data.SequentialSampler(rows)


def train_plain(
    rows: PlainRows,
    kinds: Mapping[str, str],
    *,
    bf16: bool,
    folder: str,
    batch_size: int = 32,
    lr: float = 5e-5,
    seed: int = 0,
    callbacks: Sequence[TrainerCallback] = (),
) -> PreTrainedModel:
    """Train on the rows once; returns the model."""
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(
        resolve_source(rows.source),
        num_labels=len(kinds),
        problem_type="multi_label_classification",
    )
    arguments = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=batch_size,
        num_train_epochs=1,
        learning_rate=lr,
        lr_scheduler_type="linear",
        warmup_steps=20,
        bf16=bf16,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        seed=seed,
    )
    trainer = PlainTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        compute_loss_func=masked_loss(kinds),
        callbacks=list(callbacks),
    )
    trainer.train()
    return model


@torch.no_grad()
def score_plain(
    model: PreTrainedModel, rows: PlainRows, *, bf16: bool, batch_size: int = 128
) -> np.ndarray:
    """f32[N, T]: what the model says of the rows."""
    model.eval()
    found = []
    for start in range(0, len(rows), batch_size):
        items = [rows[i] for i in range(start, min(start + batch_size, len(rows)))]
        inputs = {
            k: torch.tensor([item[k] for item in items])
            for k in ("input_ids", "token_type_ids", "attention_mask")
        }
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            found.append(model(**inputs).logits.float())
    return torch.cat(found).numpy()
