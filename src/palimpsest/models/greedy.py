"""Greedy generation in batches, token by token, from states that are there already.

A row that has said its end token leaves the batch. Steps with kept keys and values run one token at a time; they tell
hook layers a padding [b, n] that is longer than the sequence in the pass, which is how these know them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Cache, DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from palimpsest.models.loading import LanguageModel


@dataclass(frozen=True)
class Said:
    """What a model says.

    Attributes:
        ids: token ids with the end token where one was said, without padding; of a classifier the class number.
        text: the same as text without special tokens and outer blanks; of a classifier the name of the class.
    """

    ids: tuple[int, ...]
    text: str


class Decoding(ABC):
    """Rows that wait for their next token."""

    @abstractmethod
    def room(self) -> list[int]:
        """How many tokens each row may still say."""

    @abstractmethod
    def keep(self, places: Int[Tensor, " k"]) -> None:
        """Go on with some of the rows."""

    @abstractmethod
    def after(self, tokens: Int[Tensor, " b"]) -> Float[Tensor, "b v"]:
        """Logits of the token that follows these."""


@torch.no_grad()
def continue_greedily(
    model: LanguageModel, logits: Float[Tensor, "b v"], decoding: Decoding, max_new_tokens: int
) -> list[tuple[int, ...]]:
    """Token ids that each row says, given the logits [b, v] of its first one; the end token is the last."""
    limits = [min(room, max_new_tokens) for room in decoding.room()]
    said: list[list[int]] = [[] for _ in limits]
    rows, end = list(range(len(limits))), model.end_token
    tokens = logits.argmax(dim=-1)
    while True:
        going = []
        for place, (row, token) in enumerate(zip(rows, tokens.tolist(), strict=True)):
            if len(said[row]) < limits[row]:
                said[row].append(token)
            if token != end and len(said[row]) < limits[row]:
                going.append(place)
        if not going:
            return [tuple(row) for row in said]
        if len(going) < len(rows):
            places = torch.tensor(going, device=tokens.device)
            decoding.keep(places)
            rows, tokens = [rows[place] for place in going], tokens[places]
        tokens = decoding.after(tokens).argmax(dim=-1)


class CachedRows(Decoding):
    """Prompts of a decoder-only model whose keys and values are kept."""

    def __init__(self, model: LanguageModel, cache: Cache, padding: Int[Tensor, "b n"]):
        self.model, self.cache, self.padding = model, cache, padding
        self.length = padding.sum(dim=1)  # real tokens of each row so far
        self.rows = torch.arange(
            len(padding), device=padding.device
        )  # those of the prompts that are still going

    def room(self) -> list[int]:
        """To the end of the context."""
        return (self.model.context - self.length).tolist()

    def keep(self, places: Int[Tensor, " k"]) -> None:
        """Go on with some of the rows."""
        self.cache.batch_select_indices(places)
        self.padding, self.length = self.padding[places], self.length[places]
        self.rows = self.rows[places]

    def after(self, tokens: Int[Tensor, " b"]) -> Float[Tensor, "b v"]:
        """One pass over one token a row."""
        self.padding = torch.cat([self.padding, torch.ones_like(self.padding[:, :1])], dim=1)
        with self.model.padding_of(self.padding), self.model.going_on_with(self.rows):
            output = self.model.network.base_model(
                input_ids=tokens[:, None],
                attention_mask=self.padding,
                position_ids=self.length[:, None],
                past_key_values=self.cache,
                use_cache=True,
            )
        self.length = self.length + 1
        return self.model.head(output.last_hidden_state[:, -1])


class WholeRows(Decoding):
    """Rows of a decoder-only model that are run from their beginning for each token."""

    def __init__(
        self,
        model: LanguageModel,
        ids: Int[Tensor, "b n"],
        padding: Int[Tensor, "b n"],
        query: Int[Tensor, " b"],
    ):
        self.model, self.ids, self.padding, self.query = model, ids, padding, query

    def room(self) -> list[int]:
        """To the end of the context."""
        return (self.model.context - self.padding.sum(dim=1)).tolist()

    def keep(self, places: Int[Tensor, " k"]) -> None:
        """Go on with some of the rows."""
        self.ids, self.padding, self.query = self.ids[places], self.padding[places], self.query[places]

    def first(self) -> Float[Tensor, "b v"]:
        """Logits of the token after the prompts."""
        with self.model.padding_of(self.padding), self.model.asking_at(self.query):
            output = self.model.network.base_model(
                input_ids=self.ids, attention_mask=self.padding, use_cache=False
            )
        rows = torch.arange(len(self.ids), device=self.ids.device)
        return self.model.head(output.last_hidden_state[rows, self.padding.sum(dim=1) - 1])

    def after(self, tokens: Int[Tensor, " b"]) -> Float[Tensor, "b v"]:
        """The rows with the new tokens behind their last real ones, run again."""
        lengths = self.padding.sum(dim=1)
        if int(lengths.max()) == self.ids.shape[1]:
            self.ids = torch.nn.functional.pad(self.ids, (0, 1))
            self.padding = torch.nn.functional.pad(self.padding, (0, 1))
        rows = torch.arange(len(tokens), device=tokens.device)
        self.ids, self.padding = self.ids.clone(), self.padding.clone()
        self.ids[rows, lengths], self.padding[rows, lengths] = tokens, 1
        return self.first()


class AnswerDecoder(Decoding):
    """The decoder of an encoder-decoder: its own keys and values are kept, those of the encoder computed once."""

    def __init__(self, model: LanguageModel, states: Float[Tensor, "b n d"], padding: Int[Tensor, "b n"]):
        self.model, self.states, self.padding = model, states, padding
        self.own, self.crossed = DynamicCache(), DynamicCache()
        self.cache = EncoderDecoderCache(self.own, self.crossed)
        self.rows = torch.arange(len(padding), device=padding.device)  # those that are still going

    def room(self) -> list[int]:
        """As many tokens as the model reads."""
        return [self.model.context] * len(self.states)

    def keep(self, places: Int[Tensor, " k"]) -> None:
        """Go on with some of the rows."""
        self.own.batch_select_indices(places)
        self.crossed.batch_select_indices(places)
        self.states, self.padding = self.states[places], self.padding[places]
        self.rows = self.rows[places]

    def first(self) -> Float[Tensor, "b v"]:
        """Logits after the start token."""
        start = int(self.model.network.config.decoder_start_token_id)
        return self.after(torch.full((len(self.states),), start, device=self.states.device))

    def after(self, tokens: Int[Tensor, " b"]) -> Float[Tensor, "b v"]:
        """One pass of the decoder over one token a row."""
        with self.model.going_on_with(self.rows):
            output = self.model.network(
                encoder_outputs=BaseModelOutput(last_hidden_state=self.states),
                attention_mask=self.padding,
                decoder_input_ids=tokens[:, None],
                past_key_values=self.cache,
                use_cache=True,
            )
        return output.logits[:, -1]


def choose(model: LanguageModel, logits: Float[Tensor, "b classes"]) -> list[Said]:
    """The class with the highest logit of each row."""
    return [Said((number,), model.labels[number]) for number in logits.argmax(dim=-1).tolist()]


def spoken(model: LanguageModel, rows: Sequence[tuple[int, ...]]) -> list[Said]:
    """Token ids with their text."""
    texts = model.tokenizer.batch_decode([list(row) for row in rows], skip_special_tokens=True)
    return [Said(row, text.strip()) for row, text in zip(rows, texts, strict=True)]
