"""Retrieval: the nearest stored edit is put before the prompt, and the frozen base answers. Nothing is trained.

The simplest memory: SERAC's "retrieve and prompt" (arXiv 2206.06520, section 5) with a plain measure of likeness in the place of
the learned classifier. Likeness is the cosine of two texts' vectors:

    tfidf   words, counted and weighted by log((1 + N) / (1 + n)) + 1 with n of the N stored prompts having the word
    base    the mean of the base's last states
    other   the mean state of an encoder (a directory, `package:NAME/FOLDER`, or a hub id)

The best match speaks where its likeness is above `threshold`; with 0 nearly every input gets an edit put before it.

Spec: docs/spec/serac_mend.md.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from palimpsest.editors.base import require
from palimpsest.editors.shared.counterfactual import BASE, EditReader, check_template
from palimpsest.editors.shared.routed_editor import RoutedEditor, StoredEdit
from palimpsest.editors.shared.routed_output import Prompts, Voice
from palimpsest.editors.shared.scope_classifier import ScopeClassifier, ScopeShape
from palimpsest.editors.shared.text_keys import Keys
from palimpsest.models.loading import LanguageModel

TFIDF = "tfidf"
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters.

    Attributes:
        embedding: "tfidf", "base", or where an encoder is read from.
        threshold: likeness (-1 to 1) above which the edit is put before the prompt.
        template, separator: text of the edit ({prompt}, {target}), and what stands between it and the prompt.
        replace_same_prompt: a new edit takes the place of stored ones with its very prompt.
    """

    embedding: str = TFIDF
    threshold: float = 0.0
    template: str = "{prompt} {target}"
    separator: str = " "
    replace_same_prompt: bool = False

    def __post_init__(self) -> None:
        require(bool(self.embedding), "embedding", self.embedding, "tfidf, base, a directory or a hub id")
        require(-1 <= self.threshold < 1, "threshold", self.threshold, "from -1 to below 1")
        check_template(self.template)


class WordIndex:
    """Stored prompts by their words."""

    def __init__(self) -> None:
        self.counts: list[Counter[str]] = []
        self._forget()

    def _forget(self) -> None:
        self._weights: dict[str, float] | None = None
        self._having: dict[str, list[tuple[int, float]]] = {}

    def append(self, texts: Sequence[str]) -> None:
        """Store texts."""
        self.counts += [Counter(_words(text)) for text in texts]
        self._forget()

    def keep(self, places: Sequence[int]) -> None:
        """Only these."""
        self.counts[:] = [self.counts[place] for place in places]
        self._forget()

    def _weigh(self) -> dict[str, float]:
        """Weights of the words, and for each word the texts that have it with its share in their unit vector."""
        if self._weights is None:
            having = Counter(word for counts in self.counts for word in counts)
            n = len(self.counts)
            self._weights = {word: math.log((1 + n) / (1 + found)) + 1 for word, found in having.items()}
            self._having = defaultdict(list)
            for place, counts in enumerate(self.counts):
                vector = {word: count * self._weights[word] for word, count in counts.items()}
                length = math.sqrt(math.fsum(value**2 for value in vector.values()))
                for word, value in vector.items():
                    self._having[word].append((place, value / length))
        return self._weights

    def likeness(self, text: str) -> Float[Tensor, " n"]:
        """Cosine of a text with each stored one [n]; words that no stored text has lengthen its vector."""
        weights = self._weigh()
        unknown = math.log(1 + len(self.counts)) + 1
        vector = {word: count * weights.get(word, unknown) for word, count in Counter(_words(text)).items()}
        length = math.sqrt(math.fsum(value**2 for value in vector.values())) or 1.0
        found = [0.0] * len(self.counts)
        for word, value in vector.items():
            for place, share in self._having.get(word, ()):
                found[place] += share * value / length
        return torch.tensor(found, dtype=torch.float64)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


class Retrieval(RoutedEditor):
    """The base reads the nearest stored edit before the input."""

    name = "retrieval"
    settings_type = Settings
    settings: Settings

    def __init__(self, model: LanguageModel, settings: Settings, statistics: Any = None, seed: int = 0):
        self.reader = EditReader(model, model, settings.template, settings.separator)
        super().__init__(model, settings, statistics, seed)
        self.words = WordIndex()
        self.encoder: ScopeClassifier | None = None
        if settings.embedding not in (TFIDF, BASE):
            self.encoder = ScopeClassifier(
                model, ScopeShape(encoder=settings.embedding, pooling="mean"), seed
            )
        self.keys = Keys(self.encoder.width if self.encoder else model.width, torch.float32, model.device)

    def _voice(self) -> Voice:
        return self.reader

    def _scores(self, asked: Prompts) -> Float[Tensor, "b n"]:
        if self.settings.embedding == TFIDF:
            found = torch.stack([self.words.likeness(text) for text in asked.texts()])
            return found.to(self.model.device)
        own = self._units_of(asked) if self.encoder is None else self._units(self._ids(asked.texts()))
        return self.keys.spread(own @ self.keys.rows.T)

    def _in_scope(self, score: Float[Tensor, " b"]) -> Tensor:
        return score > self.settings.threshold

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        """What the encoder reads of texts."""
        assert self.encoder is not None
        return self.encoder.ids([(text,) for text in texts])

    def _units(self, ids: Sequence[Sequence[int]]) -> Float[Tensor, "n c"]:
        """Unit vectors by the encoder of what it reads."""
        assert self.encoder is not None
        return _unit(self.encoder.embed(ids))

    def _states(self, prompts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Unit vectors of prompts by the base."""
        found = torch.empty(len(prompts), self.model.width, device=self.model.device)
        for group, asked in self._asking(prompts):
            found[group] = self._units_of(asked)
        return found

    def _units_of(self, asked: Prompts) -> Float[Tensor, "b d"]:
        """Unit vectors of a pass by the base."""
        weight = asked.prompt[..., None].float()
        return _unit((asked.states.float() * weight).sum(dim=1))

    def _stored(self, new: Sequence[StoredEdit]) -> None:
        prompts = [edit.prompt for edit in new]
        if not prompts:
            return
        if self.settings.embedding == TFIDF:
            self.words.append(prompts)
        elif self.encoder is not None:
            ids = self._ids(prompts)
            self.keys.append(list(map(tuple, ids)), lambda some: self._units([ids[place] for place in some]))
        else:
            self.keys.append(
                self._read(prompts), lambda some: self._states([prompts[place] for place in some])
            )
        self.reader.memory += [(edit.prompt, edit.target) for edit in new]

    def _kept(self, places: Sequence[int]) -> None:
        self.reader.memory[:] = [self.reader.memory[place] for place in places]
        if self.settings.embedding == TFIDF:
            self.words.keep(places)
        else:
            self.keys.keep(places)

    def _identity(self) -> dict[str, Any]:
        return {"embedding": self.settings.embedding}


def _unit(vectors: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    return torch.nn.functional.normalize(vectors, dim=1)


EDITOR = Retrieval
