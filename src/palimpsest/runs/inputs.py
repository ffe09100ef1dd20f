"""What a run reads before it starts: its options, the gate's verdict, what the model knows, which edits it makes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from palimpsest.editors import editor_class
from palimpsest.editors.base import Editor
from palimpsest.edits import Edit
from palimpsest.errors import DataError, PalimpsestError, SettingsError
from palimpsest.files import read_object
from palimpsest.metrics.perplexity import TEXT_TOKENS, TextLoss, held_out_passages, text_loss, token_rows
from palimpsest.models.batching import Batching
from palimpsest.models.loading import LanguageModel
from palimpsest.models.memory import tokens_that_fit
from palimpsest.models.tokens import join
from palimpsest.plain import build
from palimpsest.protocols.sample import Sample, choose, refuse_reserved

log = logging.getLogger(__name__)

GATE_MODES = ("refuse", "warn", "off")
TASKS = ("qa", "classification", "generation")
READ_THE_END = ("lifelong", "simultaneous")  # protocols whose rows carry a decoder's end token


@dataclass(frozen=True)
class RunFiles:
    """What a run reads, written by the rules before it.

    Attributes:
        model, dataset: what the rules `model` and `dataset` wrote (the latter holds `edits.jsonl`, and for lifelong runs
            `probes.jsonl` and `manifest.json`).
        statistics: folder of covariance statistics, for editors that need them.
        gate: verdict on the model (JSON), needed unless options.gate is "off".
        known: what the model knows (JSON), needed with options.known_only.
        text: plain text whose last tenth was held out; without it no text drift is measured.
        targets: folder of target vectors searched beforehand (`palimpsest targets`), for single-round runs.
        trained: what `palimpsest train-editor` wrote, for editors that learn.
        answers: folder that keeps what unedited models answer, for all runs that ask them the same.
    """

    model: Path | str
    dataset: Path | str
    statistics: Path | str | None = None
    gate: Path | str | None = None
    known: Path | str | None = None
    text: Path | str | None = None
    targets: Path | str | None = None
    trained: Path | str | None = None
    answers: Path | str | None = None


@dataclass(frozen=True)
class Options:
    """How a run chooses and judges.

    Attributes:
        inspect: write `inspection.parquet` rows after the last batch (not in a lifelong run).
        generation: also judge by free generation.
        known_only: edit only facts that the unedited model knows (needs the list of the gate).
        sample: "shuffled" by the seed, "file_order", or "drawn_in_order": drawn by the seed, then in the file's order.
        conflicts: "drop" edits that contradict an earlier one or are asked about by a locality probe, or
            "keep" them.
        gate: what a model that fails the gate means: "refuse", "warn" or "off".
        text_tokens: budget of the text-drift meter; 0 = not measured.
        batch_tokens: padded tokens of one evaluation pass, at most: fewer where free memory is short.
        dtype, device: of the model; device "auto": accelerate places it (models/placement.py).
        checkpoint_every_batch: save between all batches, even when saving is slow.
        plain: no shortcut (`LanguageModel.lean` off): every block is run every time, by the network's own modules; no row is
            cut, nothing is prepared ahead, every pair is asked again at every look. Slower, the same rows to rounding. Target
            vectors and solves have switches of their own, `target_search: plain` and `solver: cholesky`.
        task: of a lifelong run: "qa", "classification" or "generation"; None = what the data set says.
        edit_always: in a lifelong run, edit what the model gets right too (the released GRACE code does, spec Q3);
            None = in generation, and for editors that do (`edits_everything`).
        until_edits: a lifelong run ends when so many edits were made, and looks after every so many edits; None = it goes
            through all items, and looks after every so many of them.
        said_tokens: in a lifelong run, an encoder-decoder says at most so many tokens (the released code's 20, its start
            token not counted).
        kept_mb: in a lifelong run, states at the edited block are kept up to so many MB.
        batch_sizes: of a run of simultaneous edits: every k; None = the batch size alone.
        draws: of each k, at most so many batches; None = as many as there are edits for.
        outside: near and far prompts asked for each edit of such a run.
        rephrasings: rephrasings asked for each edit of such a run, at most.
    """

    inspect: bool = False
    generation: bool = True
    known_only: bool = False
    sample: str = "shuffled"
    conflicts: str = "drop"
    gate: str = "off"
    text_tokens: int = TEXT_TOKENS
    batch_tokens: int = 4096
    dtype: str = "float32"
    device: str = "cpu"
    checkpoint_every_batch: bool = False
    plain: bool = False
    task: str | None = None
    edit_always: bool | None = None
    until_edits: int | None = None
    said_tokens: int = 19
    kept_mb: int = 1024
    batch_sizes: list[int] | None = None
    draws: int | None = None
    outside: int = 1
    rephrasings: int = 5

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Options:
        """Refuse unknown names."""
        options = build(cls, content, "a run's options")
        if options.gate not in GATE_MODES:
            raise SettingsError(f"option 'gate' is {options.gate!r}; expected one of {', '.join(GATE_MODES)}")
        if options.task is not None and options.task not in TASKS:
            raise SettingsError(f"option 'task' is {options.task!r}; expected one of {', '.join(TASKS)}")
        return options


def check_parts(spec: Mapping[str, Any], owner: str, counts: Sequence[str]) -> None:
    """Refuse `settings` and `options` that are no names with values, and counts that are no whole numbers above 0.

    Args:
        owner: whose specification it is, for messages: "run a".
    """
    for name in ("settings", "options"):
        if not isinstance(spec.get(name) or {}, Mapping):
            raise SettingsError(f"{owner}: {name!r} is {spec[name]!r:.60}; expected names with values")
    for name in counts:
        if type(spec[name]) is not int or spec[name] < 1:
            raise SettingsError(f"{owner}: '{name}' is {spec[name]!r:.60}; expected a whole number above 0")


def choose_edits(
    spec: Mapping[str, Any],
    seed: int,
    options: Options,
    edits: Sequence[Edit],
    model: LanguageModel,
    known: set[str] | None,
    source: str,
    reserved: Collection[str] = (),
) -> Sample:
    """The edits of a run, and the order they are made in (see `protocols/sample.py`).

    A lifelong stream may ask for one fact many times: that is its point, so nothing is dropped as a conflict.

    Raises:
        DataError: too few edits; or, for an editor that learns, edits among those it was to be trained with.
    """
    count, protocol = int(spec["edits"]), spec.get("protocol")
    sample = choose(
        edits,
        count,
        seed,
        known=known,
        order=options.sample,
        conflicts="keep" if protocol == "lifelong" else options.conflicts,
        fits=fits_into(model, spare=int(protocol in READ_THE_END)),
        others=count if options.inspect or protocol == "simultaneous" else 0,
        source=source,
        reserved=reserved,
    )
    editor = spec.get("editor")  # a search of target vectors has none: it serves several
    if editor is not None and editor_class(editor).learns:
        refuse_reserved(sample, len(edits), len(reserved), editor, source)
    return sample


def set_threads() -> None:
    """As many threads as OMP_NUM_THREADS says, else one: rows must not depend on how many cores were free."""
    words = os.environ.get("OMP_NUM_THREADS", "1")
    torch.set_num_threads(int(words) if words.isdigit() and int(words) > 0 else 1)


def check_gate(spec: Mapping[str, Any], options: Options, gate: Path | str | None) -> dict[str, Any]:
    """The verdict for `run.json`; without a critical path, editors that stand on one are refused."""
    if options.gate == "off":
        return {"mode": "off"}
    if gate is None:
        raise SettingsError(
            f"option gate is {options.gate!r}, so the verdict is needed: "
            "give --gate FILE (palimpsest gate --help)"
        )
    content = read_object(gate, "verdict")
    reasons = content.get("reasons", [])
    if not isinstance(reasons, list):
        raise DataError("expected a list", file=gate, field="reasons", remedy="Make it with palimpsest gate")
    needed = editor_class(spec["editor"]).needs_subject  # of no consequence for editors that write elsewhere
    verdict = {"mode": options.gate, "verdict": content["verdict"], "reasons": reasons, "needed": needed}
    if content.get("verdict") == "pass":
        return verdict
    because = "; ".join(map(str, verdict["reasons"])) or "no reason is given"
    what = f"the model {spec['model']} failed the gate of data set {spec['dataset']}: {because} (see {gate})"
    if options.gate == "refuse" and needed:
        raise PalimpsestError(
            f"{what}. The editor {spec['editor']} writes at the subject's last token and needs a model "
            "that keeps its facts there. Train it longer or with more text, or set gate: warn"
        )
    log.warning("%s", what)
    return verdict


def known_edits(options: Options, known: Path | str | None) -> set[str] | None:
    """Identifiers of the edits whose truth the model knows, when only those are to be edited."""
    if not options.known_only:
        return None
    if known is None:
        raise SettingsError(
            "option known_only needs the list of known facts: give --known FILE (palimpsest gate --help)"
        )
    names = read_object(known).get("known")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(
            "no list of identifiers", file=known, field="known", remedy="Make it with palimpsest gate"
        )
    return set(names)


def fits_into(model: LanguageModel, spare: int = 0) -> Callable[[Edit], bool]:
    """A function that tells whether every text that an edit is judged by fits into the model's context.

    Args:
        spare: tokens that a decoder-only model reads after prompt and answer.
    """
    # Byte-level tokens hold a byte at least, and few special tokens are added: most texts need no tokenizer.
    limit = model.context - (spare if model.kind == "decoder" else 0)
    surely = limit - 4

    def fits(edit: Edit) -> bool:
        together = model.kind == "decoder"  # others read the prompt alone
        texts = [join(prompt, edit.target if together else "") for prompt in (edit.prompt, *edit.rephrasings)]
        probes = (*edit.locality, *edit.portability)
        if model.kind == "encoder_decoder":
            texts += [edit.target, *(probe.answer for probe in probes)]
        texts += [join(probe.prompt, probe.answer if together else "") for probe in probes]
        unsure = [text for text in texts if len(text.encode()) > surely]
        return all(len(model.tokenizer(text)["input_ids"]) <= limit for text in unsure)

    return fits


def batching_of(editor: Editor, options: Options) -> Batching:
    """How rows share a pass: as many as were asked for and as free memory lets.

    Under COMEBA-HK's official padding, padding changes answers, so that only rows of equal length share a pass.
    """
    tokens = tokens_that_fit(editor.model, options.batch_tokens, "evaluation: tokens")
    return Batching(tokens=tokens, equal_length=editor.padding_counts)


def text_meter(editor: Editor, options: Options, text: Path | str | None) -> Callable[[], TextLoss] | None:
    """What measures the loss of the model as it is on text that was held out; None where there is none, or no token is wanted."""
    if text is None or options.text_tokens == 0:
        return None
    rows = token_rows(editor.model, held_out_passages(text), options.text_tokens)
    batching = Batching(tokens=1024, equal_length=batching_of(editor, options).equal_length)
    return partial(text_loss, editor.model, rows, batching) if rows else None
