"""Scores of inputs against a growing memory of edits: nothing is embedded or scored twice (spec Q17).

Edits are embedded when they are stored, inputs when they are first met; of the cross-attention form, which has no
embeddings, the scores of an input are kept and only those of newer edits are added. The classifier is frozen, so what is
kept stays right. Edits of one text (what is left of them as released, spec E3) share what they have, and so their scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from palimpsest.editors.shared.scope_classifier import ScopeClassifier, Text, crossed
from palimpsest.editors.shared.text_keys import Keys, SharedRows

KEPT_TEXTS = 20_000  # inputs whose embedding or scores are kept


class ScopeMemory:
    """The stored edits as a scope classifier needs them.

    Attributes:
        edits: their texts, oldest first.
    """

    def __init__(self, classifier: ScopeClassifier):
        self.classifier = classifier
        self.edits: list[Text] = []
        self.keys = Keys(classifier.width, torch.float32, classifier.device)
        self._shared = SharedRows()  # of the cross form, which has no keys
        self._different: list[Text] = []  # and the text of each row
        self._met: dict[
            str, Tensor
        ] = {}  # input -> its embedding, or its scores with the oldest different texts

    @property
    def _crosses(self) -> bool:
        return self.classifier.shape.classifier == "cross"

    def append(self, edits: Sequence[Text]) -> None:
        """Store edits: (prompt, answer), or the prompt alone."""
        ids = self.classifier.ids(list(edits))
        read = list(map(tuple, ids))
        if self._crosses:
            self._different += [edits[place] for place in self._shared.unmet(read)]
            self._shared.append(read)
        else:
            self.keys.append(read, lambda some: self.classifier.embed([ids[place] for place in some]))
        self.edits += edits

    def keep(self, places: Sequence[int]) -> None:
        """Only these edits, in this order."""
        self.edits[:] = [self.edits[place] for place in places]
        if self._crosses:
            self._different = [self._different[row] for row in self._shared.keep(places)]
            self._met.clear()
        else:
            self.keys.keep(places)

    @torch.no_grad()
    def log_scope(self, queries: Sequence[str]) -> Float[Tensor, "b n"]:
        """log g [b, n] of each input with each stored edit."""
        if len(self._met) > KEPT_TEXTS:
            self._met.clear()
        return self._of_pairs(queries) if self._crosses else self._of_embeddings(queries)

    def _of_embeddings(self, queries: Sequence[str]) -> Float[Tensor, "b n"]:
        new = [text for text in dict.fromkeys(queries) if text not in self._met]
        states = self.classifier.embed(self.classifier.ids([(text,) for text in new]))
        self._met |= dict(zip(new, states, strict=True))
        asked = torch.stack([self._met[text] for text in queries])
        return self.keys.spread(self.classifier.log_scope_of_embeddings(self.keys.rows, asked))

    def _of_pairs(self, queries: Sequence[str]) -> Float[Tensor, "b n"]:
        none = torch.empty(0, device=self.classifier.device)
        pairs: list[Text] = []
        counts: dict[str, int] = {}
        for text in dict.fromkeys(queries):
            waiting = self._different[len(self._met.get(text, none)) :]
            counts[text] = len(waiting)
            pairs += [crossed(edit, text) for edit in waiting]
        found = self.classifier.log_scope_of_pairs(self.classifier.ids(pairs)) if pairs else none
        for text, scores in zip(counts, found.split(list(counts.values())), strict=True):
            self._met[text] = torch.cat([self._met.get(text, none), scores])
        return self._shared.spread(torch.stack([self._met[text] for text in queries]))
