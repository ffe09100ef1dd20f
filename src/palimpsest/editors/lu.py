"""LU, the look-up baseline of SERAC and MEND's "cache": stored answers, found by the base's own states, and nothing learned.

SERAC (arXiv 2206.06520), section 5, and MEND (arXiv 2110.11309), appendix: the key of an edit is the mean last state of x_e (a
decoder's last states, else the encoder's), its value y_e. An input whose nearest key is closer than the threshold gets a
one-hot output for y_e, the logit of its token being `logit`; every other input passes untouched. Corrected here (spec Q13):
the memory is appended to instead of replaced, padding is masked out of the mean, and nothing but the answer is overwritten.

Spec: docs/spec/serac_mend.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from palimpsest.editors.base import EditorState, FailedEdit, require
from palimpsest.editors.shared.nearest import measure_neighbours
from palimpsest.editors.shared.routed_editor import RoutedEditor, StoredEdit
from palimpsest.editors.shared.routed_output import Prompts, Voice, VoiceRow
from palimpsest.editors.shared.text_keys import Keys
from palimpsest.edits import Edit
from palimpsest.errors import SettingsError
from palimpsest.models.batching import Batching
from palimpsest.models.loading import LanguageModel
from palimpsest.models.objectives import wanted

PAIRS = 1 << 22  # numbers held at a time when distances are taken


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters.

    Attributes:
        radius: epsilon, in units of the states; MEND's values are 6.5 (FEVER), 3 (zsRE) and 2.5 (Wikitext). Null with
            `radius_ratio`.
        radius_ratio: epsilon as a share of the median distance between a prompt and its nearest neighbour, over the prompts
            given to `Lu.calibrate`: distances do not transfer between models.
        logit: of the answer's token; all others get 0.
        replace_same_prompt: a new edit takes the place of stored ones with its very prompt.
    """

    radius: float | None = 3.0
    radius_ratio: float | None = None
    logit: float = 1.0
    replace_same_prompt: bool = False

    def __post_init__(self) -> None:
        for name in ("radius", "radius_ratio"):
            value = getattr(self, name)
            require(value is None or (math.isfinite(value) and value > 0), name, value, "must be positive")
        one = (self.radius is None) != (self.radius_ratio is None)
        require(one, "radius", self.radius, "give radius or radius_ratio, and null for the other")
        require(math.isfinite(self.logit) and self.logit > 0, "logit", self.logit, "must be positive")


class StoredAnswers:
    """The voice: says the stored answer token by token, then the end."""

    width = 1  # the number of a token is all it needs at a position

    def __init__(self, model: LanguageModel, logit: float):
        self.model, self.logit = model, logit
        self.answers: list[tuple[int, ...]] = []

    def states(
        self, rows: Sequence[VoiceRow], entries: Sequence[int]
    ) -> tuple[Float[Tensor, "g m p"], Bool[Tensor, "g m"]]:
        """The token that each position should give; it speaks from the last prompt token on."""
        lengths = [self._length(row) for row in rows]
        tokens = torch.zeros(len(rows), max(lengths), 1)
        speaks = torch.zeros(len(rows), max(lengths), dtype=torch.bool)
        for number, (row, entry) in enumerate(zip(rows, entries, strict=True)):
            answer = self.answers[entry]
            first = row.prompt - 1 if self.model.kind == "decoder" else 0
            for place in range(first, lengths[number]):
                tokens[number, place, 0] = answer[min(place - first, len(answer) - 1)]
                speaks[number, place] = True
        return tokens.to(self.model.device), speaks.to(self.model.device)

    def _length(self, row: VoiceRow) -> int:
        return {"decoder": len(row.ids), "encoder_decoder": len(row.said), "encoder": 1}[self.model.kind]

    def logits(self, states: Float[Tensor, "k 1"]) -> Float[Tensor, "k v"]:
        """One-hot rows."""
        outputs = len(self.model.labels) if self.model.kind == "encoder" else self.model.vocabulary
        found = torch.zeros(len(states), outputs, device=states.device)
        return found.scatter_(1, states.long(), self.logit)


