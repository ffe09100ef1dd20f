"""The contract every editor keeps. An editor is built on a loaded model and makes it obey edits, batch after batch.

To write one: a frozen dataclass `Settings` whose fields are the hyper-parameters, a subclass of `Editor` with `name`,
`settings_type` and the methods marked below, and `EDITOR = TheClass` at the end of the file.

Several editors may act on one model. Of those that write the same matrix, each is built when the others have edited, and they
are removed in the reverse order: one whose matrix another editor has changed since refuses to write.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from palimpsest import plain
from palimpsest.editors.shared.speech import generate
from palimpsest.editors.shared.usable import why_not
from palimpsest.edits import Edit
from palimpsest.errors import DataError, EditError, PalimpsestError, SettingsError
from palimpsest.files import proves_damage, read_object, write_atomic, write_json
from palimpsest.models.loading import LanguageModel
from palimpsest.models.upper import Upper
from palimpsest.provenance import file_fingerprint

if TYPE_CHECKING:
    from palimpsest.editors.shared.keyed import Keyed
    from palimpsest.learning.artefact import TrainedEditor

log = logging.getLogger(__name__)
FORMAT = 3  # of saved states; those of 1 had nothing that tied their two files together, those of 2 other names for past keys
# What one edit may raise without ending the run: a reason of its own, a text it cannot read, arithmetic that failed.
ONE_EDITS_FAULT = (EditError, DataError, torch.linalg.LinAlgError, ArithmeticError)


@dataclass(frozen=True)
class FailedEdit:
    """An edit that could not be made, and why."""

    edit: str
    reason: str


class LostEdit(FailedEdit):
    """An edit that a reproduced fault of published code drops unnoticed: that code counts it as made, so it has not failed."""


@dataclass
class EditReport:
    """What one call of `edit` did. `record` holds what a researcher wants to see, when it was asked for.

    Attributes:
        applied, failed: names of the edits that were made, and those that could not be made.
        lost: edits that a reproduced fault dropped; they are in neither of the two. Runs judge them as made, as published.
    """

    applied: list[str]
    failed: list[FailedEdit]
    seconds: float
    record: dict[str, Any] | None = None
    lost: list[LostEdit] = field(default_factory=list)


@dataclass
class EditorState:
    """All an editor has learned, as tensors and plain data: enough to go on editing after a restart."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    plain: dict[str, Any] = field(default_factory=dict)


def _of_states(load: Callable[[Any, EditorState], None]) -> Callable[[Any, EditorState], None]:
    @functools.wraps(load)
    def checked(editor: Any, state: EditorState) -> None:
        if not isinstance(state, EditorState):
            raise PalimpsestError(
                f"{editor.name}.load_state() takes what state() gave, not {state!r:.60}. What save_state(editor, folder) wrote "
                "is read by load_state(editor, folder)"
            )
        load(editor, state)

    return checked


