"""How much is retained: (prompt, answer) pairs that are asked again and again of a model that is being edited.

TRR, ERR, hold-out and ARR of GRACE (section 4) are means of these scores over upstream, all edits so far, held-out phrasings
and accurate sentences. What no edit can change is run once: rows are encoded and the blocks below the first edited one
are run when a pool of pairs is first asked, and kept between looks (`models/upper.py`). This is exact: the same
rows as asking the whole model, which is what happens when nobody knows which blocks an editor changes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor

from palimpsest.errors import SettingsError
from palimpsest.metrics.said import accuracy, exact, perplexity, squad_f1, token_f1
from palimpsest.metrics.scores import mean
from palimpsest.metrics.unedited import Unedited
from palimpsest.models.batching import Batching
from palimpsest.models.greedy import Said
from palimpsest.models.loading import LanguageModel
from palimpsest.models.objectives import (
    Inputs,
    encode,
    encode_prompts_only,
    row_losses,
    say_rows,
    wanted,
    without_end,
)
from palimpsest.models.upper import Upper, bytes_of_upper

# Task -> the score that its tables show, and the kinds of model that can do it.
MAIN_SCORE = {"qa": "token_f1", "classification": "accuracy", "generation": "perplexity"}
KINDS = {"qa": ("encoder_decoder", "decoder"), "classification": ("encoder",), "generation": ("decoder",)}


@dataclass(frozen=True)
class Scores:
    """What one pair scored.

    Attributes:
        values: score by name; None where it was not a number (a perplexity of NaN).
        right: whether the answer was said; None where nothing was said (generation is judged by its loss).
    """

    values: dict[str, float | None]
    right: bool | None = None


@dataclass
class Asking:
    """How a model is asked.

    Attributes:
        model: the model, edited or not.
        task: "qa" (what is said, as token ids and as words), "classification" (the class), "generation" (perplexity of the
            answer given the prompt, its end token left out as in GRACE's released code).
        lowest: the first block that an edit can change; None = not known, so that every look runs the whole model.
        batching: how rows share a pass.
        site: the one linear map of `lowest` whose output is all that an edit changes; None = not known.
        deciding: `Editor.deciding` of an editor that has its own. A pair about which the editor decides as at the last look is
            not asked again, since its answer cannot have changed; None = every pair is asked at every look. Not for
            generation: a perplexity's last digits depend on what it shares a pass with, and a run that goes on from a
            checkpoint must give the same rows.
        said_tokens: an encoder-decoder says at most so many tokens. A decoder says as many as the answer has and is judged
            on these, without an end token, since not every decoder learned to end.
        room: bytes that are left for states at `lowest` and what goes with them, which are kept between looks; when it is used
            up, those of further rows are run again at each look. Beside them lie, once for a model, the weights that lean
            rows write out (models/lean.py).
        unedited: where the answers of the unedited model are kept for other runs; None = they are not.
        cached: a decoder keeps keys and values from token to token. False for methods that decide over the whole row
            (COMEBA-HK): they run it again for each token.
    """

    model: LanguageModel
    task: str
    lowest: int | None = None
    batching: Batching = field(default_factory=Batching)
    site: str | None = None
    deciding: Callable[[Upper], Callable[[Sequence[int]], Tensor] | None] | None = None
    said_tokens: int = 19
    room: int = 1 << 30
    cached: bool = True
    unedited: Unedited | None = None

    def __post_init__(self) -> None:
        """Refuse a task that is none, or that the model cannot do."""
        if self.task not in KINDS:
            raise SettingsError(f"there is no task {self.task!r} (there are: {', '.join(KINDS)})")
        if self.model.kind not in KINDS[self.task]:
            raise SettingsError(
                f"the task {self.task} needs a model of kind {' or '.join(KINDS[self.task])}, but {self.model.name} is of kind "
                f"{self.model.kind}. Choose another model or another task"
            )

    def reserve(self, inputs: Inputs) -> bool:
        """Take what keeping these rows needs off the `room`; False, and nothing taken, where there is not enough."""
        if self.lowest is None:
            return False
        size = bytes_of_upper(self.model, inputs, self.lowest, self.site)
        if size > self.room:
            return False
        self.room -= size
        return True


@dataclass
class _Group:
    """Rows that share a pass."""

    places: list[int]
    inputs: Inputs
    wanted: list[Said]
    kept: bool  # its `upper` stays between looks
    upper: Upper | None = None
    asked_deciding: bool = False  # whether `decided` is known
    decided: Callable[[Sequence[int]], Tensor] | None = None  # see `Editor.deciding`
    decisions: dict[int, Tensor] = field(default_factory=dict)  # by row, as they were when it was last asked
    scores: dict[int, Scores] = field(default_factory=dict)


class Pool:
    """Pairs that are asked together, in the same batches at every look.

    Raises DataError (from `encode`) for an empty prompt or answer, a class the model does not have, or a text that is
    too long.
    """

    def __init__(self, asking: Asking, pairs: Sequence[tuple[str, str]]):
        self.asking, self.pairs = asking, list(pairs)
        self._groups = list(self._encoded())
        self._at = {
            place: (number, row)
            for number, group in enumerate(self._groups)
            for row, place in enumerate(group.places)
        }

    def __len__(self) -> int:
        return len(self.pairs)

    @torch.no_grad()
    def ask(self, places: Iterable[int] | None = None) -> list[Scores]:
        """Scores of the pairs at these places (default: all), in their order, by the model as it is now."""
        chosen = list(range(len(self.pairs)) if places is None else places)
        rows: dict[int, list[int]] = defaultdict(list)
        for place in sorted(set(chosen)):
            number, row = self._at[place]
            rows[number].append(row)
        found: dict[int, Scores] = {}
        for number in sorted(rows):
            group = self._groups[number]
            mine = sorted(rows[number])
            found |= dict(zip((group.places[row] for row in mine), self._scores(group, mine), strict=True))
        return [found[place] for place in chosen]

    @torch.no_grad()
    def ask_unedited(self) -> list[Scores]:
        """`ask` all pairs while the model is unedited, or take what it answered another run."""
        asking = self.asking
        if asking.unedited is None:
            return self.ask()
        how = {name: getattr(asking, name) for name in ("task", "lowest", "site", "said_tokens", "cached")}
        found = asking.unedited.answers(
            asking.model, self.pairs, asking.batching, how, (__name__,), self.ask, _plain, _read
        )
        for group in self._groups:
            rows = list(range(len(group.places)))
            now = self._decisions(group, rows)
            if now is not None:
                group.scores |= {row: found[place] for row, place in enumerate(group.places)}
                group.decisions |= now
        return found

    @torch.no_grad()
    def says_right(self, place: int) -> bool:
        """Whether the model says this answer by itself: `ask` tells for the other tasks, this for generation too."""
        asking, (number, row) = self.asking, self._at[place]
        group = self._groups[number]
        goals = [group.wanted[row]]
        (said,) = self._said(group, [row], _tokens_to_say(asking, goals))
        return bool(_compared(asking, said, goals[0]).right)

    def _encoded(self) -> Iterable[_Group]:
        asking = self.asking
        model, task = asking.model, asking.task
        if not self.pairs:
            return
        texts = [f"{prompt} {answer}" if task == "generation" else prompt for prompt, answer in self.pairs]
        lengths = [len(ids) for ids in model.tokenizer(texts)["input_ids"]]
        for places in asking.batching.groups(lengths):
            prompts = [self.pairs[place][0] for place in places]
            answers = [self.pairs[place][1] for place in places]
            goals = wanted(model, answers)
            inputs = (
                without_end(encode(model, prompts, answers))
                if task == "generation"
                else encode_prompts_only(model, prompts)
            )
            # Now, in the order of the groups: a run that goes on from a checkpoint asks in another order, and keeps the same.
            yield _Group(places, inputs, goals, asking.reserve(inputs))

    def _scores(self, group: _Group, rows: list[int]) -> list[Scores]:
        """Scores of some rows; those are asked about which the editor decides otherwise than when they were last asked."""
        now, known = self._decisions(group, rows), group.decisions
        if now is None:
            return self._judge(group, rows)
        changed = [row for row in rows if row not in known or not torch.equal(known[row], now[row])]
        if changed:
            group.scores |= dict(zip(changed, self._judge(group, changed), strict=True))
            known |= {row: now[row] for row in changed}
        return [group.scores[row] for row in rows]

    def _decisions(self, group: _Group, rows: list[int]) -> dict[int, Tensor] | None:
        """What the editor decides now about some rows; None where that does not tell whether an answer is the same."""
        asking = self.asking
        if (
            asking.deciding is None
            or asking.lowest is None
            or not asking.cached
            or asking.task == "generation"
        ):
            return None
        if (
            not group.asked_deciding
        ):  # once: for rows that are not kept it costs a pass over all rows of the group
            upper = self._upper(group, list(range(len(group.places))))
            group.decided = None if upper is None else asking.deciding(upper)
            group.asked_deciding = True
        return None if group.decided is None else dict(zip(rows, group.decided(rows), strict=True))

    def _judge(self, group: _Group, rows: list[int]) -> list[Scores]:
        asking, goals = self.asking, [group.wanted[row] for row in rows]
        if asking.task == "generation":
            return [Scores({"perplexity": perplexity(loss)}) for loss in self._losses(group, rows)]
        said = self._said(group, rows, _tokens_to_say(asking, goals))
        return [_compared(asking, one, goal) for one, goal in zip(said, goals, strict=True)]

    def _losses(self, group: _Group, rows: list[int]) -> list[float]:
        upper = self._upper(group, rows)
        if upper is None:
            losses = row_losses(self.asking.model, _only(group.inputs, rows))
        else:
            losses = upper.row_losses()
        return [float(loss) for loss in losses.double().cpu()]

    def _said(self, group: _Group, rows: list[int], tokens: int) -> list[Said]:
        model, cached = self.asking.model, self.asking.cached
        upper = self._upper(group, rows) if cached else None
        return (
            upper.say(tokens)
            if upper is not None
            else say_rows(model, _only(group.inputs, rows), tokens, cached)
        )

    def _upper(self, group: _Group, rows: list[int]) -> Upper | None:
        """The rows standing below the first block that can have changed; None when that block is not known."""
        asking = self.asking
        if asking.lowest is None:
            return None
        if not group.kept:
            return Upper(asking.model, _only(group.inputs, rows), asking.lowest, asking.site)
        if group.upper is None:
            group.upper = Upper(asking.model, group.inputs, asking.lowest, asking.site)
        return group.upper if len(rows) == len(group.places) else group.upper.rows(rows)


def _plain(found: Sequence[Scores]) -> dict[str, list[Any]]:
    # Pairs, since JSON's names are sorted and rows keep the order of these.
    return {"values": [list(one.values.items()) for one in found], "right": [one.right for one in found]}


def _read(content: dict[str, Any]) -> list[Scores]:
    return [
        Scores(
            {str(name): None if value is None else float(value) for name, value in values},
            None if right is None else bool(right),
        )
        for values, right in zip(content["values"], content["right"], strict=True)
    ]


def averages(scores: Sequence[Scores]) -> list[tuple[str, float, int]]:
    """(metric, value, number of pairs) of every score; a perplexity has its median and the number of dropped ones too."""
    rows: list[tuple[str, float, int]] = []
    for name in dict.fromkeys(name for one in scores for name in one.values):
        found = [value for one in scores if (value := one.values[name]) is not None]
        if found:
            rows.append((name, mean(found), len(found)))
        if name == "perplexity":
            rows += [("perplexity_median", median(found), len(found))] if found else []
            rows.append(("perplexity_dropped", float(len(scores) - len(found)), len(scores)))
    return rows


def _only(inputs: Inputs, rows: list[int]) -> Inputs:
    return inputs if len(rows) == len(inputs) else inputs.rows(rows)


def _tokens_to_say(asking: Asking, goals: Sequence[Said]) -> int:
    if asking.model.kind != "decoder":
        return asking.said_tokens
    return max(len(_without_end(asking, goal.ids)) for goal in goals)


def _judged(asking: Asking, ids: Sequence[int], goal: Said) -> tuple[int, ...]:
    """The ids that count: of a decoder, as many as the answer has without its end."""
    if asking.model.kind != "decoder":
        return tuple(ids)
    return tuple(ids)[: len(_without_end(asking, goal.ids))]


def _without_end(asking: Asking, ids: Sequence[int]) -> tuple[int, ...]:
    end = asking.model.tokenizer.eos_token_id
    return tuple(ids[:-1]) if ids and ids[-1] == end else tuple(ids)


def _compared(asking: Asking, said: Said, goal: Said) -> Scores:
    if asking.task == "classification":
        score = accuracy(said.ids, goal.ids)
        return Scores({"accuracy": score}, right=score == 1.0)
    tokenizer = asking.model.tokenizer
    ids, goal_ids, text = said.ids, goal.ids, said.text
    if asking.model.kind == "decoder":
        ids, goal_ids = _judged(asking, said.ids, goal), _without_end(asking, goal.ids)
        text = tokenizer.decode(list(ids), skip_special_tokens=True)
    right = exact(ids, goal_ids, tokenizer.eos_token_id)
    values: dict[str, float | None] = {
        "token_f1": token_f1(ids, goal_ids),
        "squad_f1": squad_f1(text, goal.text),
        "exact_match": float(right),
    }
    return Scores(values, right)
