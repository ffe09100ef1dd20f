"""Pre-training of the small models that the offline scales edit."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from palimpsest.errors import ModelError, SettingsError
from palimpsest.files import read_json
from palimpsest.models.manifest import save_network, write_manifest
from palimpsest.models.pretrain_masks import bottleneck_mask, masked_below
from palimpsest.models.pretrain_rows import Packer, Rows, fact_sentence, read_facts, text_sentences
from palimpsest.models.shapes import SHAPE, random_network, shape_of
from palimpsest.models.tokenizer import single_token_share, train_tokenizer
from palimpsest.models.training import CHECKPOINT, Schedule, digest_of, learning_rate, train, write_curve
from palimpsest.plain import build
from palimpsest.text_files import text_lines

FREE = {"kind", "name", "title", "source", "threads", "gate", "layers"}
__all__ = ["TextTraining", "learning_rate", "pretrain", "settings_of"]


@dataclass(frozen=True)
class TextTraining(Schedule):
    """How a model is trained; see `training.Schedule` for what is not named here.

    Attributes:
        batch, length: rows a step, tokens a row.
        vocabulary: tokens of the tokenizer at most.
        text_share: probability of a neutral sentence before each fact.
        held_out_text: last share of text.txt that is never read (it measures drift later).
        separate: probability of an end of text between sentences.
        prompt_repeats: how often a fact's prompt is read for each reading of one of its other phrasings.
        answer_weight, word_weight: loss weights of answer tokens and of the others.
        subject_bottleneck: when above 0, a subject's tokens before its last are hidden from later tokens: in
            every row at first, afterwards in a row with this probability.
        always_hidden: share of the steps that are "at first" in this sense. A GPT-2 shape that may look past a
            subject's last token even in a tenth of the rows learns that way first, and then has no use for the
            other (measured: ceiling 0).
        closed_blocks: with the bottleneck, the first so many blocks hide a subject's last token as well, so that
            later tokens can only read what these blocks have written there.
        autocast: bfloat16 autocast.
        require_single_tokens: refuse to train when an answer of counterfact.json is not one token.
    """

    batch: int = 16
    length: int = 64
    vocabulary: int = 3000
    text_share: float = 0.15
    held_out_text: float = 0.1
    separate: float = 0.5
    prompt_repeats: int = 2
    answer_weight: float = 1.0
    word_weight: float = 0.2
    subject_bottleneck: float = 0.0
    always_hidden: float = 0.85
    closed_blocks: int = 0
    autocast: bool = False
    require_single_tokens: bool = False


def pretrain(spec: dict[str, Any], source: Path | str, out: Path | str, threads: int = 1) -> None:
    """Train one model on a source directory (facts.jsonl, text.txt) and write it to `out` in hub format.

    An interrupted run continues from its checkpoint when spec and source are the same. On one machine with
    one number of threads the same spec, source and seed give the same weights.

    Raises:
        SettingsError: an unknown or impossible key of `spec` (keys of `shapes.SHAPE` and of `Training`).
        ModelError: training diverged, or an answer is not one token although the spec requires it.
        DataError: facts.jsonl is missing or damaged, or text.txt is not UTF-8.
    """
    torch.set_num_threads(max(1, int(threads)))
    source, out = Path(source), Path(out)
    shape, training = settings_of(spec)
    if training.length > shape["context"]:
        raise SettingsError(
            f"model setting 'length' is {training.length}; rows must fit the context {shape['context']}"
        )
    facts, passages = read_facts(source / "facts.jsonl"), _passages(source, training)
    words = [fact["text"] + "." for fact in facts] + passages
    tokenizer = train_tokenizer(words, training.vocabulary, shape["context"])
    share = _single_tokens(tokenizer, source, training)
    network = random_network(shape, tokenizer, training.seed)
    rows = train(
        network,
        _packer(tokenizer, facts, passages, training).batches(),
        lambda batch, step: _loss(network, batch, training, step),
        lambda batch: batch.tokens.size,
        training,
        out / CHECKPOINT,
        digest_of(spec, [source / "facts.jsonl", source / "text.txt"], __name__),
    )
    network.eval()
    save_network(network, tokenizer, out)
    write_curve(out / "training.csv", rows)
    origin = source / "manifest.json"
    about = {
        "pretrained_here": True,
        "shape": shape,
        "training": {f.name: getattr(training, f.name) for f in fields(training)},
        "parameters": sum(p.numel() for p in network.parameters()),
        "vocabulary": len(tokenizer),
        "single_token_answers": share,
        "source": read_json(origin) if origin.exists() else {},
        "tokens": rows[-1]["tokens"],
        "final_loss": rows[-1]["loss"],
    }
    write_manifest(out, about)
    (out / CHECKPOINT).unlink(missing_ok=True)


def settings_of(spec: Mapping[str, Any]) -> tuple[dict[str, Any], TextTraining]:
    """Split a model spec into shape and training settings; unknown names are refused."""
    training = build(TextTraining, spec, "the model", beside=(*SHAPE, *FREE))
    for name in ("steps", "batch", "length", "log_every", "prompt_repeats"):
        if int(getattr(training, name)) < 1:
            raise SettingsError(f"model setting '{name}' is {getattr(training, name)!r}; expected at least 1")
    if not 0 <= training.text_share < 1:
        raise SettingsError(
            f"model setting 'text_share' is {training.text_share!r}; expected a number from 0 to below 1"
        )
    return shape_of(spec), training


def _loss(network: nn.Module, batch: Rows, training: TextTraining, step: int) -> Tensor:
    tokens = torch.from_numpy(batch.tokens)
    weights = torch.from_numpy(batch.weights)[:, 1:].flatten()
    with contextlib.ExitStack() as stack:
        extra = {}
        if training.subject_bottleneck > 0:
            share = 1.0 if step < training.always_hidden * training.steps else training.subject_bottleneck
            hidden = torch.from_numpy(batch.hidden) & (torch.rand(len(tokens), 1) < share)
            extra["attention_mask"] = bottleneck_mask(hidden)
            if training.closed_blocks:
                shut = bottleneck_mask(hidden, closed=True)
                stack.enter_context(masked_below(network, training.closed_blocks, shut))
        stack.enter_context(torch.autocast("cpu", torch.bfloat16, enabled=training.autocast))
        logits = network(input_ids=tokens, use_cache=False, **extra).logits
    each = nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
    )
    return (each * weights).sum() / weights.sum().clamp_min(1e-9)


def _packer(tokenizer, facts: list[dict[str, Any]], passages: list[str], training: TextTraining) -> Packer:
    sentences = [
        fact_sentence(tokenizer, fact, training.answer_weight, training.word_weight) for fact in facts
    ]
    repeats = [training.prompt_repeats if fact["kind"] in ("prompt", "locality") else 1 for fact in facts]
    return Packer(
        facts=sentences,
        repeats=repeats,
        text=text_sentences(tokenizer, passages, training.word_weight),
        end_of_text=tokenizer.eos_token_id,
        length=training.length,
        batch=training.batch,
        text_share=training.text_share,
        separate=training.separate,
        seed=training.seed,
    )


def _passages(source: Path, training: TextTraining) -> list[str]:
    path = source / "text.txt"
    lines = [part for line in text_lines(path) for part in line.splitlines()] if path.exists() else []
    return [line for line in lines[: math.ceil(len(lines) * (1 - training.held_out_text))] if line.strip()]


def _single_tokens(tokenizer, source: Path, training: TextTraining) -> float:
    share = single_token_share(tokenizer, _answers(source))
    if share < 1 and training.require_single_tokens:
        raise ModelError(
            f"only {share:.1%} of the answers of {source / 'counterfact.json'} are one token each: "
            "raise 'vocabulary'"
        )
    return share


def _answers(source: Path) -> list[str]:
    path = source / "counterfact.json"
    if not path.exists():
        return []
    return sorted({record[name] for record in read_json(path) for name in ("target_new", "ground_truth")})
