"""What memory-based editors share: edits kept as text, one decision per input, another output for inputs in scope.

SERAC, its look-up baseline and retrieval keep the base frozen and store what they are told (SERAC, arXiv 2206.06520, section
3). They differ in how well an input matches a stored edit, and in what speaks for it then (`shared/routed_output.py`).
Edits are appended; the grouping into batches changes nothing. Old ones are never overwritten unless `replace_same_prompt`
says so: where two match equally well, the newer one speaks. Two edits of one text do so to the bit (`shared/text_keys.py`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from palimpsest.editors.base import Editor, EditorState, FailedEdit, edit_name
from palimpsest.editors.shared.belonging import KEY, refuse_foreign
from palimpsest.editors.shared.routed_output import OutputRouter, Prompts, Route, Voice
from palimpsest.edits import Edit
from palimpsest.errors import PalimpsestError
from palimpsest.models.batching import Batching
from palimpsest.models.loading import LanguageModel
from palimpsest.models.objectives import encode_prompts_only
from palimpsest.models.tokens import tokenise


@dataclass(frozen=True)
class StoredEdit:
    """One entry of the memory: the text of an edit, and its name."""

    name: str
    prompt: str
    target: str


class RoutedEditor(Editor):
    """An editor whose whole effect is that stored edits speak for the inputs in their scope.

    No block of the base is changed, so nothing is known below which an answer stays (`lowest_block` is None): a look asks
    the whole model. Steps with kept keys and values are served (`reads_whole_rows` stays False).

    Attributes:
        memory: the stored edits, oldest first.
    """

    settings: Any

    def __init__(self, model: LanguageModel, settings: Any, statistics: Any = None, seed: int = 0):
        super().__init__(model, settings, statistics, seed)
        self.memory: list[StoredEdit] = []
        self.router = OutputRouter(model, self._rule, self._voice(), self._mixes())

    # what a method must say --------------------------------------------------------------------------------------------

    @abstractmethod
    def _voice(self) -> Voice:
        """What speaks for inputs in scope."""

    @abstractmethod
    def _scores(self, asked: Prompts) -> Float[Tensor, "b n"]:
        """How well each row of a pass matches each stored edit; the largest counts."""

    @abstractmethod
    def _in_scope(self, score: Float[Tensor, " b"]) -> Tensor:
        """Whether the best score opens the gate [b], bool."""

    @abstractmethod
    def _stored(self, new: Sequence[StoredEdit]) -> None:
        """Note what is needed of edits that are appended to the memory; where it raises, nothing must have changed."""

    @abstractmethod
    def _kept(self, places: Sequence[int]) -> None:
        """Note that only these entries (by their number so far) stay."""

    def _mixes(self) -> bool:
        """Whether both outputs are mixed by the score instead of one being taken."""
        return False

    def _identity(self) -> dict[str, Any]:
        """What a state belongs to, besides the model."""
        return {}

    def _shown(self, score: float) -> float:
        """The score as `inspect` shows it."""
        return score

    # every pass --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _rule(self, asked: Prompts) -> Route | None:
        if not self.memory:
            return None
        score, entry = newest_best(self._scores(asked))
        fired = self._in_scope(score)
        if self._mixes():
            return Route(entry, self._share(score), fired)
        return Route(entry, fired.to(score.dtype), fired) if bool(fired.any()) else None

    def _share(self, score: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Weight of the voice where outputs are mixed."""
        return score

    # edits -------------------------------------------------------------------------------------------------------------

    def apply(self, batch: Sequence[Edit], record: dict[str, Any] | None) -> list[FailedEdit]:
        """Append the edits' texts; nothing is optimised."""
        new = [StoredEdit(edit_name(edit), edit.prompt, edit.target) for edit in batch]
        if getattr(self.settings, "replace_same_prompt", False):
            last = {edit.prompt: number for number, edit in enumerate(new)}
            new = [edit for number, edit in enumerate(new) if last[edit.prompt] == number]
        self._append(new, self._staying(new))
        if record is not None:
            record["memory"] = len(self.memory)
        return []

    def _staying(self, new: Sequence[StoredEdit]) -> Sequence[int]:
        """Places of the entries so far that stay beside new ones."""
        if not getattr(self.settings, "replace_same_prompt", False):
            return range(len(self.memory))
        replaced = {edit.prompt for edit in new}
        return [place for place, old in enumerate(self.memory) if old.prompt not in replaced]

    def _append(self, new: Sequence[StoredEdit], staying: Sequence[int]) -> None:
        """Add entries behind those that stay; nothing has changed where it raises."""
        if new:
            self.router.refuse_others()
        with self.router.resting(), torch.no_grad():
            self._stored(new)
        before = len(self.memory)
        self.memory += new
        if len(staying) < before:
            self._keep([*staying, *range(before, len(self.memory))])
        if new:
            self.router.attach()

    def _keep(self, places: Sequence[int]) -> None:
        if len(places) == len(self.memory):
            return
        self._kept(places)
        self.memory[:] = [self.memory[place] for place in places]

    def undo(self, edit: Edit | str) -> StoredEdit:
        """Take one edit back; all others stay as they are.

        Given by its name (its identifier, or its prompt), the latest of that name goes; given as an `Edit`, the latest with
        its name and target.

        Raises:
            PalimpsestError: the memory holds no such edit; nothing has changed then.
        """
        name, target = (edit, None) if isinstance(edit, str) else (edit_name(edit), edit.target)
        for place in reversed(range(len(self.memory))):
            found = self.memory[place]
            if found.name == name and target in (None, found.target):
                self._keep([other for other in range(len(self.memory)) if other != place])
                return found
        raise PalimpsestError(
            f"{self.name} holds no edit {name!r}"
            + (f" with the target {target!r}" if target is not None else "")
            + f" ({len(self.memory)} are stored). Give the identifier or prompt it was made with"
        )

    # looking inside ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def inspect(
        self, prompts: str | Sequence[str], subjects: Sequence[str | None] | None = None
    ) -> list[dict[str, Any]]:
        """Which stored edit each prompt meets, and whether it speaks; subjects mean nothing to these methods.

        Returns:
            For each prompt a dict of `prompt`; `fired`, whether the stored edit speaks; and of the best match (None while
            nothing is stored) `entry`, its number, `edit`, its name, `taught`, its target, `asked`, its prompt, and `score`.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        names = ("entry", "edit", "asked", "taught", "score")
        if not prompts or not self.memory:
            return [{"prompt": prompt, "fired": False, **dict.fromkeys(names)} for prompt in prompts]
        found: list[dict[str, Any]] = [{} for _ in prompts]
        for group, asked in self._asking(prompts):
            score, entry = newest_best(self._scores(asked))
            told = zip(group, score.tolist(), entry.tolist(), self._in_scope(score).tolist(), strict=True)
            for place, value, number, fired in told:
                stored = self.memory[number]
                texts = {"edit": stored.name, "asked": stored.prompt, "taught": stored.target}
                found[place] = {"prompt": prompts[place], "fired": fired, "entry": number, **texts}
                found[place]["score"] = self._shown(value)
        return found

    def _asking(
        self, prompts: Sequence[str], batching: Batching | None = None
    ) -> Iterator[tuple[list[int], Prompts]]:
        """Prompts as the rule sees them, in padded batches; the base's own passes."""
        self.router.refuse_others()
        inputs = encode_prompts_only(self.model, prompts)
        for group in (batching or Batching()).groups(inputs.padding.sum(dim=1).tolist()):
            rows = inputs.rows(group)
            with self.router.resting():
                states = self.model.stack(**rows.named).last_hidden_state
            yield group, self.router.asked(rows.named["input_ids"], rows.padding.bool(), states)

    def _read(self, prompts: Sequence[str]) -> list[tuple[int, ...]]:
        """What the base reads of prompts: where this is equal, so are their states, but for rounding."""
        return [tuple(row.ids) for row in tokenise(self.model, prompts)]

    @contextmanager
    def watching(self) -> Iterator[Callable[[], Tensor | None] | None]:
        """On which rows of the latest pass a stored edit spoke."""
        self.router.latest = None

        def acted() -> Tensor | None:
            latest, self.router.latest = self.router.latest, None
            return None if latest is None else latest.fired.detach()

        yield acted

    # keeping -----------------------------------------------------------------------------------------------------------

    def state(self) -> EditorState:
        """The stored texts, with what they belong to; keys are made anew from them."""
        return EditorState(plain={"memory": [asdict(edit) for edit in self.memory], KEY: self._belongs_to()})

    def load_state(self, state: EditorState) -> None:
        """Take over a memory.

        Raises:
            PalimpsestError: it was saved by another editor, for another model or another training, or is damaged, or another
                editor with a memory answers on the model; nothing has changed then.
        """
        refuse_foreign(state, self._belongs_to(), f"memory of {self.name}", "model and training")
        try:
            stored = [
                StoredEdit(str(one["name"]), str(one["prompt"]), str(one["target"]))
                for one in state.plain["memory"]
            ]
        except (KeyError, TypeError) as error:
            raise PalimpsestError(
                f"this memory of {self.name} is damaged ({error!r}). Save it again with save_state"
            ) from error
        self._append(stored, staying=[])

    def _belongs_to(self) -> dict[str, Any]:
        return {"editor": self.name, "model": self.model.fingerprint, **self._identity()}

    def remove(self) -> None:
        """Take the hooks off and forget every edit. The weights were never changed."""
        self.router.detach()
        self._keep([])

    def state_bytes(self) -> int:
        """The stored texts, in UTF-8."""
        return sum(len(part.encode()) for edit in self.memory for part in (edit.prompt, edit.target))


def newest_best(scores: Float[Tensor, "b n"]) -> tuple[Float[Tensor, " b"], Int[Tensor, " b"]]:
    """The largest score of each row and the number of the newest edit that has it (0 where no score is a number)."""
    places = torch.arange(scores.shape[1], device=scores.device)
    best = scores.max(dim=1).values
    entry = torch.where(scores == best[:, None], places, -1).max(dim=1).values.clamp(min=0)
    return best, entry
