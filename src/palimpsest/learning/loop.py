"""The training loop of the editors that learn: one for MEND and SERAC.

Adam, gradients averaged over some steps, clipped; validation on a fixed set; early stopping on its total loss, with the best
state kept; checkpoints from which the same bytes follow. Steps whose gradients are not finite are dropped and counted.
(MEND, Algorithm 1 and appendix; SERAC's trainer. In a widely used toolkit early stopping never stops and the last state is
called the best: spec E8, `keep: last`.)
"""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from palimpsest import interruption
from palimpsest.errors import PalimpsestError
from palimpsest.files import proves_damage, unreadable_now, write_atomic
from palimpsest.learning.curve import CURVE, DIVERGED_CURVE, DIVERGED_STATE, keep_diverged, write_curve
from palimpsest.learning.examples import Draw, Sampler
from palimpsest.learning.settings import TrainingSettings

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.safetensors"
TOTAL = "total"  # the loss that is minimised, and the validation value that decides which state is the best
# So many steps may be lost to gradients that are not finite: a few, and one in ten of all.
TOLERATED, TOLERATED_SHARE = 10, 0.1
# Losses of several steps by name, and the sum of the gradients of their "total".
Steps = tuple[list[dict[str, Tensor]], Sequence[Tensor | None]]


class DivergedTraining(PalimpsestError):
    """Training left the finite numbers."""


class Learner(Protocol):
    """What the loop trains: an editor's `learner(model, settings, seed)` returns one.

    Attributes:
        settings: the editor's own Settings, whole and checked; they inherit from `TrainingSettings`.
    """

    @property
    def settings(self) -> Any:
        """The editor's Settings, a subclass of `TrainingSettings`."""
        ...

    def groups(self) -> list[dict[str, Any]]:
        """Adam's parameter groups: {"params": [...], "lr": ...}, always in the same order."""
        ...

    def step(self, draws: Sequence[Draw]) -> dict[str, Tensor]:
        """Losses of one step by name, scalars; the loop takes the gradient of "total"."""
        ...

    def together(self, groups: Sequence[Sequence[Draw]], parameters: Sequence[Tensor]) -> Steps | None:
        """Steps between which nothing is updated, together; None, and no trace, where there is no quicker way than `step` one by
        one, or a gradient is not finite."""
        ...

    def validate(self, draws: Sequence[Draw]) -> dict[str, float]:
        """Values by name on draws that follow each other in groups of `k_train` different edits; "total" decides."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """All that was learned, running statistics included: enough to load and to go on."""
        ...

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` gave."""
        ...


@dataclass
class TrainingProgress:
    """Where training stands.

    Attributes:
        step: steps done.
        rows: rows of training.csv, [step, split, loss, value].
        best_step, best: when validation was lowest (with keep: last, the last one), and its values.
        best_tensors: the state then.
        dropped: steps dropped because their gradient was not finite.
        sums, counted: losses since the last row of training.csv, and of how many steps.
    """

    step: int = 0
    rows: list[list[Any]] = field(default_factory=list)
    best_step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    best_tensors: dict[str, Tensor] = field(default_factory=dict)
    dropped: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    counted: int = 0

    def plain(self) -> dict[str, Any]:
        """Everything but the tensors, for the checkpoint."""
        return {
            entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "best_tensors"
        }


