"""Uncentered covariance of MLP keys, C0 = E_t[k_t k_t^T], of all wanted layers in one pass over a corpus.

k_t (width d_k) is the input of the second MLP matrix at token t. ROME, MEMIT and COMEBA-HK stand on it:
Eq. 15 of COMEBA-HK takes K0 K0^T = lambda C0. The sums run over every token of the corpus, in float64, of
products taken in float32; the mean is stored in float32.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from palimpsest.errors import ModelError, SettingsError, StatisticsError
from palimpsest.files import write_atomic, write_json
from palimpsest.plain import build
from palimpsest.provenance import source_digest
from palimpsest.statistics.accumulation import (
    Sums,
    accumulate,
    batched,
    corpus_digest,
    packed_rows,
    read_tensors,
    write_description,
)
from palimpsest.text_files import text_lines

log = logging.getLogger(__name__)

TENSORS_FILE = "covariance.safetensors"
DESCRIPTION_FILE = "covariance.json"
PARTIAL_FILE = "covariance-partial.safetensors"
# What makes two collections the same one; `layers` is left out, so that missing layers can be added later.
KEY_FIELDS = ("model_fingerprint", "corpus_sha256", "token_budget", "context")


@dataclass(frozen=True)
class CovarianceStatistics:
    """Second moments of the keys of one model.

    Attributes:
        matrices: layer -> C0, float32, [d_k, d_k], symmetric positive semi-definite.
        tokens: number of tokens averaged over.
        model_fingerprint: `LanguageModel.fingerprint` of the model whose keys these are; empty = not known.
        corpus_sha256, token_budget, context: the rest of the key; empty or 0 for matrices made by hand.
        model_name: for messages only.
        derived: what others computed from the matrices and want to find again (factors); never saved.
    """

    matrices: Mapping[int, torch.Tensor]
    tokens: int
    model_fingerprint: str = ""
    corpus_sha256: str = ""
    token_budget: int = 0
    context: int = 0
    model_name: str = ""
    derived: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse what no solve could use: not square, not finite, no tokens."""
        if not self.matrices or self.tokens < 1:
            raise StatisticsError("covariance statistics need at least one layer and one token")
        for layer, matrix in self.matrices.items():
            if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
                raise StatisticsError(
                    f"covariance of layer {layer} has shape {tuple(matrix.shape)}; expected [d_k, d_k]"
                )
            if not torch.isfinite(matrix).all():
                raise StatisticsError(
                    f"covariance of layer {layer} holds non-finite values. "
                    "Collect it again, in float32, and check the model"
                )

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers there are, ascending."""
        return tuple(sorted(self.matrices))

    def matrix(self, layer: int) -> torch.Tensor:
        """C0 of `layer`, [d_k, d_k], float64; a copy, so that no caller changes what others read."""
        return self.stored(layer).to(torch.float64, copy=True)

    def stored(self, layer: int) -> torch.Tensor:
        """C0 of `layer` itself, [d_k, d_k], as it lies in memory; not to be changed."""
        if layer not in self.matrices:
            raise StatisticsError(
                f"no covariance of layer {layer}; there are layers {list(self.layers)}. "
                f"Collect it: palimpsest statistics --help"
            )
        return self.matrices[layer]

    def check(self, model: Any) -> None:
        """Refuse statistics of another model (the message has both fingerprints) or of another width."""
        if self.model_fingerprint and self.model_fingerprint != model.fingerprint:
            raise StatisticsError(
                f"these statistics belong to model {self.model_name or '(unnamed)'} with fingerprint "
                f"{self.model_fingerprint}, the model at hand is {model.name} with fingerprint "
                f"{model.fingerprint}. "
                f"Collect statistics for this model: palimpsest statistics --help"
            )
        for layer, matrix in self.matrices.items():
            if matrix.shape[0] != model.inner_width:
                raise StatisticsError(
                    f"covariance of layer {layer} is {matrix.shape[0]} wide, keys of model {model.name} are "
                    f"{model.inner_width} wide. Collect statistics for this model"
                )

    def save(self, path: Path | str) -> None:
        """Write `covariance.safetensors` (matrices, with the description in its header) and
        `covariance.json`.

        `path` is a folder, or the name of the safetensors file. The tensors come first, each file whole or
        not at all.
        """
        tensors_path, description_path = _places(path)
        tensors = {
            f"layer_{layer}": self.matrices[layer].to(torch.float32).contiguous() for layer in self.layers
        }
        header = {name: str(value) for name, value in self.describe().items() if name != "layers"}
        write_atomic(tensors_path, lambda temporary: save_file(tensors, temporary, metadata=header))
        write_json(description_path, self.describe())

    @classmethod
    def load(cls, path: Path | str) -> CovarianceStatistics:
        """Read what `save` wrote; a missing, truncated or foreign file is refused by name."""
        tensors_path, _ = _places(path)
        tensors, header = read_tensors(tensors_path)
        try:
            matrices = {int(name.removeprefix("layer_")): tensor for name, tensor in tensors.items()}
            numbers = {name: int(header[name]) for name in ("tokens", "token_budget", "context")}
            words = {name: header[name] for name in ("model_fingerprint", "corpus_sha256", "model_name")}
        except (KeyError, ValueError) as error:
            raise StatisticsError(
                f"file {tensors_path} holds no covariance statistics ({error}). Collect them again"
            ) from error
        try:
            return cls(matrices=matrices, **numbers, **words)  # type: ignore[arg-type]
        except StatisticsError as error:
            raise StatisticsError(f"file {tensors_path}: {error}") from error

    def describe(self) -> dict[str, Any]:
        """Everything but the matrices, as plain data for JSON and for `run.json`."""
        return {
            "model_name": self.model_name,
            "model_fingerprint": self.model_fingerprint,
            "corpus_sha256": self.corpus_sha256,
            "token_budget": self.token_budget,
            "tokens": self.tokens,
            "context": self.context,
            "layers": list(self.layers),
            "dtype": "float32",
        }


@dataclass(frozen=True)
class CovarianceSettings:
    """How statistics are collected.

    Attributes:
        layers: blocks wanted; `None` = all.
        tokens: token budget; collection ends there or at the end of the corpus.
        context: tokens per row; `None` = the model's context.
        cut_passages: read no more than `context` tokens of each passage, as the papers do with articles.
        batch_tokens: tokens counted at once, which share a forward pass as far as free memory lets (the sums agree up to float32
            rounding).
        checkpoint_batches: the sums so far are written every so many batches, however long that takes; `None` = as often as
            writing them takes at most a twentieth of the time.
        symmetric: compute one half of the symmetric products and mirror it; False computes both.
        stop_early: end each pass in the last wanted block; False runs the whole network.
    """

    layers: tuple[int, ...] | None = None
    tokens: int = 100_000
    context: int | None = None
    cut_passages: bool = False
    batch_tokens: int = 2048
    checkpoint_batches: int | None = None
    symmetric: bool = True
    stop_early: bool = True

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be counts."""
        given = (name for name in ("context", "checkpoint_batches") if getattr(self, name) is not None)
        for name in ("tokens", "batch_tokens", *given):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise SettingsError(
                    f"statistics: '{name}' is {getattr(self, name)!r}; expected a whole number above 0"
                )

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> CovarianceSettings:
        """From the JSON of a rule; unknown names are refused."""
        layers = content.get("layers")
        if layers == "all":
            layers = None
        made = build(cls, {**content, "layers": layers}, "statistics")
        return made if made.layers is None else replace(made, layers=tuple(sorted(set(made.layers))))