class Editor(ABC):
    """Base of all editors."""

    name: ClassVar[str]
    settings_type: ClassVar[type]
    needs_statistics: ClassVar[bool] = False
    needs_subject: ClassVar[bool] = False
    edits_everything: bool = False  # under `lifelong`: also what the model gets right
    needs_decoder: ClassVar[bool] = False
    prepares_rounds: ClassVar[bool] = False  # `prepare` serves edits that each start from the untouched model
    learns: ClassVar[bool] = False  # is trained before it edits: `learner`, and make_editor(trained=...)
    # It decides over the whole sequence: nothing may be kept between tokens. Forgotten, this gives other answers silently.
    reads_whole_rows: ClassVar[bool] = False
    padding_counts: bool = False  # answers depend on padding: only rows of equal length may share a pass
    trained: TrainedEditor | None = None  # what one that learns was trained to
    stored_targets: Any = None  # target vectors searched beforehand, where it was told to use some

    def __init__(self, model: LanguageModel, settings: Any, statistics: Any = None, seed: int = 0):
        self.model = model
        self.settings = settings
        self.statistics = statistics
        self.seed = seed

    def __init_subclass__(cls, **named: Any) -> None:
        """Give every editor's own `load_state` the same refusal of what is no state."""
        super().__init_subclass__(**named)
        if "load_state" in vars(cls):
            setattr(cls, "load_state", _of_states(vars(cls)["load_state"]))  # noqa: B010  mypy takes no other way

    @classmethod
    def build(cls, model: LanguageModel, settings: Any, statistics: Any, seed: int) -> Editor:
        """Check settings and statistics before anything heavy starts, then construct."""
        if not isinstance(model, LanguageModel):
            raise SettingsError(f"an editor is built on what load_model(...) returns, not on {model!r:.80}")
        plain.check_whole(seed, "seed", *plain.SEEDS)
        model.need_one_device(cls.name)
        if cls.needs_decoder:
            model.need_decoder(cls.name)
        model.fingerprint  # noqa: B018  taken now, while the weights are still the pre-trained ones
        chosen, found = cls.read_inputs(model, settings, statistics)
        return cls(model, chosen, found, seed)

    @classmethod
    def read_inputs(cls, model: LanguageModel, settings: Any, given: Any) -> tuple[Any, Any]:
        """Checked Settings, and what the editor is built with beside them: `statistics`, or for one that learns `trained`."""
        return read_settings(cls, settings), _read_statistics(cls, model, given)

    @classmethod
    def learner(cls, model: LanguageModel, settings: Any, seed: int) -> Any:
        """The `learning.loop.Learner` that `palimpsest train-editor` trains; editors with `learns` offer one."""
        raise SettingsError(f"{cls.name} needs no training; it edits as it is")

    # what an editor must offer -----------------------------------------------------------------------------------

    @abstractmethod
    def apply(self, batch: Sequence[Edit], record: dict[str, Any] | None) -> list[FailedEdit]:
        """Make the model obey a batch of checked edits; return those that could not be made, or (`LostEdit`) were lost.

        Raises EditError when the whole batch fails; the model must then be as before the call, as after any other error.
        """

    @abstractmethod
    def state(self) -> EditorState:
        """Everything learned so far."""

    @abstractmethod
    def load_state(self, state: EditorState) -> None:
        """Take over a state; the model then answers as when it was saved."""

    @abstractmethod
    def remove(self) -> None:
        """Give back the untouched model, bit for bit, and forget everything."""

    @abstractmethod
    def state_bytes(self) -> int:
        """Bytes of what was learned and is needed to answer: changed or added parameters, not what only editing needs."""

    def editing_bytes(self) -> int:
        """Bytes that only further edits need, beside `state_bytes`; 0 where there are none, or none are counted."""
        return 0

    # what every editor gets --------------------------------------------------------------------------------------

    def edit(self, batch: Sequence[Edit], record: bool = False) -> EditReport:
        """Edit the model. Edits that cannot be made are listed in the report, the others are applied.

        Args:
            batch: edits that are made together.
            record: keep target vectors, keys, residuals, updates, losses and the like in the report.
        """
        start = time.perf_counter()
        if isinstance(batch, Edit | str) or not all(isinstance(edit, Edit) for edit in batch):
            raise DataError(f"{self.name}.edit() takes a list of Edit, not {batch!r:.80}")
        usable, failed = self._check(batch)
        notes: dict[str, Any] | None = {} if record else None
        if usable:
            try:
                failed += self.apply(usable, notes)
            except ONE_EDITS_FAULT as error:
                log.warning("%s: a batch of %d edits failed: %s", self.name, len(usable), error)
                failed += [FailedEdit(edit_name(edit), str(error)) for edit in usable]
        applied = _all_but(batch, failed)
        lost = [one for one in failed if isinstance(one, LostEdit)]
        failed = [one for one in failed if not isinstance(one, LostEdit)]
        return EditReport(applied, failed, time.perf_counter() - start, notes, lost)

    def prepare(self, coming: Sequence[Edit]) -> None:  # noqa: B027  most methods have nothing to prepare
        """Compute together what edits that will probably be made next need; it changes no answer, and edits only to rounding.

        What was prepared before is forgotten. A state carries what is prepared, unless `prepares_rounds` is set: a protocol of
        rounds prepares a broken round again.
        """

    def calibrate(self, prompts: Sequence[str]) -> float | None:
        """Measure what the settings give relative to the model, on prompts that are not edited; before the first edit."""
        return None

    def thresholds(self) -> dict[int, float]:
        """What decides at each layer whether the method acts, where edits move it: a run keeps its history."""
        return {}

    def reset(self) -> None:
        """Roll back to the untouched model and a fresh state, keeping what was drawn at random."""
        self.remove()

    def generate(self, prompts: str | Sequence[str], max_new_tokens: int = 20) -> list[str]:
        """What the edited model says after one or several prompts, greedily: text, or the name of a class.

        With kept keys and values: an editor that looks at whole rows decides here once, when it reads the prompt (metrics read
        every row anew, `metrics/generation.py`). It ends where the context ends.

        Raises:
            DataError: a prompt is empty, or fills the whole context.
        """
        return generate(self.model, prompts, max_new_tokens)

    def inspect(
        self, prompts: str | Sequence[str], subjects: Sequence[str | None] | None = None
    ) -> list[dict[str, Any]]:
        """What the method decides for each prompt; empty where a method has no scope decision to show."""
        return []

    @contextlib.contextmanager
    def watching(self) -> Iterator[Callable[[], Tensor | None] | None]:
        """For the length of a block: a function that tells on which rows [b] of the latest pass the method acted.

        Yields None where a method has no scope decision (it acts on every input); the function gives None when no
        decision was made since it was last asked.
        """
        yield None

    def lowest_block(self) -> int | None:
        """Number of the first block whose output an edit can change; None where nobody knows."""
        return None

    def edited_site(self) -> str | None:
        """The linear map of `lowest_block` if this map's output is all that an edit changes; None where it is more."""
        return None

    def deciding(self, rows: Upper) -> Callable[[Sequence[int]], Tensor] | None:
        """For rows that stand at `lowest_block`: a function that gives numbers [k, m] for k of them, as the editor is now.

        Two looks at which a row has the same numbers get the same answer to it, whatever was edited in between. None means that
        this cannot be told, and stays None: it is asked once for each group of rows.
        """
        return None

    def acts_unedited(self) -> bool:
        """Whether the editor changes answers before its first edit; its answers are then not shared with other runs."""
        return False

    def margin(self) -> int:
        """Tokens that editing reads besides prompt and target: contexts before them, a decoder's end token after them."""
        return 0

    def put_in_place(self) -> None:  # noqa: B027  most methods have nothing that could hang there before
        """Attach before the first edit the hooks that stay attached from then on; a run checks that they change no answer."""

    def keyed(self) -> Keyed | None:
        """The editor itself, where it answers from a codebook: a lifelong run notes keys and radii, and takes entries back."""
        return None

    def use_targets(self, folder: Path | str) -> None:
        """Take target vectors from a search made beforehand."""
        raise SettingsError(
            f"stored target vectors are for single-round runs of editors that search some, not for {self.name}; leave them out"
        )

    def _check(self, batch: Sequence[Edit]) -> tuple[list[Edit], list[FailedEdit]]:
        margin = self.margin()
        reasons = [why_not(edit, self.model, self.name, self.needs_subject, margin) for edit in batch]
        usable = [edit for edit, reason in zip(batch, reasons, strict=True) if reason is None]
        paired = zip(batch, reasons, strict=True)
        return usable, [FailedEdit(edit_name(edit), reason) for edit, reason in paired if reason is not None]


