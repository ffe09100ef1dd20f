"""GRACE: a codebook beside one linear map (Hartvigsen et al. 2023; arXiv 2211.11031 v5, section 3 and Algorithm 1).

An edit's state q at the asking position becomes a key with a radius, or is joined to one (`shared/codebook.py`); its
value v is trained so that the model, with v in place of the linear map's output at the chosen positions, gives the
target: Adam on the model's own loss, and on nothing but v. Afterwards any input whose state lies within the radius of
its nearest key gets that key's value; every other input passes through untouched. Base weights never change.

`compat: official` is the released behaviour where it differs (spec: docs/spec/grace.md, section 6): a decoder is asked at the
first target token and never learns to end (Q1), so that edits do not fire in free generation (Q2); distances by matrix
product (Q4); a new target at the same place loses both edits (Q5); labels are compared by their means (Q6); with one
step, later passes add keys (Q8), here with the layer's own output as their value. Not imitated: failures in batches (Q9),
the training flag (Q19), random numbers drawn by every pass (Q20), and where a passage or a document is asked in
evaluation: upstream passages here at the end of their first words (there at the end of the text), documents at [SEP]
(there at position 511, often padding). Radii from `radius_ratio` are measured at the last prompt token in both forms.
`compat` can name one of these alone: `first_target` (Q1 and so Q2), `edit_always` (Q3), `matrix_distance` (Q4), `no_overwrite`
(Q5), `mean_labels` (Q6); Q7 is `split: half`, and Q8 does nothing with more than one step.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from palimpsest.editors.base import EditorState, edit_name, require
from palimpsest.editors.shared.adapter_editor import AdapterEditor, AdapterSettings
from palimpsest.editors.shared.codebook import RELEASED, Codebook, Forgotten, Update
from palimpsest.editors.shared.gated_adapter import Override, Query
from palimpsest.editors.shared.nearest import measure_neighbours
from palimpsest.editors.shared.values_ahead import ValuesAhead, alike, own_start, train_together
from palimpsest.edits import Edit
from palimpsest.errors import EditError, SettingsError
from palimpsest.models.batching import Batching
from palimpsest.models.loading import LanguageModel
from palimpsest.models.objectives import NONE, Inputs, encode, encode_prompts_only, without_end
from palimpsest.models.upper import Upper

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings(AdapterSettings):
    """Hyper-parameters; defaults are those for T5-small on zsRE (spec 2.1).

    Attributes:
        radius: eps_init, radius of a new key, in units of the states at this layer; null with `radius_ratio`.
        radius_ratio: the radius as a share of the median distance between a prompt and its nearest neighbour, over
            the prompts given to `Grace.calibrate`. Radii do not transfer between layers or models, this ratio does.
        initial: where a value starts: "cold", uniform in [0, 1), or "warm", the linear map's own output.
        expand: "coverage" (the ball reaches the new query) or "moving_average" (the key moves half-way as well).
        split: "capped" (a split never makes a radius larger) or "half" (both become half the distance, as published).
        compat: "corrected", "official", or one behaviour of the released code alone, see the head of this file.
    """

    radius: float | None = 1.0
    radius_ratio: float | None = None
    initial: str = "cold"
    expand: str = "coverage"
    split: str = "capped"
    compat: str = "corrected"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("radius", "radius_ratio"):
            value = getattr(self, name)
            allowed = value is None or (math.isfinite(value) and value > 0)
            require(allowed, name, value, "must be positive")
        one = (self.radius is None) != (self.radius_ratio is None)
        require(one, "radius", self.radius, "give radius or radius_ratio, and null for the other")
        for name, known in (
            ("initial", ("cold", "warm")),
            ("expand", ("coverage", "moving_average")),
            ("split", ("capped", "half")),
            ("compat", ("corrected", "official", "first_target", "edit_always", *RELEASED)),
        ):
            require(getattr(self, name) in known, name, getattr(self, name), " or ".join(known))
        halves = self.compat != "official" or self.split == "half"
        require(halves, "split", self.split, "the released code splits in half; set split: half")


class Grace(AdapterEditor):
    """A codebook that grows with the stream.

    Attributes:
        codebook: keys, values, radii, and what each entry was taught.
        radius: eps_init in use; None until `calibrate`, where the settings give a ratio.
        initial_values: initial values [d_out] passed in, by the name of the edit.
    """

    name = "grace"
    settings_type = Settings
    identity_fields = (
        "layer", "site", "replacement", "compat", "radius", "radius_ratio", "split", "expand",
    )  # fmt: skip
    settings: Settings

    def __init__(self, model: LanguageModel, settings: Settings, statistics: Any = None, seed: int = 0):
        super().__init__(model, settings, statistics, seed)
        self.official = settings.compat == "official"
        self.edits_everything = self._as_released("edit_always") and model.kind == "encoder_decoder"  # Q3
        self.adapter.shift = int(self._as_released("first_target") and model.kind == "decoder")  # Q1
        rules = (settings.compat, settings.split, settings.expand)
        widths = (self.adapter.key_width, self.adapter.value_width)
        self.codebook = Codebook(*widths, *rules, self.wide, model.device, shortlist=model.lean)
        self._forget_calibration()
        self._fresh()

    def _as_released(self, behaviour: str) -> bool:
        return self.settings.compat in ("official", behaviour)

    def _forget_calibration(self) -> None:
        self.radius = self.settings.radius
        self.neighbour_distance: float | None = None

    def _fresh(self) -> None:
        self.codebook.clear()
        self.initial_values: dict[str, Tensor] = {}
        self._last_label: tuple[int, ...] = ()
        self._ahead, self._start_seed = ValuesAhead(), self.seed

    # the radius --------------------------------------------------------------------------------------------------------

    def calibrate(self, prompts: Sequence[str]) -> float:
        """Set the radius from `radius_ratio`; call it before the first edit, with prompts that are not edited.

        With a `radius` in the settings nothing is measured.

        Returns:
            The radius in use, in units of the states at this layer.

        Raises:
            PalimpsestError: there are edits already.
            SettingsError: fewer than two different prompts, or all of them have one state.
        """
        ratio = self.settings.radius_ratio
        if ratio is None:
            assert self.settings.radius is not None
            return self.settings.radius
        self.neighbour_distance, different = measure_neighbours(
            self.name,
            self.radius,
            len(self.codebook),
            prompts,
            self.queries,
            f"the states of {{}} prompts at layer {self.settings.layer} are the same: they cannot be told apart there. "
            "Choose another layer or site, or give an absolute `radius`",
        )
        self.radius = ratio * self.neighbour_distance
        log.info(
            "%s: radius %.6g = %g x %.6g, the median distance of %d prompts to their nearest neighbour at layer %d",
            self.name,
            self.radius,
            ratio,
            self.neighbour_distance,
            different,
            self.settings.layer,
        )
        return self.radius

    def queries(self, prompts: Sequence[str], batching: Batching | None = None) -> Float[Tensor, "n d_in"]:
        """States [n, d_in] with which prompts ask the codebook, in their order; no edit changes them."""
        inputs = encode_prompts_only(self.model, prompts)
        states = torch.empty(len(prompts), self.adapter.key_width, dtype=self.wide, device=self.model.device)
        for group in (batching or Batching()).groups(inputs.padding.sum(dim=1).tolist()):
            states[group] = self.adapter.query(inputs.rows(group)).states.to(self.wide)
        return states

    # one edit ----------------------------------------------------------------------------------------------------------

    def _teach(self, edit: Edit, record: dict[str, Any] | None) -> None:
        if self.radius is None:
            raise SettingsError(
                f"{self.name} has radius_ratio {self.settings.radius_ratio}, but no distances were measured. "
                "Call calibrate(prompts) before the first edit"
            )
        inputs = encode(self.model, [edit.prompt], [edit.target])
        query, label = self.adapter.query(inputs), self._label(inputs)
        update, entry = self._make_room(edit, query.states[0], query.outputs[0], label)
        losses = list[float]()
        try:
            if entry >= 0:
                value = self.codebook.values[entry].clone()
                ahead = self._ahead.take(edit, value)
                if ahead is None:
                    losses = self._train(value, inputs)
                else:
                    value, losses = ahead.value, ahead.losses.tolist()
                self.codebook.values[entry] = value.detach()
        except BaseException:  # an interrupt too must not leave half an edit behind
            self.codebook.revert(update)
            raise
        self._last_label = label
        if record is not None:
            note: dict[str, Any] = {"edit": edit_name(edit), "action": update.action, "key": entry}
            note |= {"distance": update.distance, "losses": losses}
            note["radius"] = float(self.codebook.radii[entry]) if entry >= 0 else None
            record.setdefault("edits", []).append(note)

    def _make_room(
        self, edit: Edit, state: Tensor, output: Tensor, label: tuple[int, ...]
    ) -> tuple[Update, int]:
        """What an edit does to the codebook, and the entry to train for it (-1: none), given what its prompt asks."""
        assert self.radius is not None
        name = edit_name(edit)
        update = self.codebook.update(
            state, label, self.radius, lambda: self._initial(name, output), name, edit.target
        )
        if not self._as_released("no_overwrite"):
            return update, update.entry
        match = self.codebook.look_up(state[None])  # what answers is trained; at an old place nothing does
        return update, int(match.entry[0]) if bool(match.fired[0]) else -1

    def prepare(self, coming: Sequence[Edit]) -> None:
        """Train the values of edits that will probably come next together (`shared/values_ahead.py`)."""
        self._ahead.clear()
        usable, _ = self._check(coming)
        if self.radius is None or self.settings.stop_loss is not None or len(usable) < 2:
            return
        inputs = encode(self.model, [edit.prompt for edit in usable], [edit.target for edit in usable])
        query, rows, starts = self.adapter.query(inputs), list[int](), list[Tensor]()
        for row, edit in enumerate(usable):
            label = self._label(inputs.rows([row]))
            try:
                update, entry = self._make_room(edit, query.states[row], query.outputs[row], label)
            except EditError:  # it will be said when the edit is made
                continue
            if entry >= 0:
                rows.append(row)
                starts.append(self.codebook.values[entry].clone())
            self.codebook.revert(update)
        lengths = inputs.padding.sum(dim=1).tolist()
        for group in alike([lengths[row] for row in rows]):
            chosen = [rows[place] for place in group]
            begin, upper = torch.stack([starts[place] for place in group]), self._upper(inputs.rows(chosen))
            trained = train_together(
                self.adapter, upper, begin, self.settings.steps, self.settings.learning_rate
            )
            for row, one in zip(chosen, trained, strict=True):
                if one is not None:
                    self._ahead.put(usable[row], one)

    def _train(self, value: Tensor, inputs: Inputs) -> list[float]:
        """Adam on one value [d_out], in place; the losses."""
        upper = self._upper(inputs)
        self.adapter.fixed = value.requires_grad_(True)
        try:
            return self.minimise([value], lambda: upper.row_losses().mean())
        finally:
            self.adapter.fixed = None

    def _upper(self, inputs: Inputs) -> Upper:
        if self._as_released("first_target") and self.model.kind == "decoder":
            inputs = without_end(inputs)
        return Upper(self.model, inputs, self.settings.layer, self.settings.site)

    def _label(self, inputs: Inputs) -> tuple[int, ...]:
        """What says whether two edits want the same: the target's tokens; as released, with the masked prompt's too."""
        target = tuple(token for token in inputs.targets[0].tolist() if token != NONE)
        if self._as_released("mean_labels") and self.model.kind == "decoder":  # prompt and end are masked
            return (*[NONE] * (int(inputs.query[0]) + 1), *target[:-1], NONE)
        return target

    def _initial(self, name: str, output: Tensor) -> Tensor:
        passed = self.initial_values.get(name)
        if passed is not None:
            return passed.to(device=self.model.device, dtype=self.wide)
        if self.settings.initial == "warm":
            return output.to(self.wide)
        drawn = own_start(self._start_seed, name, self.adapter.value_width)
        return drawn.to(device=self.model.device, dtype=self.wide)

    def start_from(self, values: Mapping[str, Tensor]) -> None:
        """Pass in initial values [d_out] by the name of the edit (its identifier, or its prompt).

        They are used when the edit makes an entry; an edit that joins one goes on from that entry's value.

        Raises:
            SettingsError: a value has another width or is not finite; none is taken then.
        """
        width = self.adapter.value_width
        for name, value in values.items():
            if tuple(value.shape) != (width,) or not torch.isfinite(value).all():
                raise SettingsError(
                    f"the initial value of edit {name!r} must be {width} finite numbers (the width of the output of "
                    f"layer {self.settings.layer}, {self.settings.site}), not of shape {tuple(value.shape)}"
                )
        self.initial_values |= {name: value.detach().clone() for name, value in values.items()}

    # every pass --------------------------------------------------------------------------------------------------------

    def _decide(self, query: Query) -> Override | None:
        if not len(self.codebook):
            return None
        if self.official and self.settings.steps == 1 and self.radius is not None:  # Q8
            for state, output in zip(query.states, query.outputs, strict=True):
                own = output.detach().to(self.wide)
                self.codebook.update(state, self._last_label, self.radius, own.clone, "(a later pass)")
        match = self.codebook.look_up(query.states)
        if not bool(match.fired.any()):
            return None
        return Override(match.fired, self.codebook.values[match.entry.clamp(min=0)])

    def deciding(self, rows: Upper) -> Callable[[Sequence[int]], Tensor] | None:
        """As all adapters; not where asking itself adds keys (Q8)."""
        return None if self.official and self.settings.steps == 1 else super().deciding(rows)

    def keyed(self) -> Grace:
        """Itself."""
        return self

    def inspect(
        self, prompts: str | Sequence[str], subjects: Sequence[str | None] | None = None
    ) -> list[dict[str, Any]]:
        """What the codebook decides for each prompt; subjects mean nothing to it.

        Returns:
            For each prompt a dict of `prompt`; `fired`, whether a key answers; `key`, the number of the nearest one (None
            while there is none), and of it `distance` and `radius` (in units of the states at this layer), `taught`, the
            answer, and `edits`, the names of those that rely on it, oldest first.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not prompts:
            return []
        match, found = self.codebook.look_up(self.queries(prompts)), []
        rows = zip(prompts, match.entry.tolist(), match.distance.tolist(), match.fired.tolist(), strict=True)
        for prompt, entry, distance, fired in rows:
            row: dict[str, Any] = {"prompt": prompt, "fired": fired}
            row |= dict.fromkeys(("key", "distance", "radius", "taught"), None) | {"edits": []}
            if entry >= 0:
                taught, radius = self.codebook.taught[entry], float(self.codebook.radii[entry])
                row |= {"key": entry, "distance": distance, "radius": radius}
                row |= {"taught": taught.text, "edits": list(taught.edits)}
            found.append(row)
        return found

    def undo(self, edit: Edit | str) -> Forgotten:
        """Take one edit back; all others stay as they are.

        Given by its name (its identifier, or its prompt), the latest of that name goes; given as an `Edit`, the latest that
        taught its target. An entry that other edits share is kept for them (`Codebook.forget`).

        Raises:
            PalimpsestError: the codebook holds no such edit; nothing has changed then.
        """
        name, target = (edit, None) if isinstance(edit, str) else (edit_name(edit), edit.target)
        return self.codebook.forget(name, target)

    # keeping -----------------------------------------------------------------------------------------------------------

    def _give(self) -> EditorState:
        passed = {f"initial.{name}": value for name, value in self.initial_values.items()}
        measured = {"radius": self.radius, "neighbour_distance": self.neighbour_distance}
        more = {"last_label": list(self._last_label), "ahead": self._ahead.plain(), "seed": self._start_seed}
        tensors = self.codebook.tensors() | passed | self._ahead.tensors()
        return EditorState(tensors, {**self.codebook.plain(), **measured, **more})

    def _take(self, state: EditorState) -> None:
        self.codebook.load(state.tensors, state.plain)
        self.radius = state.plain["radius"]
        self.neighbour_distance = state.plain["neighbour_distance"]
        self._last_label, self._start_seed = tuple(state.plain["last_label"]), state.plain["seed"]
        self._ahead.load(state.tensors, state.plain["ahead"], self.codebook.values)
        self.initial_values = {
            name.removeprefix("initial."): value
            for name, value in state.tensors.items()
            if name.startswith("initial.")
        }

    def remove(self) -> None:
        """Take the adapter off; forget the codebook and the measured radius."""
        super().remove()
        self._forget_calibration()

    def reset(self) -> None:
        """Take the adapter off and forget the codebook; the measured radius stays."""
        super().remove()

    def state_bytes(self) -> int:
        """Keys, values and radii: grows with the number of keys."""
        return self.codebook.bytes()


EDITOR = Grace