class Lu(RoutedEditor):
    """Answers what it has seen, word for word.

    Attributes:
        keys: mean states of the different stored prompts [u, d].
        radius: epsilon in use; None until `calibrate`, where the settings give a ratio.
    """

    name = "lu"
    settings_type = Settings
    settings: Settings

    def __init__(self, model: LanguageModel, settings: Settings, statistics: Any = None, seed: int = 0):
        self.wide = torch.promote_types(model.dtype, torch.float32)
        self.answers = StoredAnswers(model, settings.logit)
        super().__init__(model, settings, statistics, seed)
        self.keys = Keys(model.width, self.wide, model.device)
        self.radius = settings.radius

    def calibrate(self, prompts: Sequence[str]) -> float:
        """Set the radius from `radius_ratio`; call it before the first edit, with prompts that are not edited.

        Returns:
            The radius in use, in units of the states.

        Raises:
            PalimpsestError: there are edits already.
            SettingsError: fewer than two different prompts, or all of them have one state.
        """
        ratio = self.settings.radius_ratio
        if ratio is None:
            assert self.settings.radius is not None
            return self.settings.radius
        apart, _ = measure_neighbours(
            self.name,
            self.radius,
            len(self.memory),
            prompts,
            self.states,
            "the mean states of {} prompts are the same. Give an absolute `radius`",
        )
        self.radius = ratio * apart
        return self.radius

    @torch.no_grad()
    def states(self, prompts: Sequence[str], batching: Batching | None = None) -> Float[Tensor, "n d"]:
        """Mean last states [n, d] of prompts; no edit changes them."""
        found = torch.empty(len(prompts), self.model.width, dtype=self.wide, device=self.model.device)
        for group, asked in self._asking(prompts, batching):
            found[group] = self._means(asked)
        return found

    def _means(self, asked: Prompts) -> Float[Tensor, "b d"]:
        weight = asked.prompt[..., None].to(self.wide)
        return (asked.states.to(self.wide) * weight).sum(dim=1) / weight.sum(dim=1)

    # what RoutedEditor asks for ----------------------------------------------------------------------------------------

    def _voice(self) -> Voice:
        return self.answers

    def _scores(self, asked: Prompts) -> Float[Tensor, "b n"]:
        """Negative distances; pairs in chunks, and from differences, so that equal states are at distance 0."""
        asking, keys = self._means(asked), self.keys.rows
        step = max(1, PAIRS // max(1, asking.numel()))
        apart = torch.cat([(asking[:, None] - some[None]).norm(dim=2) for some in keys.split(step)], dim=1)
        return -self.keys.spread(apart)

    def _in_scope(self, score: Float[Tensor, " b"]) -> Tensor:
        return -score < (self.radius or 0.0)

    def _stored(self, new: Sequence[StoredEdit]) -> None:
        if not new:
            return
        prompts = [edit.prompt for edit in new]
        answers = [said.ids for said in wanted(self.model, [edit.target for edit in new])]  # may refuse one
        self.keys.append(self._read(prompts), lambda some: self.states([prompts[place] for place in some]))
        self.answers.answers += answers

    def _kept(self, places: Sequence[int]) -> None:
        self.keys.keep(places)
        self.answers.answers[:] = [self.answers.answers[place] for place in places]

    def _identity(self) -> dict[str, Any]:
        return {name: getattr(self.settings, name) for name in ("radius", "radius_ratio")}

    def apply(self, batch: Sequence[Edit], record: dict[str, Any] | None) -> list[FailedEdit]:
        """Store prompts and answers."""
        if self.radius is None:
            raise SettingsError(
                f"{self.name} has radius_ratio {self.settings.radius_ratio}, but no distances were measured. Call "
                "calibrate(prompts) before the first edit"
            )
        return super().apply(batch, record)

    def state(self) -> EditorState:
        """The stored texts, and the measured radius."""
        found = super().state()
        return EditorState(found.tensors, found.plain | {"measured": self.radius})

    def load_state(self, state: EditorState) -> None:
        """Take over a memory and its radius."""
        measured = state.plain.get("measured", self.settings.radius)
        super().load_state(state)
        self.radius = measured

    def state_bytes(self) -> int:
        """Keys and answers."""
        numbers = self.keys.rows.nbytes
        return numbers + sum(8 * len(answer) for answer in self.answers.answers)

    def remove(self) -> None:
        """Forget the edits and the measured radius."""
        super().remove()
        self.radius = self.settings.radius

    def reset(self) -> None:
        """Forget the edits; the measured radius stays."""
        super().remove()


EDITOR = Lu
