"""What an editor is trained on: facts with an answer to edit to, rephrasings in scope, and prompts out of scope.

`learning.jsonl` holds one fact a line. The sampler draws from them what one training step sees: k different edits, and for
each an in-scope query x' and an out-of-scope prompt x_loc (MEND, Algorithm 1; SERAC, section 3).
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from palimpsest.edits import Edit
from palimpsest.errors import DataError, SettingsError
from palimpsest.files import read_records

PAIRS = ("implied", "opposed", "true_false")  # fields of (question, answer)
SPLITS = ("train", "valid", "test")
HOLE = "{}"  # stands for the answer after the edit
FALSE = "False"  # what a statement is said to be when another answer stands in the hole
REMEDY = "Make the data set again (palimpsest dataset)"


@dataclass(frozen=True)
class Outside:
    """A prompt out of the edit's scope, with what the model should go on answering.

    `near` marks a hard negative: it shares the relation or the subject with the edit. The answer may be empty where only
    the prompt itself is looked at. `known` is False where nobody can say whether the answer is right.
    """

    prompt: str
    answer: str
    near: bool = False
    known: bool = True


@dataclass(frozen=True)
class LearningExample:
    """One fact that edits are made of during training.

    Attributes:
        identifier: unique in the file.
        prompt: x_e, the question.
        subject: what it is about; may be absent.
        answer: what is true, or what the model says now.
        alternatives: what it may be edited to (y_e); never the answer itself.
        rephrasings: x' candidates; never the prompt itself.
        implied: (question, answer) whose answer follows from the edit; "{}" stands for y_e in both (QA-hard).
        true_false: (statement, answer) to be called true or false (QA-hard); "{}" stands for y_e in those that are true.
        outside: prompts out of scope.
        split: "train", "valid" or "test".
        opposed: (question, answer) that the edit makes wrong (dialogue sentiment); such a fact is asked by its implied
            questions only.
    """

    identifier: str
    prompt: str
    subject: str | None
    answer: str
    alternatives: tuple[str, ...]
    rephrasings: tuple[str, ...]
    implied: tuple[tuple[str, str], ...] = ()
    outside: tuple[Outside, ...] = ()
    split: str = "train"
    opposed: tuple[tuple[str, str], ...] = ()
    true_false: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        """Refuse what would train an editor wrongly; the message names the field."""
        for name in ("identifier", "prompt", "answer"):
            _need(bool(getattr(self, name).strip()), name, "it is empty")
        _need(
            self.subject is None or (bool(self.subject) and self.subject in self.prompt),
            "subject",
            f"{self.subject!r} does not occur in the prompt {self.prompt!r}",
        )
        _need(bool(self.alternatives), "alternatives", "there is none; an edit needs an answer to edit to")
        _need(self.answer not in self.alternatives, "alternatives", f"{self.answer!r} is the answer itself")
        _need(self.prompt not in self.rephrasings, "rephrasings", "the prompt is among its own rephrasings")
        for name in ("alternatives", "rephrasings"):
            _need(all(text.strip() for text in getattr(self, name)), name, "a text is empty")
        _need(all(outside.prompt.strip() for outside in self.outside), "outside", "a prompt is empty")
        for name in PAIRS:
            _need(all(q.strip() and a.strip() for q, a in getattr(self, name)), name, "a text is empty")
        _need(self.split in SPLITS, "split", f"{self.split!r}; expected one of {', '.join(SPLITS)}")

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> LearningExample:
        """Build from the form that `to_dict` writes; raises DataError that names the field."""
        for name, kind in (("identifier", str), ("prompt", str), ("answer", str), ("split", str)):
            _need(isinstance(content.get(name), kind), name, f"expected a text, found {content.get(name)!r}")
        subject = content.get("subject")
        _need(subject is None or isinstance(subject, str), "subject", f"expected a text, found {subject!r}")
        texts = {name: _texts(content, name) for name in ("alternatives", "rephrasings")}
        pairs = {name: tuple(_pair(item, name) for item in _list(content, name)) for name in PAIRS}
        return cls(
            identifier=content["identifier"],
            prompt=content["prompt"],
            subject=subject,
            answer=content["answer"],
            outside=tuple(_outside(item) for item in _list(content, "outside")),
            split=content["split"],
            implied=pairs["implied"],
            opposed=pairs["opposed"],
            true_false=pairs["true_false"],
            **texts,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON. Answers are known unless it says otherwise."""
        content = asdict(self)
        for other in content["outside"]:
            if other["known"]:
                del other["known"]
        return content

    @property
    def fact(self) -> str:
        """Identifier of the edit it was made from: the two sentiments of an entity are examples marked + and -."""
        return self.identifier[:-1] if self.opposed else self.identifier

    def in_scope(self) -> set[str]:
        """All texts of this fact that are known: none of them may be out of scope of an edit of it.

        Questions say each of the answers here, as they do where they stand out of scope of another fact.
        """
        asked = [question for question, _ in (*self.implied, *self.opposed, *self.true_false)]
        filled = {
            question.replace(HOLE, said) for question in asked for said in (self.answer, *self.alternatives)
        }
        return {self.prompt, *self.rephrasings, *filled}