def train(
    learner: Learner,
    sampler: Sampler,
    validation: Sequence[Draw],
    seed: int,
    folder: Path | str | None = None,
    key: str = "",
) -> TrainingProgress:
    """Train until the cap on steps or until validation stopped getting better; the learner then holds the best state.

    Args:
        sampler: of the training examples.
        validation: draws of held-out examples, in groups of `k_train`.
        seed: of what the learner draws in a step (dropout); every step has its own, so it repeats after a restart.
        folder: where training.csv and the checkpoint are written; None keeps nothing on disk.
        key: what this training is; a checkpoint with another key is not resumed.

    Raises:
        DivergedTraining: too many gradients, or a validation, were not finite. In the folder stay training.csv and the
            last checkpoint, the same curve as diverged.csv, and the best state so far as diverged.safetensors.
    """
    settings: TrainingSettings = learner.settings
    groups = learner.groups()
    parameters = [parameter for group in groups for parameter in group["params"]]
    optimiser = torch.optim.Adam(groups)
    progress = _resume(learner, optimiser, parameters, folder, key)
    sampler.drawn = progress.step
    pause = 0.1 if sys.stderr.isatty() else 10.0  # a log file needs few lines
    bar = tqdm(total=settings.steps, initial=progress.step, unit="step", desc="training", mininterval=pause)
    try:
        with bar, interruption.deferred():
            while progress.step < settings.steps and not _stops(progress, settings):
                before = progress.step
                _update(learner, sampler, optimiser, parameters, progress, seed)
                bar.update(progress.step - before)
                last = progress.step >= settings.steps
                if last or _crossed(before, progress.step, settings.log_every):
                    _log(progress)
                if last or _crossed(before, progress.step, settings.validate_every):
                    _validate(learner, validation, progress)
                    bar.set_postfix(best=f"{progress.best[TOTAL]:.3g}", at=progress.best_step)
                leaving = interruption.requested() and not last
                due = leaving or _crossed(before, progress.step, settings.checkpoint_every)
                if folder is not None and due:
                    _save(learner, optimiser, parameters, progress, Path(folder) / CHECKPOINT, key)
                    write_curve(Path(folder) / CURVE, progress.rows)
                if leaving:
                    interruption.leave(f"training is kept after {progress.step} of {settings.steps} steps")
    except DivergedTraining as error:
        if folder is None:
            raise
        kept = keep_diverged(
            Path(folder), progress.rows, progress.best_step, progress.best, progress.best_tensors
        )
        raise DivergedTraining(f"{error}. {kept}") from error
    finally:
        if folder is not None:
            write_curve(Path(folder) / CURVE, progress.rows)
    if folder is not None:
        for name in (DIVERGED_CURVE, DIVERGED_STATE):
            (Path(folder) / name).unlink(missing_ok=True)
    learner.load(progress.best_tensors)
    return progress