def collect(
    spec: Mapping[str, Any], model_dir: Path | str, corpus: Path | str, out_dir: Path | str
) -> CovarianceStatistics:
    """The rule `covariance`: load the model, collect over the lines of a text file, write into `out_dir`.

    Work already done for the same model, corpus and budget is kept: finished layers, and the sums of a broken
    run.
    """
    from palimpsest.models.loading import load_model

    # Of the model, not of the collection: the fingerprint is taken in the precision the runs will use.
    loading = {name: spec[name] for name in ("dtype", "device") if name in spec}
    settings = CovarianceSettings.from_dict({k: v for k, v in spec.items() if k not in loading})
    next(text_lines(corpus, "Give a text file with one passage a line"), None)  # no model is loaded in vain
    return collect_covariance(load_model(model_dir, **loading), corpus, settings=settings, out=out_dir)


def collect_covariance(
    model: Any,
    corpus: Path | str | Sequence[str],
    settings: CovarianceSettings | None = None,
    out: Path | str | None = None,
    progress: bool = True,
) -> CovarianceStatistics:
    """C0 of all wanted layers of `model`, in one pass that ends inside the last wanted block.

    Args:
        model: a `LanguageModel`, unedited.
        corpus: a text file (one passage a line), or the passages.
        settings: what to collect; default: all layers, 100,000 tokens.
        out: folder for the result and for checkpoints; without it nothing is written.
        progress: show a bar on stderr.

    Returns:
        Statistics of the wanted layers and of those that `out` already had under the same key.

    Raises:
        StatisticsError: empty corpus, or keys that are not finite.
        ModelError: a layer the model does not have.
    """
    settings = settings or CovarianceSettings()
    wanted = _wanted_layers(model, settings)
    context = min(settings.context or model.context, model.context)
    longest = context if settings.cut_passages else None
    key = {
        "model_fingerprint": model.fingerprint,
        "corpus_sha256": corpus_digest(corpus, longest),
        "token_budget": settings.tokens,
        "context": context,
    }
    found = _matching(out, key) if out is not None else None
    missing = tuple(layer for layer in wanted if found is None or layer not in found.matrices)
    if out is not None and found is not None and not missing:
        log.info("covariance of layers %s is there already", list(wanted))
        # As a job leaves them that was killed right after it had written the matrices.
        (Path(out) / PARTIAL_FILE).unlink(missing_ok=True)
        write_description(_places(out)[1], found.describe())
        return found
    path = Path(out) / PARTIAL_FILE if out is not None else None
    # Half a collection by other code is not resumed.
    half = {**key, "code": source_digest(__name__)} if path is not None else key
    partial = Sums(path, half, missing, model, settings.batch_tokens, settings.symmetric)
    rows = packed_rows(model, corpus, settings.tokens, context, longest)
    batches = batched(rows, max(1, settings.batch_tokens // context))
    accumulate(
        model, batches, partial, settings.tokens, settings.checkpoint_batches, progress, settings.stop_early
    )
    if partial.tokens == 0:
        raise StatisticsError("the corpus holds no text. Give a file with one passage a line")
    if partial.tokens < settings.tokens:
        log.warning("the corpus ended after %d of %d tokens", partial.tokens, settings.tokens)
    fresh = {layer: (partial.total(layer) / partial.tokens).to(torch.float32) for layer in missing}
    matrices = {**(found.matrices if found else {}), **fresh}
    result = CovarianceStatistics(matrices, partial.tokens, model_name=model.name, **key)
    if out is not None:
        result.save(out)
    partial.remove()
    return result


def _wanted_layers(model: Any, settings: CovarianceSettings) -> tuple[int, ...]:
    wanted = tuple(range(model.n_blocks)) if settings.layers is None else tuple(sorted(set(settings.layers)))
    wrong = [layer for layer in wanted if not 0 <= layer < model.n_blocks]
    if wrong or not wanted:
        raise ModelError(f"layers {wrong} do not exist: {model.name} has blocks 0 to {model.n_blocks - 1}")
    return wanted


def _matching(out: Path | str, key: Mapping[str, Any]) -> CovarianceStatistics | None:
    tensors_path, _ = _places(out)
    if not tensors_path.exists():
        return None
    try:
        found = CovarianceStatistics.load(tensors_path)
    except StatisticsError as error:
        log.warning("collecting again: %s", error)
        return None
    if all(getattr(found, name) == key[name] for name in KEY_FIELDS):
        return found
    log.info("the statistics in %s have another model, corpus or budget: collecting again", tensors_path)
    return None


def _places(path: Path | str) -> tuple[Path, Path]:
    path = Path(path)
    if path.suffix in (".safetensors", ".json"):
        return path.with_suffix(".safetensors"), path.with_suffix(".json")
    return path / TENSORS_FILE, path / DESCRIPTION_FILE
