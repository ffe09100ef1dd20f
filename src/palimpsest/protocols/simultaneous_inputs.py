"""What a run of simultaneous edits reads: its batches, and for each edit what is asked in scope and out of scope.

Out-of-scope prompts are the edit's own locality probes and, drawn for each batch, questions about facts that this batch does
not edit: near ones (same relation, other subject; or same subject, other relation) and far ones. A fact of the batch is
never asked out of scope (spec Q12).
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from palimpsest.data.in_scope import IN_SCOPE_KINDS, SENTIMENT_KINDS, asked_aside, in_scope
from palimpsest.data.learning import another_fact, relation_groups, subject_key
from palimpsest.editors.base import Editor
from palimpsest.edits import UNSETTLED, Edit, Probe
from palimpsest.errors import SettingsError
from palimpsest.metrics.asked import AskedPairs
from palimpsest.metrics.evaluation import Question
from palimpsest.metrics.unedited import Unedited
from palimpsest.models.batching import Batching

SPLIT_OF_PROBE = {name: name for name in ("near", "far", "unrelated")} | {UNSETTLED: "near"}
TRIES = 20  # draws for each far prompt, of which some are near or edited


@dataclass(frozen=True)
class Round:
    """One batch: its size k, the positions of its edits in the run, and all that is asked about them."""

    k: int
    orders: range
    questions: list[Question]


@dataclass
class Simultaneous:
    """One run's inputs; built on the unedited model, which is asked all questions at once.

    Attributes:
        run, seed: name of the run and its seed, for the rows.
        editor: fresh, on the unedited model.
        chosen: the run's edits, in order; batches are cut from the front, so that a larger k has the edits of a smaller.
        others: further records that may be asked out of scope.
        batch_sizes: every k, each at most the number of edits.
        draws: at most so many batches of each k; None: as many as there are edits for.
        outside: near and far prompts of each edit.
        rephrasings: at most so many of each edit are asked.
        batching: how rows share a pass.
        drift: measure KL out of scope; always done where edits are judged by replies of a sentiment.
        unedited: where the answers of the unedited model are kept for other runs.
        rounds: all batches by rising k.
        edits: the edits of all batches one behind the other; one comes once for each k.
        asked: every question of the run, with what the unedited model says.
    """

    run: str
    seed: int
    editor: Editor
    chosen: Sequence[Edit]
    others: Sequence[Edit]
    batch_sizes: Sequence[int]
    draws: int | None = None
    outside: int = 1
    rephrasings: int = 5
    batching: Batching = field(default_factory=Batching)
    drift: bool = False
    unedited: Unedited | None = None
    rounds: list[Round] = field(init=False)
    edits: list[Edit] = field(init=False)
    asked: AskedPairs = field(init=False)

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be; plan the batches and ask the unedited model."""
        sizes = list(self.batch_sizes)
        if not sizes or any(not isinstance(k, int) or isinstance(k, bool) or k < 1 for k in sizes):
            raise SettingsError(f"run {self.run}: batch_sizes is {sizes!r}; expected whole numbers above 0")
        if len(set(sizes)) < len(sizes) or max(sizes) > len(self.chosen):
            raise SettingsError(
                f"run {self.run}: batch_sizes is {sizes!r}; expected different numbers up to the {len(self.chosen)} edits"
            )
        if self.draws is not None and self.draws < 1:
            raise SettingsError(
                f"run {self.run}: draws is {self.draws!r}; expected a number above 0, or null"
            )
        self.rounds, self.edits = self._plan(sorted(sizes))
        pairs = [question.pair for batch in self.rounds for question in batch.questions]
        # Dialogue is judged by how far replies drift, which is dear where the vocabulary is large.
        drift = self.drift or any(
            probe.kind in SENTIMENT_KINDS for edit in self.chosen for probe in edit.portability
        )
        self.asked = AskedPairs(self.editor.model, pairs, self.batching, drift, self.unedited)

    def _plan(self, sizes: Sequence[int]) -> tuple[list[Round], list[Edit]]:
        """Batches by rising k, and their edits one behind the other (an edit comes once for each k)."""
        pool = _Pool([*self.chosen, *self.others], self.seed)
        rounds: list[Round] = []
        edits: list[Edit] = []
        for k in sizes:
            number = len(self.chosen) // k
            for first in range(0, k * min(number, self.draws or number), k):
                batch = list(range(first, first + k))
                orders = range(len(edits), len(edits) + k)
                source = random.Random(f"{self.seed} outside {k} {first}")
                questions = []
                for order, place in zip(orders, batch, strict=True):
                    questions += self._asked_about(order, place)
                questions += pool.outside(orders, batch, self.outside, source)
                rounds.append(Round(k, orders, list(dict.fromkeys(questions))))
                edits += [self.chosen[place] for place in batch]
        return rounds, edits

    def _asked_about(self, order: int, place: int) -> list[Question]:
        edit = self.chosen[place]
        asked = [Question(order, "edit", edit.prompt, edit.target)]
        asked += [
            Question(order, "rephrase", text, edit.target) for text in edit.rephrasings[: self.rephrasings]
        ]
        for probe in edit.portability:
            split = probe.kind if probe.kind in IN_SCOPE_KINDS else "portability"
            asked.append(Question(order, split, probe.prompt, probe.answer))
        return asked


