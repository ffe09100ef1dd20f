"""The settings that all editors that learn have."""

from __future__ import annotations

from dataclasses import dataclass

from palimpsest.errors import SettingsError


@dataclass(frozen=True)
class TrainingSettings:
    """Settings that every editor that learns has; its own Settings inherit from here. Defaults are MEND's published ones.

    Attributes:
        k_train: edits a step.
        steps: at most so many.
        accumulate: steps whose gradients are averaged before Adam moves.
        clip: largest norm of the gradient.
        validate_every, validate_on: steps between validations, and how many edits they see (always the same).
        patience: stop after so many steps without a lower validation loss, at least `validate_every`; None = never.
        keep: the "best" state of all validations, or the "last" one, whatever its loss; then nothing stops early (spec E8).
        checkpoint_every: steps between resumable checkpoints.
        log_every: steps between rows of training.csv.
        hard_share, rephrase, no_op_share, prompt_share: see `examples.Sampler`.
    """

    k_train: int = 1
    steps: int = 500_000
    accumulate: int = 10
    clip: float = 100.0
    validate_every: int = 5_000
    validate_on: int = 500
    patience: int | None = 20_000
    keep: str = "best"
    checkpoint_every: int = 5_000
    log_every: int = 100
    hard_share: float = 0.0
    rephrase: bool = True
    no_op_share: float = 0.0
    prompt_share: float = 0.0

    def __post_init__(self) -> None:
        names = ("k_train", "steps", "accumulate", "validate_every", "validate_on", "checkpoint_every")
        for name in (*names, "log_every", "patience"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise SettingsError(f"setting {name} = {value!r} is not allowed: a whole number above 0")
        if self.patience is not None and self.patience < self.validate_every:
            raise SettingsError(
                f"setting patience = {self.patience} is not allowed: at least validate_every = {self.validate_every}, or "
                "training would stop before it is looked at again"
            )
        if self.keep not in ("best", "last"):
            raise SettingsError(f"setting keep = {self.keep!r} is not allowed: best or last")
        if not self.clip > 0:
            raise SettingsError(f"setting clip = {self.clip!r} is not allowed: must be positive")
        for name in ("hard_share", "no_op_share", "prompt_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingsError(f"setting {name} = {getattr(self, name)!r} is not allowed: a share")
