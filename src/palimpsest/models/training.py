"""The loop that all pre-training shares: schedule, AdamW, log, and checkpoints from which the same weights follow."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from palimpsest import interruption
from palimpsest.errors import ModelError, SettingsError
from palimpsest.files import proves_damage, unreadable_now, write_atomic
from palimpsest.plain import SEEDS, check_whole
from palimpsest.provenance import source_digest

log = logging.getLogger(__name__)
CHECKPOINT = "checkpoint.safetensors"
COLUMNS = ("step", "loss", "learning_rate", "tokens", "seconds")
B = TypeVar("B")


@dataclass(frozen=True)
class Schedule:
    """What the loop must know; settings of a kind of pre-training add theirs.

    Attributes:
        steps: optimiser steps.
        learning_rate, warmup, final_share: peak, steps of linear rise, and the share of the peak a cosine
            ends at.
        weight_decay, beta2, clip: of AdamW; largest gradient norm.
        checkpoint_seconds: seconds between resumable checkpoints.
        log_every: steps between rows of training.csv.
    """

    steps: int = 1500
    learning_rate: float = 2e-3
    warmup: int = 100
    final_share: float = 0.05
    weight_decay: float = 0.01
    beta2: float = 0.98
    clip: float = 1.0
    checkpoint_seconds: float = 60.0
    log_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what the optimiser or the random generators would not take."""
        check_whole(self.seed, "model setting 'seed'", *SEEDS)
        for name, below in (("learning_rate", math.inf), ("weight_decay", math.inf), ("beta2", 1)):
            if not 0 <= getattr(self, name) < below:
                raise SettingsError(
                    f"model setting '{name}' is {getattr(self, name)!r}; expected a number of at least 0 and below {below}"
                )


def learning_rate(step: int, training: Schedule) -> float:
    """Linear rise, then a cosine down to `final_share` of the peak."""
    if step < training.warmup:
        return training.learning_rate * (step + 1) / training.warmup
    done = (step - training.warmup) / max(1, training.steps - training.warmup)
    return training.learning_rate * (
        training.final_share + (1 - training.final_share) * 0.5 * (1 + math.cos(math.pi * done))
    )


def train(
    network: nn.Module,
    batches: Iterator[B],
    loss: Callable[[B, int], Tensor],
    size: Callable[[B], int],
    training: Schedule,
    checkpoint: Path,
    digest: str,
) -> list[dict[str, int | float]]:
    """Train for `training.steps` steps and return the rows of training.csv.

    Args:
        batches: a stream that depends on nothing but its seed: a restart reads it from the beginning.
        loss: of a batch at a step; what it draws at random repeats after a restart.
        size: tokens of a batch, padding included.
        checkpoint, digest: the file to go on from, which counts only when it carries this digest.

    Raises:
        ModelError: the loss is not finite.
    """
    optimiser = _optimiser(network, training)
    network.train()
    first, rows = _resume(network, optimiser, checkpoint, digest)
    started, saved = time.monotonic() - (rows[-1]["seconds"] if rows else 0.0), time.monotonic()
    total, seen, tokens = 0.0, 0, int(rows[-1]["tokens"]) if rows else 0
    progress = tqdm(total=training.steps, initial=first, unit="step", desc="pre-training", mininterval=2.0)
    with progress, interruption.deferred():
        for step, batch in enumerate(batches):
            if step < first:
                continue
            if step >= training.steps:
                break
            # Dropout and bottleneck repeat after a restart.
            torch.manual_seed(training.seed * 1_000_003 + step)
            rate = learning_rate(step, training)
            for group in optimiser.param_groups:
                group["lr"] = rate
            value = _step(network, optimiser, loss(batch, step), training)
            total, seen, tokens = total + value, seen + 1, tokens + size(batch)
            if (step + 1) % training.log_every == 0 or step + 1 == training.steps:
                if not math.isfinite(total):
                    raise ModelError(
                        f"pre-training diverged at step {step + 1} (loss is not finite): lower 'learning_rate'"
                    )
                seconds = round(time.monotonic() - started, 1)
                values = (step + 1, total / seen, rate, tokens, seconds)
                rows.append(dict(zip(COLUMNS, values, strict=True)))
                progress.set_postfix(loss=f"{total / seen:.3f}")
                total, seen = 0.0, 0
                # Only here, so that the running mean of the loss survives a restart too.
                leaving = interruption.requested()
                due = leaving or time.monotonic() - saved > training.checkpoint_seconds
                if due and step + 1 < training.steps:
                    _save_checkpoint(network, optimiser, checkpoint, digest, step + 1, rows)
                    saved = time.monotonic()
                    if leaving:
                        interruption.leave(f"pre-training is kept after {step + 1} of {training.steps} steps")
            progress.update()
    return rows


