"""What a lifelong run stands on: the stream and its probes, its task, and texts cut to what the model reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from palimpsest.editors.base import Editor, edit_name
from palimpsest.edits import Edit
from palimpsest.errors import DataError, SettingsError
from palimpsest.files import read_json, read_records
from palimpsest.metrics.perplexity import TextLoss
from palimpsest.metrics.retention import KINDS, Asking, Pool
from palimpsest.metrics.unedited import Unedited
from palimpsest.models.batching import Batching
from palimpsest.models.loading import LanguageModel
from palimpsest.models.tokens import cut_to_context
from palimpsest.protocols.lifelong_notes import Examples, ForwardTimer

PROBES_FILE = "probes.jsonl"
MANIFEST_FILE = "manifest.json"
PROBE_SPLITS = ("upstream", "holdout", "accurate")


@dataclass(frozen=True)
class AskedProbe:
    """A probe of one of the sets of `PROBE_SPLITS`; `edit` names the edit it belongs to, if to any."""

    split: str
    prompt: str
    answer: str
    edit: str | None = None


@dataclass
class LifelongStream:
    """One run's inputs.

    Attributes:
        run, seed: for the rows.
        editor: fresh, on the unedited model.
        asking: how the model is asked, and for which task.
        edits: the stream, in order: what is asked, and the right answers.
        probes: what retention is measured on.
        snapshot_every: a look after every so many items, with `until_edits` after so many edits; None = at the end only.
        until_edits: the stream ends when so many edits were made, or with its last item; None = with its last item.
        edit_always: edit every item, whether the model errs or not; None = in generation, whose streams are
            sentences marked as wrong beforehand (spec 3.3), and for editors that do (GRACE as released, Q3).
        text_loss: measures the text drift of the model as it is; None = not measured.
    """

    run: str
    seed: int
    editor: Editor
    asking: Asking
    edits: list[Edit]
    probes: Sequence[AskedProbe] = ()
    snapshot_every: int | None = None
    edit_always: bool | None = None
    text_loss: Callable[[], TextLoss] | None = None
    until_edits: int | None = None
    items: Pool = field(init=False)
    pools: dict[str, tuple[list[AskedProbe], Pool]] = field(init=False)
    timer: ForwardTimer = field(init=False)
    examples: Examples = field(init=False)

    def __post_init__(self) -> None:
        """Encode everything, so that bad records are refused before anything heavy starts."""
        if self.snapshot_every is not None and self.snapshot_every < 1:
            raise SettingsError(f"run {self.run}: snapshot_every must be a whole number above 0")
        if self.until_edits is not None and not 1 <= self.until_edits <= len(self.edits):
            raise SettingsError(
                f"run {self.run}: until_edits is {self.until_edits}; expected a whole number of 1 to the {len(self.edits)} "
                "items of the stream. Give more items (`edits`), or fewer edits"
            )
        if self.edit_always is None:
            self.edit_always = self.asking.task == "generation" or self.editor.edits_everything
        self.items = Pool(self.asking, [(edit.prompt, edit.target) for edit in self.edits])
        self.timer = ForwardTimer(self.asking.model, self.items.pairs)
        self.pools = {}
        for split in PROBE_SPLITS:
            mine = [probe for probe in self.probes if probe.split == split]
            if mine:
                self.pools[split] = (mine, Pool(self.asking, [(p.prompt, p.answer) for p in mine]))
        upstream = [(probe.prompt, probe.answer) for probe in self.probes if probe.split == "upstream"]
        self.examples = Examples(self.asking, self.edits, upstream)

    def ended(self, seen: int, made: int) -> bool:
        """Whether the stream ends after so many items and edits."""
        return seen == len(self.edits) or (self.until_edits is not None and made >= self.until_edits)

    def due(self, seen: int, made: int, edited: bool) -> bool:
        """Whether a look is due after so many items and edits; `edited`: the latest item was edited."""
        if self.snapshot_every is None or self.ended(seen, made):
            return self.ended(seen, made)
        if self.until_edits is not None:
            return edited and made % self.snapshot_every == 0
        return seen % self.snapshot_every == 0


def lifelong_stream(
    editor: Editor,
    edits: list[Edit],
    dataset_dir: Path | str,
    *,
    task: str,
    batching: Batching,
    said_tokens: int,
    room: int,
    unedited: Unedited | None = None,
    **about: Any,
) -> LifelongStream:
    """Inputs of a run; `about` goes to `LifelongStream`, the rest says how the model is asked (see `Asking`)."""
    model = editor.model
    says = type(editor).deciding is not Editor.deciding
    asking = Asking(
        model,
        task,
        lowest=editor.lowest_block(),
        site=editor.edited_site(),
        deciding=editor.deciding if says and model.lean else None,
        batching=batching,
        said_tokens=said_tokens,
        room=room,
        cached=not editor.reads_whole_rows,
        unedited=unedited,
    )
    probes = cut_probes(model, read_probes(dataset_dir, edits), task)
    editor.calibrate([probe.prompt for probe in probes if probe.split == "upstream"])
    return LifelongStream(editor=editor, asking=asking, edits=edits, probes=probes, **about)


def task_of(dataset_dir: Path | str, named: str | None, model: LanguageModel) -> str:
    """The task: the option where it is given, else what the data set says, else what the model can do.

    Raises SettingsError when data set and option differ.
    """
    manifest = Path(dataset_dir) / MANIFEST_FILE
    content: Any = read_json(manifest) if manifest.is_file() else {}
    told = content.get("task") if isinstance(content, dict) else None
    if named is not None and told in KINDS and told != named:
        raise SettingsError(
            f"option task is {named!r}, but the data set {manifest} is of the task {told!r}. Leave the option out"
        )
    if named is not None or told in KINDS:
        return str(named or told)
    return "classification" if model.kind == "encoder" else "qa"


def read_probes(dataset_dir: Path | str, edits: Sequence[Edit]) -> list[AskedProbe]:
    """All probes of the data set, whichever edits were chosen: the hold-out is one fixed set, as released (spec 3.5).

    A data set of single facts has no file of probes; the edits' rephrasings are then held out and their locality probes
    upstream.

    Raises DataError that names file, line and field.
    """
    path = Path(dataset_dir) / PROBES_FILE
    if not path.is_file():
        return _probes_of(edits)
    return [_probe(content, path, place) for place, content in read_records(path, "Make the data set again")]


def _probe(content: dict[str, Any], path: Path, line: str) -> AskedProbe:
    place: Any = {"file": path, "record": line}
    probe = AskedProbe(*(content.get(name) for name in ("set", "prompt", "answer", "edit")))  # type: ignore[arg-type]
    if not isinstance(probe.split, str) or probe.split not in PROBE_SPLITS:
        expected = f"expected one of {', '.join(PROBE_SPLITS)}"
        raise DataError(f"it is {probe.split!r:.60}", **place, field="set", remedy=expected.capitalize())
    if probe.edit is not None and not isinstance(probe.edit, str):
        what = f"expected the identifier of an edit, found {probe.edit!r:.60}"
        raise DataError(what, **place, field="edit", remedy="Make the data set again")
    for name in ("prompt", "answer"):
        text = getattr(probe, name)
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"the {name} is empty", **place, field=name, remedy="Give its text")
    return probe


def _probes_of(edits: Sequence[Edit]) -> list[AskedProbe]:
    held = [
        AskedProbe("holdout", prompt, edit.target, edit_name(edit))
        for edit in edits
        for prompt in edit.rephrasings
    ]
    kept = [
        AskedProbe("upstream", probe.prompt, probe.answer, edit_name(edit))
        for edit in edits
        for probe in edit.locality
    ]
    return held + kept


def cut_edits(model: LanguageModel, edits: Sequence[Edit], task: str) -> list[Edit]:
    """Documents to classify, cut to what the model reads; other prompts stay as they are (too long ones are dropped)."""
    if task != "classification":
        return list(edits)
    prompts = cut_to_context(model, [edit.prompt for edit in edits])
    # What a subject is has no meaning for a document, and it may have been cut away.
    return [
        edit if prompt == edit.prompt else replace(edit, prompt=prompt, subject=None)
        for edit, prompt in zip(edits, prompts, strict=True)
    ]


def cut_probes(model: LanguageModel, probes: Sequence[AskedProbe], task: str) -> list[AskedProbe]:
    """Probes cut to what the model reads: documents to classify, and texts whose perplexity is measured (spec 3.5)."""
    if task == "classification":
        prompts = cut_to_context(model, [probe.prompt for probe in probes])
        return [replace(probe, prompt=prompt) for probe, prompt in zip(probes, prompts, strict=True)]
    if task == "generation":
        return [_shorter(model, probe) for probe in probes]
    return list(probes)


def _shorter(model: LanguageModel, probe: AskedProbe) -> AskedProbe:
    """The probe with as much of its answer as fits, with the end token, into the context."""
    text = f"{probe.prompt} {probe.answer}"
    if len(text.encode()) < model.context - 4:  # a token holds a byte at least
        return probe
    encoded = model.tokenizer(
        text, return_offsets_mapping=True, truncation=True, max_length=model.context - 1
    )
    answer = text[: max(last for _, last in encoded["offset_mapping"])][len(probe.prompt) :].strip()
    if not answer:
        raise DataError(
            f"the prompt alone fills the {model.context} tokens that {model.name} reads",
            record=repr(probe.prompt[:60]),
            field="prompt",
            remedy="Give a shorter prompt",
        )
    return replace(probe, answer=answer)
