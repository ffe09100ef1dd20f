"""Pre-training of the small models that the offline scales edit."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from palimpsest.errors import ModelError, SettingsError
from palimpsest.files import read_json, write_atomic
from palimpsest.models.manifest import save_network, write_manifest
from palimpsest.models.pretrain_masks import bottleneck_mask, masked_below
from palimpsest.models.pretrain_rows import Packer, Rows, fact_sentence, read_facts, text_sentences
from palimpsest.models.shapes import SHAPE, random_network, shape_of
from palimpsest.models.tokenizer import single_token_share, train_tokenizer

log = logging.getLogger(__name__)
CHECKPOINT = "checkpoint.safetensors"
COLUMNS = ("step", "loss", "learning_rate", "tokens", "seconds")


@dataclass(frozen=True)
class Training:
    """How a model is trained.

    Attributes:
        steps, batch, length: optimiser steps, rows a step, tokens a row.
        learning_rate, warmup, final_share: peak, steps of linear rise, and the share of the peak a cosine
            ends at.
        weight_decay, beta2, clip: of AdamW; largest gradient norm.
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
        checkpoint_seconds: seconds between resumable checkpoints.
        log_every: steps between rows of training.csv.
        require_single_tokens: refuse to train when an answer of counterfact.json is not one token.
    """

    steps: int = 1500
    batch: int = 16
    length: int = 64
    learning_rate: float = 2e-3
    warmup: int = 100
    final_share: float = 0.05
    weight_decay: float = 0.01
    beta2: float = 0.98
    clip: float = 1.0
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
    checkpoint_seconds: float = 60.0
    log_every: int = 10
    require_single_tokens: bool = False
    seed: int = 0


def pretrain(spec: dict[str, Any], source: Path | str, out: Path | str, threads: int = 1) -> None:
    """Train one model on a source directory (facts.jsonl, text.txt) and write it to `out` in hub format.

    An interrupted run continues from its checkpoint when spec and source are the same. On one machine with
    one number of threads the same spec, source and seed give the same weights.

    Raises:
        SettingsError: an unknown or impossible key of `spec` (keys of `shapes.SHAPE` and of `Training`).
        ModelError: training diverged, or an answer is not one token although the spec requires it.
        DataError: facts.jsonl is missing or damaged.
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
    digest = _digest(spec, source)
    rows = _train(network, _packer(tokenizer, facts, passages, training), training, out / CHECKPOINT, digest)
    network.eval()
    save_network(network, tokenizer, out)
    write_atomic(out / "training.csv", lambda path: _write_csv(path, rows))
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
    write_manifest(out, network, about)
    (out / CHECKPOINT).unlink(missing_ok=True)


def settings_of(spec: Mapping[str, Any]) -> tuple[dict[str, Any], Training]:
    """Split a model spec into shape and training settings; unknown names are refused."""
    names = {entry.name for entry in fields(Training)}
    free = {"kind", "name", "title", "source", "threads", "gate", "layers"}
    unknown = sorted(set(spec) - names - set(SHAPE) - free)
    if unknown:
        raise SettingsError(
            f"unknown model setting {unknown[0]!r}; known are {', '.join(sorted(names | set(SHAPE)))}"
        )
    training = Training(**{name: value for name, value in spec.items() if name in names})
    for name in ("steps", "batch", "length", "log_every", "prompt_repeats"):
        if int(getattr(training, name)) < 1:
            raise SettingsError(f"model setting '{name}' is {getattr(training, name)!r}; expected at least 1")
    if not 0 <= training.text_share < 1:
        raise SettingsError(
            f"model setting 'text_share' is {training.text_share!r}; expected a number from 0 to below 1"
        )
    return shape_of(spec), training


def learning_rate(step: int, training: Training) -> float:
    """Linear rise, then a cosine down to `final_share` of the peak."""
    if step < training.warmup:
        return training.learning_rate * (step + 1) / training.warmup
    done = (step - training.warmup) / max(1, training.steps - training.warmup)
    return training.learning_rate * (
        training.final_share + (1 - training.final_share) * 0.5 * (1 + math.cos(math.pi * done))
    )