def digest_of(spec: Mapping[str, Any], files: Sequence[Path], module: str) -> str:
    """What a checkpoint belongs to: the spec, the content of the files that exist, and the code of the module that trains."""
    digest = hashlib.sha256(json.dumps(dict(spec), sort_keys=True, default=str).encode())
    digest.update(source_digest(module).encode())
    for path in files:
        if path.exists():
            digest.update(path.read_bytes())
    return digest.hexdigest()


def write_curve(path: Path, rows: list[dict[str, int | float]]) -> None:
    """Write training.csv."""

    def write(target: Path) -> None:
        with target.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)

    write_atomic(path, write)


def _optimiser(network: nn.Module, training: Schedule) -> torch.optim.Optimizer:
    """AdamW; vectors (norms, biases) are not decayed."""
    decay = [p for p in network.parameters() if p.dim() > 1]
    plain = [p for p in network.parameters() if p.dim() <= 1]
    return torch.optim.AdamW(
        [{"params": decay, "weight_decay": training.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=training.learning_rate,
        betas=(0.9, training.beta2),
    )


def _step(network: nn.Module, optimiser: torch.optim.Optimizer, loss: Tensor, training: Schedule) -> float:
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), training.clip)
    optimiser.step()
    return float(loss.detach())


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
            if key in optimiser.state[parameter]:  # a part that no loss reaches has no state
                tensors[f"{key}.{name}"] = optimiser.state[parameter][key]
    metadata = {"digest": digest, "step": str(step), "rows": json.dumps(rows)}
    with interruption.saving():
        write_atomic(path, lambda target: save_file(tensors, str(target), metadata=metadata))


def _resume(
    network: nn.Module, optimiser: torch.optim.Optimizer, path: Path, digest: str
) -> tuple[int, list[dict[str, int | float]]]:
    """Step to go on from and the rows logged so far; a checkpoint that is damaged or of another spec or source is left aside."""
    if not path.exists():
        return 0, []
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("digest") != digest:
                log.info("the checkpoint %s belongs to other settings; training starts anew", path)
                return 0, []
            found = {name: file.get_tensor(name) for name in file.keys()}
        step, rows = int(metadata["step"]), json.loads(metadata["rows"])
        weights = [(parameter, found[f"weight.{name}"]) for name, parameter in network.named_parameters()]
        if any(parameter.shape != tensor.shape for parameter, tensor in weights):
            raise ValueError("its shapes are others")
        moments = {
            parameter: {key: found[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
            for name, parameter in network.named_parameters()
            if f"step.{name}" in found
        }
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        if not proves_damage(error):
            raise unreadable_now(path, error) from error
        log.warning(
            "the checkpoint %s is damaged, or of another version (%s); training starts anew", path, error
        )
        return 0, []
    with torch.no_grad():  # only now: nothing was touched by a checkpoint that does not serve
        for parameter, tensor in weights:
            parameter.copy_(tensor)
    for parameter, own in moments.items():
        optimiser.state[parameter] = own
    log.info("pre-training continues at step %d", step)
    return step, rows