def _crossed(before: int, now: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, now]: updates end where `accumulate` says."""
    return now // every > before // every


def _stops(progress: TrainingProgress, settings: TrainingSettings) -> bool:
    patience = settings.patience
    return patience is not None and bool(progress.best) and progress.step - progress.best_step >= patience


def _update(
    learner: Learner,
    sampler: Sampler,
    optimiser: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    progress: TrainingProgress,
    seed: int,
) -> None:
    """`accumulate` steps and one update by the mean of their gradients; a step without a finite one costs no other."""
    settings: TrainingSettings = learner.settings
    optimiser.zero_grad(set_to_none=True)
    drawn = [
        sampler.draw(settings.k_train)
        for _ in range(min(settings.accumulate, settings.steps - progress.step))
    ]
    together = learner.together(drawn, parameters)
    if together is not None:
        losses, gradients = together
        kept, progress.step = len(drawn), progress.step + len(drawn)
        for each in losses:
            _count(progress, each)
        _add(parameters, gradients)
    else:
        kept = sum(_one_step(learner, draws, parameters, progress, seed) for draws in drawn)
    if progress.dropped > TOLERATED + TOLERATED_SHARE * progress.step:
        raise DivergedTraining(
            f"training diverged: {progress.dropped} of {progress.step} steps had gradients that are not finite. Lower the "
            "learning rates or the starting step sizes, or load the model in float32"
        )
    if not kept:
        return
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad = parameter.grad / kept
    norm = torch.nn.utils.clip_grad_norm_(list(parameters), settings.clip)
    if torch.isfinite(norm):  # a sum of finite gradients may still be too large for its type
        optimiser.step()
    else:
        progress.dropped += kept


def _one_step(
    learner: Learner,
    draws: Sequence[Draw],
    parameters: Sequence[Tensor],
    progress: TrainingProgress,
    seed: int,
) -> bool:
    """Add the gradient of one step; False when it is not finite, and dropped."""
    torch.manual_seed(seed * 1_000_003 + progress.step)
    losses = learner.step(draws)
    gradients = torch.autograd.grad(losses[TOTAL], parameters, allow_unused=True)
    progress.step += 1
    if not finite(gradients):
        progress.dropped += 1
        return False
    _count(progress, losses)
    _add(parameters, gradients)
    return True


def _add(parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


def finite(gradients: Sequence[Tensor | None]) -> bool:
    """Whether all numbers are, and their norm; one question to the device for all of them."""
    norms = [gradient.norm() for gradient in gradients if gradient is not None]
    return not norms or bool(torch.isfinite(torch.stack(norms).norm()))


def _count(progress: TrainingProgress, losses: Mapping[str, Tensor]) -> None:
    values = {name: float(loss.detach()) for name, loss in losses.items()}
    if all(math.isfinite(value) for value in values.values()):
        progress.counted += 1
        for name, value in values.items():
            progress.sums[name] = progress.sums.get(name, 0.0) + value


def _log(progress: TrainingProgress) -> None:
    """Mean losses since the last row."""
    for name, total in progress.sums.items():
        progress.rows.append([progress.step, "train", name, total / progress.counted])
    progress.rows.append([progress.step, "train", "dropped steps", progress.dropped])
    progress.sums, progress.counted = {}, 0


def _validate(learner: Learner, validation: Sequence[Draw], progress: TrainingProgress) -> None:
    values = learner.validate(validation)
    progress.rows += [[progress.step, "valid", name, value] for name, value in values.items()]
    if not math.isfinite(values[TOTAL]):
        raise DivergedTraining(
            f"training diverged: the validation loss at step {progress.step} is {values[TOTAL]}. Lower the learning rates "
            "or the starting step sizes, or load the model in float32"
        )
    if learner.settings.keep == "last" or not progress.best or values[TOTAL] < progress.best[TOTAL]:
        progress.best_step, progress.best = progress.step, dict(values)
        progress.best_tensors = {name: tensor.detach().clone() for name, tensor in learner.tensors().items()}


def _save(
    learner: Learner,
    optimiser: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    progress: TrainingProgress,
    path: Path,
    key: str,
) -> None:
    """One file, so that it is whole or not there: tensors, and the plain data in its header."""
    tensors = {f"now.{name}": tensor for name, tensor in learner.tensors().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in progress.best_tensors.items()}
    for number, parameter in enumerate(parameters):
        for name, value in optimiser.state.get(parameter, {}).items():
            tensors[f"adam.{number}.{name}"] = value
    # Copies, because safetensors refuses tensors that share memory.
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    header = {"key": key, "progress": json.dumps(progress.plain())}
    with interruption.saving():
        write_atomic(path, lambda temporary: save_file(tensors, temporary, metadata=header))


def _resume(
    learner: Learner,
    optimiser: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    folder: Path | str | None,
    key: str,
) -> TrainingProgress:
    """What the checkpoint holds, or a fresh start; one that is damaged or of another training is left aside."""
    path = Path(folder) / CHECKPOINT if folder is not None else None
    if path is None or not path.is_file():
        return TrainingProgress()
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        if header.get("key") != key:
            log.warning("the checkpoint %s is of another training; training starts anew", path)
            return TrainingProgress()
        progress = TrainingProgress(**json.loads(header["progress"]))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        if not proves_damage(error):
            raise unreadable_now(path, error) from error
        log.warning(
            "the checkpoint %s is damaged, or of another version (%s); training starts anew", path, error
        )
        return TrainingProgress()
    learner.load(_under("now.", tensors))
    progress.best_tensors = _under("best.", tensors)
    for number, parameter in enumerate(parameters):
        state = _under(f"adam.{number}.", tensors)
        if state:  # "step" stays on the CPU, as Adam keeps it
            optimiser.state[parameter] = {
                name: value if name == "step" else value.to(parameter.device) for name, value in state.items()
            }
    log.info("training goes on after step %d", progress.step)
    return progress


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