@dataclass(frozen=True)
class Draw:
    """One edit with its in-scope query x' (and the answer y' that follows) and its out-of-scope prompt.

    `opposite` is an answer to x' that the edit makes wrong; empty where none is known.
    """

    edit: Edit
    query: str
    query_answer: str
    outside: Outside
    opposite: str = ""


def read_examples(path: Path | str, rephrase: bool = True) -> list[LearningExample]:
    """Read learning.jsonl.

    Args:
        rephrase: False takes a file without rephrasings too: only the prompts themselves are asked (spec E1).

    Raises:
        DataError: naming file, line and field: a missing file, a bad line, an identifier used twice, or a file in which no
            record has a rephrasing (an editor trained on it would learn the wording of the prompt, not the fact).
    """
    examples: list[LearningExample] = []
    seen: set[str] = set()
    for place, content in read_records(path, REMEDY):
        try:
            example = LearningExample.from_dict(content)
            _need(example.identifier not in seen, "identifier", f"{example.identifier!r} is used twice")
        except DataError as error:
            what = str(error).partition(": ")[2] if error.field else str(error)
            raise DataError(what, file=path, record=place, field=error.field, remedy=REMEDY) from error
        seen.add(example.identifier)
        examples.append(example)
    if rephrase:
        refuse_without_rephrasings(examples, path)
    return examples


def refuse_without_rephrasings(examples: Sequence[LearningExample], file: object = None) -> None:
    """Raise DataError when no example has one."""
    if not any(one.rephrasings or one.implied or one.true_false for one in examples):
        raise DataError(
            "no record has a rephrasing, so nothing could be learned but the wording of the prompts",
            file=file,
            field="rephrasings",
            remedy="Use a data set with rephrasings, or rephrase: false to train on the prompts themselves",
        )