def _all_but(batch: Sequence[Edit], failed: Sequence[FailedEdit]) -> list[str]:
    """Names of the edits that did not fail; where several have one name, as many are left out as failed."""
    missing, applied = Counter(failure.edit for failure in failed), list[str]()
    for name in map(edit_name, batch):
        if missing[name] > 0:
            missing[name] -= 1
        else:
            applied.append(name)
    return applied


def edit_name(edit: Edit) -> str:
    """How an edit is called in reports."""
    return edit.identifier or edit.prompt


def read_settings(editor: type[Editor], settings: Any) -> Any:
    """Turn a dict into the editor's frozen Settings; a wrong name or value is refused with its name."""
    kind = editor.settings_type
    if settings is None:
        return kind()
    if isinstance(settings, kind):
        return settings
    if not isinstance(settings, dict):
        raise SettingsError(
            f"settings of {editor.name} must be a dict or {kind.__qualname__}, not {type(settings).__name__}"
        )
    return plain.build(kind, settings, editor.name)


def require(condition: bool, name: str, value: Any, expected: str) -> None:
    """Refuse a setting: used by the __post_init__ of every Settings."""
    if not condition:
        raise SettingsError(f"setting {name} = {value!r} is not allowed: {expected}")


def _read_statistics(editor: type[Editor], model: LanguageModel, statistics: Any) -> Any:
    if not editor.needs_statistics:
        return None
    from palimpsest.statistics.covariance import CovarianceStatistics

    if statistics is None:
        raise SettingsError(
            f"{editor.name} needs covariance statistics of the model. Collect them with `palimpsest statistics` or "
            "collect_covariance(...), and pass them as statistics=... (--statistics)"
        )
    if isinstance(statistics, str | Path):
        statistics = CovarianceStatistics.load(Path(statistics))
    if not hasattr(statistics, "check"):
        raise SettingsError(f"statistics: expected CovarianceStatistics or a path, not {statistics!r:.80}")
    statistics.check(model)
    return statistics


