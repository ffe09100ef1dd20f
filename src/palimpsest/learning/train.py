"""Training of one editor for one model, cached by all that its result depends on."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from palimpsest.errors import DataError, PalimpsestError, SettingsError
from palimpsest.learning.artefact import DESCRIPTION, TrainedEditor, plain_settings
from palimpsest.learning.examples import (
    LearningExample,
    Outside,
    Sampler,
    digest_of_examples,
    read_examples,
    refuse_without_rephrasings,
)
from palimpsest.learning.loop import CHECKPOINT, train
from palimpsest.learning.settings import TrainingSettings
from palimpsest.models.loading import LanguageModel
from palimpsest.models.tokens import cut_to_context, join
from palimpsest.provenance import source_digest

log = logging.getLogger(__name__)


def train_editor(
    name: str,
    model: LanguageModel,
    examples: Path | str | Sequence[LearningExample],
    settings: Any = None,
    out: Path | str | None = None,
    seed: int = 0,
) -> TrainedEditor:
    """Train an editor, or give back what `out` holds already for the same model, data, settings and seed.

    A training that was broken off goes on from its checkpoint in `out`; training.csv is written there with each checkpoint.

    Args:
        name: an editor with `learns`.
        model: untouched; it is not changed.
        examples: learning.jsonl, or its records. Those of the split "train" are trained on, "valid" decides when to stop.
        settings: as for `make_editor`.
        seed: of the draws and of what the learner draws at random.

    Raises:
        PalimpsestError: bad settings or data (before anything heavy starts), or a training that diverged.
    """
    model.need_one_device(name)
    learner = import_module("palimpsest.editors").editor_class(name).learner(model, settings, seed)
    chosen: TrainingSettings = learner.settings
    if isinstance(examples, str | Path):
        found = read_examples(examples, chosen.rephrase)
    else:
        found = list(examples)
        if chosen.rephrase:
            refuse_without_rephrasings(found)
    about: dict[str, Any] = {
        "editor": name,
        "model": model.fingerprint,
        "data": digest_of_examples(found),
        "settings": plain_settings(chosen),
        "seed": seed,
    }
    done = _trained_before(out, about)
    if done is not None:
        log.info("%s is trained already: %s", name, out)
        _forget_checkpoint(out)
        return done
    usable = fitting(model, found)
    samplers = {split: _sampler(usable, split, chosen, f"{seed} {split}") for split in ("train", "valid")}
    validation = [
        draw
        for _ in range(max(1, chosen.validate_on // chosen.k_train))
        for draw in samplers["valid"].draw(chosen.k_train)
    ]
    key = "" if out is None else _key(about)
    progress = train(learner, samplers["train"], validation, seed, out, key)
    result = TrainedEditor(
        editor=name,
        model=model.fingerprint,
        model_name=model.name,
        data=about["data"],
        settings=about["settings"],
        seed=seed,
        steps=progress.step,
        best_step=progress.best_step,
        validation=progress.best,
        learned=list(dict.fromkeys(one.fact for one in usable if one.split in samplers)),
        tensors={name: tensor.detach().cpu().clone() for name, tensor in learner.tensors().items()},
    )
    if out is not None:
        result.save(out)
    _forget_checkpoint(out)
    return result


def _forget_checkpoint(out: Path | str | None) -> None:
    """The result is written; a job that was killed right afterwards has left this to the next one."""
    if out is not None:
        (Path(out) / CHECKPOINT).unlink(missing_ok=True)


def _trained_before(out: Path | str | None, about: dict[str, Any]) -> TrainedEditor | None:
    if out is None:
        return None
    try:
        found = TrainedEditor.load(out)
    except PalimpsestError as error:
        if (Path(out) / DESCRIPTION).exists():
            log.warning("what %s holds cannot be used, training starts: %s", out, error)
        return None
    changed = [name for name, value in about.items() if getattr(found, name) != value]
    if changed:
        log.warning("%s holds a training with other %s; it will be replaced", out, ", ".join(changed))
    return None if changed else found


def _key(about: dict[str, Any]) -> str:
    """Of a checkpoint: what is trained, and the code that does it; half a training by other code is not resumed."""
    modules = ("palimpsest.learning.train", f"palimpsest.editors.{about['editor']}")
    content = {**about, "code": source_digest(*modules)}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sampler(
    examples: Sequence[LearningExample], split: str, settings: TrainingSettings, seed: str
) -> Sampler:
    mine = [example for example in examples if example.split == split]
    if not mine:
        raise DataError(
            f"no learning example of the split {split!r} can be used",
            field="split",
            remedy="Make the data set with a larger `reserve`, or use a model that reads longer texts",
        )
    try:
        shares = (settings.no_op_share, settings.prompt_share)
        sampler = Sampler(mine, seed, settings.hard_share, settings.rephrase, *shares)
    except DataError as error:
        raise DataError(f"split {split!r}: {error}") from error
    if len(sampler) < settings.k_train:
        raise SettingsError(
            f"k_train = {settings.k_train}, but the split {split!r} has {len(sampler)} prompts to draw from. Use a smaller "
            "k_train, or set more records aside for learning (`reserve`)"
        )
    return sampler


def fitting(model: LanguageModel, examples: Sequence[LearningExample]) -> list[LearningExample]:
    """The examples as far as the model reads them; examples that are left out are counted in the log.

    A classifier reads documents, which are cut to its context. Of other kinds, an example whose prompt with any of its answers
    is too long is left out, and so are single rephrasings, implied questions and out-of-scope prompts. Out-of-scope prompts
    without an answer are for decoders, which read the prompt itself; others have nothing to say to them.
    """
    if model.kind == "encoder":
        return [_cut(model, example) for example in examples]
    together = model.kind == "decoder"
    limit = model.context - 2  # the end token, and a blank that may become a token of its own

    def fits(prompt: str, *answers: str) -> bool:
        texts = [join(prompt, answer) for answer in answers] if together else [prompt, *answers]
        # Byte-level tokens hold a byte at least: most texts need no tokenizer.
        unsure = [text for text in texts if len(text.encode()) > limit]
        return all(len(model.tokenizer(text)["input_ids"]) <= limit for text in unsure)

    kept = []
    for one in examples:
        answers = (one.answer, *one.alternatives)
        if fits(one.prompt, *answers):
            inside = tuple(text for text in one.rephrasings if fits(text, *answers))
            implied, statements = (
                tuple(pair for pair in pairs if all(fits(*_filled(pair, text)) for text in answers))
                for pairs in (one.implied, one.true_false)
            )
            outside = tuple(
                other for other in _askable(one.outside, together) if fits(other.prompt, other.answer)
            )
            opposed = tuple(pair for pair in one.opposed if fits(*pair))
            fitted = replace(one, rephrasings=inside, implied=implied, true_false=statements)
            kept.append(replace(fitted, outside=outside, opposed=opposed))
    if len(kept) < len(examples):
        log.warning(
            "%d of %d learning examples are too long for %s and are left out",
            len(examples) - len(kept),
            len(examples),
            model.name,
        )
    return kept


def _askable(outside: Sequence[Outside], decoder: bool) -> list[Outside]:
    """Those with an answer; of a decoder, one whose prompt has a word to read before its last will do."""
    return [one for one in outside if one.answer.strip() or (decoder and " " in one.prompt.strip())]


def _filled(pair: tuple[str, str], answer: str) -> tuple[str, str]:
    return pair[0].replace("{}", answer), pair[1].replace("{}", answer)


def _cut(model: LanguageModel, example: LearningExample) -> LearningExample:
    prompt, *rephrasings = cut_to_context(model, [example.prompt, *example.rephrasings])
    others = _askable(example.outside, decoder=False)
    outside = cut_to_context(model, [other.prompt for other in others])
    implied = cut_to_context(model, [question for question, _ in example.implied])
    answers = [answer for _, answer in example.implied]
    return replace(
        example,
        prompt=prompt,
        subject=example.subject if example.subject and example.subject in prompt else None,
        rephrasings=tuple(text for text in rephrasings if text != prompt),
        implied=tuple(zip(implied, answers, strict=True)),
        outside=tuple(replace(other, prompt=text) for text, other in zip(outside, others, strict=True)),
    )
