"""GRACE's codebook: keys with a radius, a value and a label each, and the rules by which an edit changes them.

Hartvigsen et al. 2023 (arXiv 2211.11031), Algorithm 1; the numbers Q4 to Q7 are those of the list of quirks in
docs/spec/grace.md. With d the distance of a query q to its nearest key k*, r* that key's radius and
r_0 the initial radius:

    no key yet                                    init       (q, new value, r_0, label)
    d > r_0 + r*                                  add        (q, new value, r_0, label)
    else, same label, d > r*                      expand     r* := d  (`moving_average`: also k* := k*/2 + q/2)
    else, same label                              hit        nothing moves, the value is trained again
    else, other label                             split      a new entry at q; both radii shrink
    else, other label, q practically at k*        overwrite  label and value of k* are replaced (Q5)

Retrieval takes the nearest key when d <= r*. Only the nearest key is ever looked at.

`rules: official` is the released behaviour, for comparison: distances are those of a matrix product once there are many
keys (Q4), nothing is overwritten (Q5), labels are equal when their means are (Q6).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from palimpsest.editors.shared.nearest import nearest, squared_norms
from palimpsest.errors import EditError, PalimpsestError

INIT, ADD, EXPAND, HIT, SPLIT, OVERWRITE = "init", "add", "expand", "hit", "split", "overwrite"
ACTIONS = (INIT, ADD, EXPAND, HIT, SPLIT, OVERWRITE)
RELEASED = ("matrix_distance", "no_overwrite", "mean_labels")  # what `rules: official` does, one by one
GAP = 1e-5  # by which the older radius stays below half the distance (released code)


@dataclass(frozen=True)
class Match:
    """The nearest entry of each query (-1: none), its distance, and whether the query lies in its ball."""

    entry: Int[Tensor, " b"]
    distance: Float64[Tensor, " b"]
    fired: Bool[Tensor, " b"]


@dataclass
class Taught:
    """What an entry was taught.

    Attributes:
        label: what is compared to decide whether two edits want the same.
        text: the answer, for people.
        start: radius the entry was made with.
        edits: names of the edits that rely on the entry, in the order they were made.
        queries: where each of them asked [d_in]; only `forget` needs them.
    """

    label: tuple[int, ...]
    text: str
    start: float
    edits: list[str] = field(default_factory=list)
    queries: list[Tensor] = field(default_factory=list)

    def join(self, edit: str, query: Tensor) -> None:
        """Let an edit rely on the entry; made again, it asks from its new place."""
        if edit in self.edits:
            self.queries[self.edits.index(edit)] = query
        else:
            self.edits.append(edit)
            self.queries.append(query)

    def leave(self, edit: str) -> None:
        """Let an edit rely on the entry no longer."""
        place = self.edits.index(edit)
        del self.edits[place], self.queries[place]


@dataclass(frozen=True)
class Update:
    """What an edit did to the codebook: the action, the entry that is to be trained, and the way back."""

    action: str
    entry: int
    distance: float | None
    _count: int
    _before: tuple[int, Tensor, Tensor, float, Taught] | None
    _left: tuple[tuple[int, Taught], ...] = ()


@dataclass(frozen=True)
class Forgotten:
    """What taking an edit back did: entries that went with it, and entries kept because other edits rely on them."""

    deleted: int
    kept: int


class Codebook:
    """Entries (k_i [d_in], v_i [d_out], r_i, label), in the order they were made.

    Args:
        key_width, value_width: d_in and d_out of the edited linear map.
        rules: "corrected", "official", or one of `RELEASED`: corrected but for this.
        split: "capped" (radii never grow on a split, Q7) or "half" (both become half the distance, as published).
        expand: "coverage" or "moving_average".
        shortlist: False = every look-up computes the distances to all keys (`nearest`).
    """

    def __init__(
        self,
        key_width: int,
        value_width: int,
        rules: str = "corrected",
        split: str = "capped",
        expand: str = "coverage",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        shortlist: bool = True,
    ):
        self.rules, self.split, self.expand, self.shortlist = rules, split, expand, shortlist
        self.released = RELEASED if rules == "official" else (rules,)
        self._keys = torch.zeros(0, key_width, dtype=dtype, device=device)
        self._values = torch.zeros(0, value_width, dtype=dtype, device=device)
        self._radii = torch.zeros(0, dtype=torch.float64, device=device)
        self._squared = torch.zeros(0, dtype=dtype, device=device)
        self.taught: list[Taught] = []
        self.actions = dict.fromkeys(ACTIONS, 0)

    def __len__(self) -> int:
        return len(self.taught)

    @property
    def keys(self) -> Float[Tensor, "n d_in"]:
        """Keys, a view."""
        return self._keys[: len(self)]

    @property
    def values(self) -> Float[Tensor, "n d_out"]:
        """Values, a view: writing to it teaches."""
        return self._values[: len(self)]

    @property
    def radii(self) -> Float64[Tensor, " n"]:
        """Radii, a view."""
        return self._radii[: len(self)]

    # retrieval -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def look_up(self, queries: Float[Tensor, "b d_in"]) -> Match:
        """Nearest entry of each query, and whether it fires: d <= r, the border included."""
        if not len(self):
            none = torch.full((len(queries),), -1, device=queries.device)
            return Match(none, none.double().fill_(torch.inf), none.bool().fill_(False))
        queries = queries.to(self._keys.dtype)
        if "matrix_distance" in self.released:
            close, entry = torch.cdist(self.keys, queries).min(dim=0)
            return Match(entry, close.double(), close.double() <= self.radii[entry])
        entry, distance = nearest(self.keys, self._squared[: len(self)] if self.shortlist else None, queries)
        reach = self.radii[entry.clamp(min=0)]
        # In float64: a slack that overflows would let everything in. A radius below 0 (`no_overwrite`) answers nothing.
        allowed = reach + slack(reach, queries.double().norm(dim=1))
        return Match(entry, distance, (entry >= 0) & (reach >= 0) & (distance <= allowed))

    # edits -----------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def update(
        self,
        query: Float[Tensor, " d_in"],
        label: Sequence[int],
        radius: float,
        value: Callable[[], Tensor],
        edit: str,
        text: str = "",
    ) -> Update:
        """Make room for an edit by the table above, and say which entry is to be trained for it.

        Args:
            radius: r_0.
            value: gives the initial value [d_out]; called only when an entry is made or overwritten (Q20).

        Raises:
            EditError: the query is not finite; nothing has changed then.
        """
        query, label = query.detach().to(self._keys).clone(), tuple(label)
        if not torch.isfinite(query).all():
            raise EditError(f"the state that asks for {edit!r} is not finite")
        count = len(self)
        left: tuple[tuple[int, Taught], ...] = ()
        if not count:
            self._append(query, value(), Taught(label, text, radius, [edit], [query]))
            return self._done(INIT, 0, None, count, None)
        match = self.look_up(query[None])
        at, distance = int(match.entry[0]), float(match.distance[0])
        own, taught = float(self.radii[at]), self.taught[at]
        before = (at, self.keys[at].clone(), self.values[at].clone(), own, copy.deepcopy(taught))
        same = self._same(label, taught.label)
        at_key = distance <= max(2 * GAP, float(slack(0.0, query.double().norm())))
        if distance > radius + own:
            action = ADD
        elif same:
            action = HIT if bool(match.fired[0]) else EXPAND
        elif at_key and "no_overwrite" not in self.released:
            action = OVERWRITE
        else:
            action = SPLIT
        if action in (ADD, SPLIT, OVERWRITE):
            left = self._taught_again(edit, at)
        if action in (HIT, EXPAND):
            taught.join(edit, query)
            if action == EXPAND:
                self._grow(at, query, distance)
        elif action == OVERWRITE:
            self.values[at] = value().to(self._values)
            self.taught[at] = Taught(label, text, taught.start, [edit], [query])
        else:
            if action == SPLIT:
                capped = self.split == "capped"
                self._radii[at] = min(own, distance / 2 - GAP) if capped else distance / 2 - GAP
                radius = min(radius, distance / 2) if capped else distance / 2
            self._append(query, value(), Taught(label, text, radius, [edit], [query]))
            at = count
        return self._done(action, at, distance, count, before, left)

    def revert(self, update: Update) -> None:
        """Take the latest update back, for an edit that failed after it."""
        self.actions[update.action] -= 1
        del self.taught[update._count :]
        if update._before is not None:
            at, key, value, radius, taught = update._before
            self._keys[at], self._values[at], self._radii[at] = key, value, radius
            self._squared[at] = key.square().sum()
            self.taught[at] = taught
        for number, shared in update._left:
            self.taught[number] = shared

    def delete(self, entry: int) -> None:
        """Delete one entry; the others keep keys, values, radii and order."""
        last = len(self) - 1
        for table in (self._keys, self._values, self._radii, self._squared):
            table[entry:last] = table[entry + 1 : last + 1].clone()
        del self.taught[entry]

    def forget(self, edit: str, text: str | None = None) -> Forgotten:
        """Take an edit back: the latest of this name, or with `text` the latest that taught this answer.

        An entry that only this edit relies on is deleted. An entry that others share stays for them where it is: its
        ball shrinks to what they need, and never grows. It may still cover the prompt of the edit that goes, as it would
        if that edit had never been made.

        Raises:
            PalimpsestError: no entry holds this edit.
        """
        holding = [
            number
            for number, taught in enumerate(self.taught)
            if edit in taught.edits and text in (None, taught.text)
        ][-1:]
        if not holding:
            raise PalimpsestError(
                f"no entry of the codebook holds the edit {edit!r} (it holds {len(self)} entries). Either it was not "
                "made, or a later edit with another target at the same place has replaced it"
            )
        number = holding[0]
        if len(self.taught[number].edits) == 1:
            self.delete(number)
            return Forgotten(deleted=1, kept=0)
        self._leave(number, edit)
        return Forgotten(deleted=0, kept=1)

    def _leave(self, number: int, edit: str) -> None:
        taught, radius = self.taught[number], float(self.radii[number])
        taught.leave(edit)
        members = torch.stack(taught.queries).double() - self.keys[number].double()
        needed = float(members.norm(dim=1).max())
        # A radius that splits have cut stays cut, and the key stays: around it the neighbours' radii were chosen.
        self._radii[number] = min(radius, max(needed, taught.start))

    def _taught_again(self, edit: str, nearest: int) -> tuple[tuple[int, Taught], ...]:
        """An edit that gets an entry of its own no longer relies on one it shared: as it was, to be put back."""
        shared = [
            number
            for number, taught in enumerate(self.taught)
            if edit in taught.edits and len(taught.edits) > 1
        ]
        left = tuple((number, copy.deepcopy(self.taught[number])) for number in shared if number != nearest)
        for number in shared:
            self.taught[number].leave(edit)
        return left

    def _grow(self, at: int, query: Tensor, distance: float) -> None:
        if self.expand == "moving_average":
            self._move(at, 0.5 * self.keys[at] + 0.5 * query)
        self._radii[at] = distance

    def _move(self, at: int, key: Tensor) -> None:
        self._keys[at] = key
        self._squared[at] = self._keys[at].square().sum()

    def _append(self, key: Tensor, value: Tensor, taught: Taught) -> None:
        count = len(self)
        if count == len(self._keys):  # twice the room: adding n entries copies fewer than 2 n
            room = max(16, 2 * count)
            for name in ("_keys", "_values", "_radii", "_squared"):
                old = getattr(self, name)
                new = old.new_zeros((room, *old.shape[1:]))
                new[:count] = old
                setattr(self, name, new)
        self._values[count] = value.detach().to(self._values)
        self._radii[count] = taught.start
        self._move(count, key)
        self.taught.append(taught)

    def _done(
        self,
        action: str,
        entry: int,
        distance: float | None,
        count: int,
        before: tuple[int, Tensor, Tensor, float, Taught] | None,
        left: tuple[tuple[int, Taught], ...] = (),
    ) -> Update:
        self.actions[action] += 1
        return Update(action, entry, distance, count, before, left)

    def _same(self, label: tuple[int, ...], other: tuple[int, ...]) -> bool:
        if "mean_labels" in self.released:  # means of the label tensors, in their precision (Q6)
            means = [torch.tensor(entry, dtype=torch.float32).mean() for entry in (label, other)]
            return bool(means[0] == means[1])
        return label == other

    # keeping ---------------------------------------------------------------------------------------------------------

    def bytes(self) -> int:
        """Bytes that answering needs: keys, values and radii."""
        return sum(tensor.nbytes for tensor in (self.keys, self.values, self.radii))

    def tensors(self) -> dict[str, Tensor]:
        """Keys, values, radii, and the queries of all edits, entry by entry: copies."""
        queries = [query for taught in self.taught for query in taught.queries]
        return {
            "keys": self.keys.clone(),
            "values": self.values.clone(),
            "radii": self.radii.clone(),
            "queries": torch.stack(queries) if queries else self._keys[:0].clone(),
        }

    def plain(self) -> dict[str, Any]:
        """Labels, texts, names of edits and counts, as JSON can hold them."""
        entries = [
            {"label": list(t.label), "text": t.text, "start": t.start, "edits": list(t.edits)}
            for t in self.taught
        ]
        return {"entries": entries, "actions": dict(self.actions)}

    def load(self, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        """Take over what `tensors` and `plain` gave.

        Raises:
            PalimpsestError: the parts do not fit together, or have other widths; the codebook is as before then.
        """
        entries = plain["entries"]
        held = sum(len(entry["edits"]) for entry in entries)
        expected = {
            "keys": (len(entries), self._keys.shape[1]),
            "values": (len(entries), self._values.shape[1]),
            "radii": (len(entries),),
            "queries": (held, self._keys.shape[1]),
        }
        for name, shape in expected.items():
            found = tuple(tensors[name].shape) if name in tensors else None
            if found != shape:
                raise PalimpsestError(
                    f"the saved codebook has {name} of shape {found}, but shape {shape} is expected here. "
                    "Load it with the model, layer and site it was saved from"
                )
        self._keys, self._values = (tensors[n].to(self._keys, copy=True) for n in ("keys", "values"))
        self._radii = tensors["radii"].to(self._radii, copy=True)
        self._squared = squared_norms(self._keys)
        queries = iter(tensors["queries"].to(self._keys, copy=True))
        asked = [[next(queries) for _ in e["edits"]] for e in entries]
        self.taught = [
            Taught(tuple(e["label"]), e["text"], e["start"], list(e["edits"]), own)
            for e, own in zip(entries, asked, strict=True)
        ]
        self.actions = dict.fromkeys(ACTIONS, 0) | plain["actions"]

    def clear(self) -> None:
        """Forget everything."""
        self.taught.clear()
        self.actions = dict.fromkeys(ACTIONS, 0)


def slack(radius: Any, norm: Any) -> Any:
    """What rounding may add to a distance (Q4; the query's length is ours: digits of long vectors are coarser)."""
    return 1e-6 * (1.0 + radius + norm)