def save_state(editor: Editor, folder: Path | str) -> None:
    """Write an editor's state: state.safetensors, and last state.json, which names its digest. Without that there is no state."""
    from safetensors.torch import save_file

    state, (tensors_path, plain_path) = editor.state(), _state_files(folder)
    # Copies, because safetensors refuses tensors that share memory.
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.tensors.items()}
    plain_path.unlink(missing_ok=True)  # an old description must not vouch for new tensors
    write_atomic(tensors_path, lambda path: save_file(tensors, path))
    own = {"editor": editor.name, "model": editor.model.fingerprint, "format": FORMAT}
    write_json(plain_path, {**own, "tensors": file_fingerprint(tensors_path), "plain": state.plain})


def load_state(editor: Editor, folder: Path | str) -> None:
    """Read what `save_state` wrote; refuses the state of another editor or model, and files that do not belong together."""
    from safetensors.torch import load_file

    tensors_path, plain_path = _state_files(folder)
    content = read_object(plain_path, "plain")
    if content.get("format") != FORMAT:
        raise PalimpsestError(
            f"file {plain_path}, field 'format': {content.get('format')!r}, but this version reads {FORMAT}. Edit again and save "
            "the state with this version"
        )
    for what, own in (("editor", editor.name), ("model", editor.model.fingerprint)):
        if content.get(what) != own:
            raise PalimpsestError(
                f"file {plain_path}, field '{what}': {content.get(what)!r}, but this is {own!r}. "
                "Load it with the editor and model it was saved from"
            )
    if not tensors_path.is_file() or file_fingerprint(tensors_path) != content.get("tensors"):
        raise PalimpsestError(
            f"file {tensors_path} is missing or damaged: not the one that {plain_path.name} was written with. Save it again"
        )
    try:
        editor.load_state(EditorState(load_file(tensors_path), content["plain"]))
    except Exception as error:
        if isinstance(error, PalimpsestError) or not proves_damage(error):
            raise
        raise PalimpsestError(
            f"{folder} holds no whole state of {editor.name} ({error!r}). Save the state again"
        ) from error


def _state_files(folder: Path | str) -> tuple[Path, Path]:
    if not isinstance(folder, str | Path):
        raise PalimpsestError(f"a state is saved to and loaded from a folder, not {folder!r:.60}")
    return Path(folder) / "state.safetensors", Path(folder) / "state.json"
