"""What each word of an item's text does to its score: integrated gradients (1703.01365).

The path goes from the text with all words hidden to the text itself, through the encoder, the
item's vector, its cosines with the history and the network, to the score.

Letters: S steps of the path, L tokens, E width of token embeddings, D width of text vectors, H
history items.
"""

import importlib.util
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtrec_ray.data.arrays import Float32s, Ints
from mtrec_ray.data.snapshot import UserSnapshot, rows_of_pairs
from mtrec_ray.data.tokens import TINY, load_tokenizer
from mtrec_ray.model.catalogue_scorer import blend
from mtrec_ray.model.encoder import TextEncoder, pool
from mtrec_ray.model.recommender import predictions
from mtrec_ray.model.samples import Samples
from mtrec_ray.project.base import refuse
from mtrec_ray.stages.ranker import Ranker
from mtrec_ray.stages.trained_model import TrainedModel, load_model_for_use

STEPS = 64  # of the path; Gauss and Legendre's points
STEPS_PER_PASS = 16


@dataclass(frozen=True)
class WordEffect:
    """A word of a text, and its share in the score.

    Attributes:
        word: as it stands in the text.
        start, end: its characters there; None where the text is not known.
        effect: its attribution.
    """

    word: str
    start: int | None
    end: int | None
    effect: float


@dataclass(frozen=True)
class WordEffects:
    """What the words of a text do to a score.

    Attributes:
        words: in the order of the text.
        score: of the text, read in fp32; `baseline`: with all words hidden.
        unexplained: the score less the baseline and all effects: the error of the integral.
    """

    words: list[WordEffect]
    score: float
    baseline: float
    unexplained: float


@dataclass(frozen=True)
class TokenGroup:
    """The tokens of a word, by their places in the text's tokens."""

    word: str
    start: int | None
    end: int | None
    places: list[int]


def explain_problems() -> list[str]:
    """Returns an error line if words cannot be explained here."""
    if importlib.util.find_spec("captum"):
        return []
    return [
        "explanation of words: found no captum, which computes it; "
        "allowed: pip install 'mtrec-ray[explain]', or explanations without words"
    ]


def load_encoder(trained_model: TrainedModel) -> TextEncoder:
    """Returns a model's encoder in fp32 on the CPU, ready to be explained."""
    project = trained_model.project
    options = {
        "evaluation": project.evaluation.model_copy(update={"precision": "fp32"}),
        "run": project.run.model_copy(update={"use_gpu": False}),
    }
    exact = replace(trained_model, project=project.model_copy(update=options))
    model, _ = load_model_for_use(exact)
    return model.encoder.requires_grad_(False)


class ItemScore:
    """The score of one item for one user, as a function of the embeddings of its text's tokens."""

    def __init__(
        self,
        ranker: Ranker,
        encoder: TextEncoder,
        user: UserSnapshot,
        item: int,
        numeric: Float32s | None = None,
    ) -> None:
        """`numeric` f32[F]: the item's columns; without it those of the catalogue's snapshot."""
        self.ranker, self.encoder, self.user, self.item = ranker, encoder, user, item
        own = None if numeric is None else numeric[None]
        pair = np.zeros(1, np.int64), np.array([item])
        arrays = rows_of_pairs(ranker.layout, user, ranker.items, *pair, own)
        labels = np.zeros((1, len(ranker.facts.tasks)), np.float32)
        row = Samples.of({**arrays, "time": user.moment, "labels": labels})
        self.row = replace(row, given=user.given)
        self.past = torch.tensor(user.history[0][user.history[0] >= 0])

    @property
    def bottom(self) -> Any:
        """The part of the encoder that holds the embeddings."""
        return self.encoder.lower if self.encoder.lower is not None else self.encoder.upper

    def embeddings(self, tokens: Ints) -> Tensor:
        """Returns f32[1, L, E] of token ids i64[L]."""
        with torch.no_grad():
            return self.bottom.get_input_embeddings()(torch.from_numpy(tokens)[None])

    def vectors(self, embeddings: Tensor) -> Tensor:
        """Returns text vectors f32[S, D] of token embeddings f32[S, L, E], with gradients."""
        mask = torch.ones(embeddings.shape[:2], dtype=torch.int64)
        states = embeddings
        for part in (self.encoder.lower, self.encoder.upper):
            if part is not None:
                states = part(inputs_embeds=states, attention_mask=mask).last_hidden_state
        return pool(states, mask.bool(), self.encoder.options.pooling).float()

    def __call__(self, embeddings: Tensor) -> Tensor:
        """Returns scores f32[S] of the item with token embeddings f32[S, L, E]."""
        ranker, steps = self.ranker, len(embeddings)
        text = torch.cat([self.vectors(embeddings), ranker.text[self.past].float()])
        logits = ranker.model.score(ranker.name, self.repeated(steps), text, through_cosines=True)
        facts = ranker.facts
        return blend(predictions(facts, logits), facts.tasks, facts.given, ranker.by)

    def repeated(self, steps: int) -> Samples:
        """Returns S samples of the user and the item, each of which has a text of its own.

        The items are S times the candidate, and then those of the history.
        """
        rows = self.row.some(torch.zeros(steps, dtype=torch.int64))
        known = rows.history >= 0
        places = steps + known.cumsum(1) - 1
        return replace(
            rows,
            items=torch.cat([torch.full((steps,), self.item), self.past]),
            candidate=torch.arange(steps),
            history=torch.where(known, places, -1),
        )