def _train(
    network: nn.Module, packer: Packer, training: Training, checkpoint: Path, digest: str
) -> list[dict[str, int | float]]:
    optimiser = _optimiser(network, training)
    network.train()
    first, rows = _resume(network, optimiser, checkpoint, digest)
    started, saved = time.monotonic() - (rows[-1]["seconds"] if rows else 0.0), time.monotonic()
    total, seen = 0.0, 0
    progress = tqdm(total=training.steps, initial=first, unit="step", desc="pre-training", mininterval=2.0)
    for step, batch in enumerate(packer.batches()):
        if step < first:
            continue
        if step >= training.steps:
            break
        torch.manual_seed(training.seed * 1_000_003 + step)  # dropout and bottleneck repeat after a restart
        rate = learning_rate(step, training)
        for group in optimiser.param_groups:
            group["lr"] = rate
        total, seen = total + _step(network, optimiser, batch, training, step), seen + 1
        if (step + 1) % training.log_every == 0 or step + 1 == training.steps:
            if not math.isfinite(total):
                raise ModelError(
                    f"pre-training diverged at step {step + 1} (loss is not finite): lower 'learning_rate'"
                )
            seconds = round(time.monotonic() - started, 1)
            values = (step + 1, total / seen, rate, (step + 1) * batch.tokens.size, seconds)
            rows.append(dict(zip(COLUMNS, values, strict=True)))
            progress.set_postfix(loss=f"{total / seen:.3f}")
            total, seen = 0.0, 0
            # Only here, so that the running mean of the loss survives a restart too.
            if time.monotonic() - saved > training.checkpoint_seconds and step + 1 < training.steps:
                _save_checkpoint(network, optimiser, checkpoint, digest, step + 1, rows)
                saved = time.monotonic()
        progress.update()
    progress.close()
    return rows


def _optimiser(network: nn.Module, training: Training) -> torch.optim.Optimizer:
    """AdamW; vectors (norms, biases) are not decayed."""
    decay = [p for p in network.parameters() if p.dim() > 1]
    plain = [p for p in network.parameters() if p.dim() <= 1]
    return torch.optim.AdamW(
        [{"params": decay, "weight_decay": training.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=training.learning_rate,
        betas=(0.9, training.beta2),
    )


def _step(
    network: nn.Module, optimiser: torch.optim.Optimizer, batch: Rows, training: Training, step: int
) -> float:
    loss = _loss(network, batch, training, step)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), training.clip)
    optimiser.step()
    return float(loss.detach())


def _loss(network: nn.Module, batch: Rows, training: Training, step: int) -> Tensor:
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


def _packer(tokenizer, facts: list[dict[str, Any]], passages: list[str], training: Training) -> Packer:
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


def _passages(source: Path, training: Training) -> list[str]:
    path = source / "text.txt"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [line for line in lines[: math.ceil(len(lines) * (1 - training.held_out_text))] if line.strip()]


def _single_tokens(tokenizer, source: Path, training: Training) -> float:
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


def _digest(spec: Mapping[str, Any], source: Path) -> str:
    digest = hashlib.sha256(json.dumps(dict(spec), sort_keys=True, default=str).encode())
    for name in ("facts.jsonl", "text.txt"):
        if (source / name).exists():
            digest.update((source / name).read_bytes())
    return digest.hexdigest()


def _save_checkpoint(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    path: Path,
    digest: str,
    step: int,
    rows: list[dict[str, int | float]],
) -> None:
    tensors = {}
    for name, parameter in network.named_parameters():
        tensors[f"weight.{name}"] = parameter.detach()
        for key in ("exp_avg", "exp_avg_sq", "step"):
            tensors[f"{key}.{name}"] = optimiser.state[parameter][key]
    metadata = {"digest": digest, "step": str(step), "rows": json.dumps(rows)}
    write_atomic(path, lambda target: save_file(tensors, str(target), metadata=metadata))


def _resume(
    network: nn.Module, optimiser: torch.optim.Optimizer, path: Path, digest: str
) -> tuple[int, list[dict[str, int | float]]]:
    """Step to go on from and the rows logged so far; a checkpoint of another spec or source is ignored."""
    if not path.exists():
        return 0, []
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata()
        if metadata.get("digest") != digest:
            log.info("the checkpoint %s belongs to other settings; training starts anew", path)
            return 0, []
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter.copy_(file.get_tensor(f"weight.{name}"))
                optimiser.state[parameter] = {
                    key: file.get_tensor(f"{key}.{name}") for key in ("step", "exp_avg", "exp_avg_sq")
                }
    log.info("pre-training continues at step %s", metadata["step"])
    return int(metadata["step"]), json.loads(metadata["rows"])


def _write_csv(path: Path, rows: list[dict[str, int | float]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