class _Pool:
    """Records that are asked out of scope when a batch does not edit them; each is always asked in the same words."""

    def __init__(self, edits: Sequence[Edit], seed: int):
        self.edits = edits
        source = random.Random(f"{seed} asked aside")
        self.asked = [asked_aside(edit, source) for edit in edits]
        self.groups = relation_groups(edits)
        self.subjects = [subject_key(edit) for edit in edits]
        self.members: dict[str, list[int]] = defaultdict(list)
        self.of_subject: dict[str, list[int]] = defaultdict(list)
        for place, (group, subject) in enumerate(zip(self.groups, self.subjects, strict=True)):
            self.members[group].append(place)
            self.of_subject[subject].append(place)

    def outside(
        self, orders: Iterable[int], batch: Sequence[int], number: int, source: random.Random
    ) -> list[Question]:
        """Own probes, near and far prompts of each edit of a batch (places in the pool)."""
        texts = {prompt for place in batch for prompt, _ in in_scope(self.edits[place])}
        edited: dict[str, set[str]] = defaultdict(set)  # subject -> relations that the batch edits
        for place in batch:
            edited[self.subjects[place]].add(self.groups[place])

        def free(place: int) -> bool:
            prompt, *_ = self.asked[place]
            about = edited.get(self.subjects[place], set())
            if about and not another_fact(self.groups[place], about):
                return False
            return prompt not in texts and self.edits[place].prompt not in texts

        found = []
        for order, place in zip(orders, batch, strict=True):
            group = self.groups[place]
            # A probe that names the subject of another edit of the batch may ask what that one changes, in other words.
            names = {self.edits[other].subject for other in batch if other != place}
            for probe in self.edits[place].locality:
                if probe.prompt not in texts and not any(name in probe.prompt for name in names if name):
                    found.append(_of_probe(order, probe))
            near = [other for other in self.of_subject[self.subjects[place]] if other != place]
            near += source.sample(self.members[group], len(self.members[group])) if group else []
            drawn = [source.randrange(len(self.edits)) for _ in range(TRIES * number)]
            far = [
                other
                for other in drawn
                if not (group and self.groups[other] == group)
                and self.subjects[other] != self.subjects[place]
            ]
            for split, places in (("near", near), ("far", far)):
                usable = [other for other in dict.fromkeys(places) if free(other)][:number]
                for prompt, answer, known in (self.asked[other] for other in usable):
                    found.append(Question(order, split, prompt, answer, known))
        return found


def _of_probe(order: int, probe: Probe) -> Question:
    split = SPLIT_OF_PROBE.get(probe.kind, "locality")
    return Question(order, split, probe.prompt, probe.answer, probe.kind != UNSETTLED)