def word_effects(
    ranker: Ranker,
    encoder: TextEncoder,
    user: UserSnapshot,
    item: int,
    text: str | None = None,
    numeric: Float32s | None = None,
) -> WordEffects:
    """Returns what each word of an item's text does to its score for a user.

    `text` is the item's, cut as the encoder cuts it; without it, that of its tokens. `numeric`
    f32[F] are its columns; without it those of the catalogue's snapshot.

    Raises:
        ProjectError: captum is not installed.
    """
    refuse(explain_problems())
    from captum.attr import IntegratedGradients

    tokens = tokens_of(ranker, item)
    source = encoder.options.source
    groups, hidden = token_groups(source, tokens, text, encoder.options.max_tokens)
    score = ItemScore(ranker, encoder, user, item, numeric)
    inputs, baselines = score.embeddings(tokens), score.embeddings(hidden)
    attributions = IntegratedGradients(score).attribute(
        inputs, baselines, n_steps=STEPS, method="gausslegendre", internal_batch_size=STEPS_PER_PASS
    )
    of_tokens = attributions.sum(2)[0].double().numpy()
    with torch.no_grad():
        end, start = score(inputs).item(), score(baselines).item()
    words = [WordEffect(g.word, g.start, g.end, float(of_tokens[g.places].sum())) for g in groups]
    return WordEffects(words, end, start, float(end - start - of_tokens.sum()))


def tokens_of(ranker: Ranker, item: int) -> Ints:
    """Returns the token ids i64[L] of an item's text, as the model reads them."""
    catalogue = ranker.layout.prepared.catalogue(ranker.name)
    return catalogue.tokens[catalogue.offsets[item] : catalogue.offsets[item + 1]].astype(np.int64)


def token_groups(
    source: str, tokens: Ints, text: str | None, max_tokens: int
) -> tuple[list[TokenGroup], Ints]:
    """Returns the words of a text's tokens, and the tokens i64[L] with all words hidden.

    Special tokens are no words and are not hidden. Where the text does not give the tokens, each of
    these is a word.
    """
    if source == TINY:
        every = [TokenGroup(str(t), None, None, [i]) for i, t in enumerate(tokens.tolist())]
        return every, np.zeros_like(tokens)
    tokenizer = load_tokenizer(source)
    special = np.isin(tokens, tokenizer.all_special_ids)
    blank = tokenizer.mask_token_id
    blank = tokenizer.pad_token_id if blank is None else blank
    hidden = np.where(special, tokens, blank)
    if text is None:
        text = str(tokenizer.decode(tokens, skip_special_tokens=True))
    read = tokenizer(
        text, truncation=True, max_length=max_tokens, return_offsets_mapping=tokenizer.is_fast
    )
    if tokenizer.is_fast and read["input_ids"] == tokens.tolist():
        return words_in(text, read.word_ids(), read["offset_mapping"]), hidden
    names = tokenizer.convert_ids_to_tokens(tokens.tolist())
    found = [TokenGroup(names[i], None, None, [i]) for i in np.flatnonzero(~special).tolist()]
    return found, hidden


def words_in(
    text: str, word_ids: list[int | None], offsets: list[tuple[int, int]]
) -> list[TokenGroup]:
    """Returns the words of a text by the tokenizer's numbers of words and offsets of characters."""
    places: dict[int, list[int]] = {}
    for place, number in enumerate(word_ids):
        if number is not None:
            places.setdefault(number, []).append(place)
    found = []
    for own in places.values():
        start, end = offsets[own[0]][0], offsets[own[-1]][1]
        found.append(TokenGroup(text[start:end], start, end, own))
    return found