def digest_of_examples(examples: Sequence[LearningExample]) -> str:
    """16 hex digits over the content, the same for a file and for what was read from it."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps(example.to_dict(), sort_keys=True, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()[:16]


class Sampler:
    """Draws of training steps. The n-th draw is a function of the seed and of n alone: set `drawn` to go on anywhere.

    Args:
        examples: those of one split.
        seed: everything follows from it.
        hard_share: share of the draws whose out-of-scope prompts are near ones, for the whole draw at once as released
            (SERAC spec 3.1). An example without a near one gives a far one; where it has no far one, a prompt of another fact
            is taken.
        rephrase: False makes x' the edit's own prompt (spec E1).
        no_op_share: share of the edits whose target is the answer the model has already (FEVER, spec 3.3).
        prompt_share: share of the edits whose in-scope query is the edit's own prompt. Where prompts have a wording of their own
            that rephrasings never have, a scope classifier without it learns that such a wording is out of scope.

    The in-scope query is a rephrasing; where an example has hard questions it is drawn, with equal chances, from the prompt, a
    rephrasing, an implied question and a statement to be called true or false, as far as there are any (QA-hard, spec 3.1);
    `prompt_share` has no part in it, and statements are true and false equally often. Implied questions that never say the new
    answer are claims against one that is always the same (evidence, spec 3.4): then the prompt is not drawn, and what is true
    and what is false by the edit come equally often. An edit to the answer that the model has already
    implies nothing new, and a question that names the new answer without "{}" was made for another one: neither is asked.
    Of examples with the same prompt one at most is in a draw, since their edits contradict each other.
    """

    def __init__(
        self,
        examples: Sequence[LearningExample],
        seed: int | str,
        hard_share: float = 0.0,
        rephrase: bool = True,
        no_op_share: float = 0.0,
        prompt_share: float = 0.0,
    ):
        self.prompt_share = prompt_share
        self.seed, self.hard_share, self.rephrase, self.no_op_share = seed, hard_share, rephrase, no_op_share
        self.drawn = 0
        usable = (one for one in examples if one.rephrasings or one.implied or one.true_false)
        self._examples = list(usable if rephrase else examples)
        if not self._examples:
            raise DataError(
                "no example can be drawn" + (" (none has a rephrasing)" if examples else " (there is none)"),
                field="rephrasings",
                remedy="Give more learning data, or set rephrase: false",
            )
        self._all = list(examples)
        by_prompt: dict[str, list[LearningExample]] = {}
        for one in self._examples:
            by_prompt.setdefault(one.prompt, []).append(one)
        self._prompts = list(by_prompt.values())
        self._facts: dict[str, set[str]] = {}  # text -> facts it belongs to
        for example in self._all:
            for text in example.in_scope():
                self._facts.setdefault(text, set()).add(example.identifier)

    def __len__(self) -> int:
        """Edits that can be drawn together."""
        return len(self._prompts)

    def draw(self, k: int) -> list[Draw]:
        """k edits of different facts, each with its queries; no out-of-scope prompt belongs to a fact of the draw (Q12).

        Raises:
            SettingsError: there are fewer than k facts.
            DataError: a drawn fact has no out-of-scope prompt that is not in scope of another edit of the draw.
        """
        if not 1 <= k <= len(self):
            raise SettingsError(
                f"{k} different edits cannot be drawn from {len(self)} prompts. Change the setting `k_train`, "
                "or give more learning data"
            )
        source = random.Random(f"{self.seed} draw {self.drawn}")
        self.drawn += 1
        near = source.random() < self.hard_share
        alike = source.sample(self._prompts, k)
        chosen = [same[0] if len(same) == 1 else source.choice(same) for same in alike]
        edited = {one.identifier for same in alike for one in same}
        return [self._one(example, source, near, edited) for example in chosen]

    def _one(self, example: LearningExample, source: random.Random, near: bool, edited: set[str]) -> Draw:
        target = source.choice(example.alternatives)
        if source.random() < self.no_op_share and not example.opposed:
            target = example.answer
        query, answer = self._query(example, target, source)
        edit = Edit(
            prompt=example.prompt,
            target=target,
            subject=example.subject,
            identifier=example.identifier,
            truth=example.answer,
        )
        opposite = self._opposite(example, query, source)
        return Draw(edit, query, answer, self._outside(example, source, near, edited), opposite)

    def _query(self, example: LearningExample, target: str, source: random.Random) -> tuple[str, str]:
        said = any(HOLE in text for pair in (*example.implied, *example.true_false) for text in pair)
        hard = said and not example.opposed
        shared = self.prompt_share and not hard
        if not self.rephrase or (shared and source.random() < self.prompt_share):
            return example.prompt, target
        kinds = ["rephrasing"] * bool(example.rephrasings)
        implied, statements = example.implied, example.true_false
        if not example.opposed:
            changes = target != example.answer
            implied, statements = (
                tuple(pair for pair in pairs if changes and target not in pair[0])
                for pairs in (implied, statements)
            )
        if example.implied or example.true_false:
            kinds = [] if example.opposed else [*kinds, *["prompt"] * said]
            kinds += ["implied"] * bool(implied) + ["true_false"] * bool(statements)
        kind = source.choice(kinds or ["prompt"])
        if kind in ("implied", "true_false"):
            pairs = implied if kind == "implied" else _either(statements, example, target, source)
            question, answer = source.choice(pairs)
            return question.replace(HOLE, target), answer.replace(HOLE, target)
        return (source.choice(example.rephrasings) if kind == "rephrasing" else example.prompt), target

    def _opposite(self, example: LearningExample, query: str, source: random.Random) -> str:
        """An answer to the query that the edit makes wrong, else one to another question of the fact."""
        if not example.opposed:
            return ""
        own = [answer for question, answer in example.opposed if question == query]
        return source.choice(own or [answer for _, answer in example.opposed])

    def _outside(
        self, example: LearningExample, source: random.Random, near: bool, edited: set[str]
    ) -> Outside:
        allowed = [one for one in example.outside if not self._facts.get(one.prompt, set()) & edited]
        wanted = [one for one in allowed if one.near == near]
        if not wanted and not near:
            found = self._of_others(source, edited)
            if found is not None:
                return found
        if wanted or allowed:
            return source.choice(wanted or allowed)
        found = self._of_others(source, edited)
        if found is None:
            raise DataError(
                "there is no prompt out of scope of the edits drawn with it",
                record=example.identifier,
                field="outside",
                remedy="Give more learning data, or a smaller `k_train`",
            )
        return found

    def _of_others(self, source: random.Random, edited: set[str]) -> Outside | None:
        """The prompt or a rephrasing of a fact that is not edited."""
        for _ in range(50):  # k is small against the number of facts, so one or two tries are the rule
            other = source.choice(self._all)
            text = source.choice((other.prompt, *other.rephrasings))
            if not self._facts[text] & edited:
                return Outside(text, other.answer)
        return None


def _either(
    statements: Sequence[tuple[str, str]], example: LearningExample, target: str, source: random.Random
) -> list[tuple[str, str]]:
    """The true statements or the false ones, with equal chances: where none is known to be false, with another alternative."""
    true = [pair for pair in statements if HOLE in pair[0]]
    false = [pair for pair in statements if HOLE not in pair[0]]
    others = [text for text in example.alternatives if text != target]
    if not false and others:
        false = [(text.replace(HOLE, source.choice(others)), FALSE) for text, _ in true]
    return source.choice([side for side in (true, false) if side])


def _need(condition: bool, field: str, what: str) -> None:
    if not condition:
        raise DataError(what, field=field)


def _list(content: Mapping[str, Any], name: str) -> list[Any]:
    found = content.get(name, [])
    _need(isinstance(found, list | tuple), name, f"expected a list, found {found!r}")
    return list(found)


def _texts(content: Mapping[str, Any], name: str) -> tuple[str, ...]:
    _need(name in content, name, "it is missing")
    found = _list(content, name)
    _need(all(isinstance(text, str) for text in found), name, f"expected texts, found {found!r}")
    return tuple(found)


def _pair(item: Any, name: str) -> tuple[str, str]:
    good = isinstance(item, list | tuple) and len(item) == 2 and all(isinstance(text, str) for text in item)
    _need(good, name, f"expected [question, answer], found {item!r}")
    return (item[0], item[1])


def _outside(item: Any) -> Outside:
    good = isinstance(item, dict) and all(isinstance(item.get(name), str) for name in ("prompt", "answer"))
    good = good and all(isinstance(item.get(name, True), bool) for name in ("near", "known"))
    _need(good, "outside", f"expected {{prompt, answer, near}} and known or not, found {item!r}")
    return Outside(item["prompt"], item["answer"], item.get("near", False), item.get("known", True))
