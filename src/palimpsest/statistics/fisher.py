"""Diagonal Fisher information of one matrix of some blocks: F = E[(d loss / d W)^2], element by element.

EWC (Kirkpatrick et al. 2017, Eq. 3) weighs by it how much each entry may move. The loss of each example is the model's own
(models/objectives.py), its gradient is taken example by example, squared, and averaged; several examples share a
pass, because the gradient of a linear map is an outer product over the row's own tokens. Sums in float64, stored in float32.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from palimpsest import interruption
from palimpsest.errors import DataError, SettingsError, StatisticsError
from palimpsest.files import read_records, write_atomic, write_json
from palimpsest.models.batching import Batching
from palimpsest.models.families import matrix_view
from palimpsest.models.loading import LanguageModel, load_model
from palimpsest.models.objectives import encode
from palimpsest.models.upper import Upper
from palimpsest.plain import build
from palimpsest.provenance import source_digest
from palimpsest.statistics.accumulation import Partial, read_tensors, write_description

log = logging.getLogger(__name__)

TENSORS_FILE = "fisher.safetensors"
DESCRIPTION_FILE = "fisher.json"
PARTIAL_FILE = "fisher-partial.safetensors"
# What makes two collections the same one; `layers` is left out, so that missing layers can be added later.
KEY_FIELDS = ("model_fingerprint", "examples_sha256", "examples", "site")


@dataclass(frozen=True)
class FisherStatistics:
    """Mean squared gradients of one matrix of some blocks of one model.

    Attributes:
        matrices: layer -> F, float32, [out, in], not negative.
        site: which matrix of the block (`LanguageModel.linear`).
        examples: number of examples averaged over.
        model_fingerprint: of the model they were taken on; empty = not known.
        examples_sha256: of the examples; empty for matrices made by hand.
        model_name: for messages only.
    """

    matrices: Mapping[int, Tensor]
    site: str
    examples: int
    model_fingerprint: str = ""
    examples_sha256: str = ""
    model_name: str = ""

    def __post_init__(self) -> None:
        """Refuse what no penalty could use."""
        if not self.matrices or self.examples < 1:
            raise StatisticsError("Fisher statistics need at least one layer and one example")
        for layer, matrix in self.matrices.items():
            if matrix.ndim != 2 or not torch.isfinite(matrix).all() or (matrix < 0).any():
                raise StatisticsError(
                    f"the Fisher information of layer {layer} is no matrix of finite numbers of at least 0. "
                    "Collect it again, in float32, and check the model"
                )

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers there are, ascending."""
        return tuple(sorted(self.matrices))

    def matrix(self, layer: int) -> Tensor:
        """F of `layer` [out, in], float32; a copy, so that no caller changes what others read."""
        if layer not in self.matrices:
            raise StatisticsError(
                f"no Fisher information of layer {layer}; there are layers {list(self.layers)}. Collect it"
            )
        return self.matrices[layer].to(torch.float32, copy=True)

    def check(self, model: LanguageModel, layer: int, site: str) -> None:
        """Refuse statistics of another model (the message has both fingerprints), site or shape."""
        if self.model_fingerprint and self.model_fingerprint != model.fingerprint:
            raise StatisticsError(
                f"these Fisher statistics belong to model {self.model_name or '(unnamed)'} with fingerprint "
                f"{self.model_fingerprint}, the model at hand is {model.name} with fingerprint {model.fingerprint}. "
                "Collect them for this model"
            )
        if self.site != site:
            raise StatisticsError(
                f"these Fisher statistics are of site {self.site!r}, not {site!r}. Collect them again"
            )
        module = model.linear(layer, site)
        if self.matrix(layer).numel() != module.weight.numel():
            raise StatisticsError(
                f"the Fisher information of layer {layer} is {tuple(self.matrices[layer].shape)}, but the matrix of "
                f"{model.name} is {tuple(module.weight.shape)}. Collect it for this model"
            )

    def save(self, path: Path | str) -> None:
        """Write `fisher.safetensors` (with the description in its header) and `fisher.json` into the folder `path`."""
        tensors = {
            f"layer_{layer}": self.matrices[layer].to(torch.float32).cpu().contiguous()
            for layer in self.layers
        }
        header = {name: str(value) for name, value in self.describe().items() if name != "layers"}
        write_atomic(
            Path(path) / TENSORS_FILE, lambda temporary: save_file(tensors, temporary, metadata=header)
        )
        write_json(Path(path) / DESCRIPTION_FILE, self.describe())

    @classmethod
    def load(cls, path: Path | str) -> FisherStatistics:
        """Read what `save` wrote; a missing, truncated or foreign file is refused by name."""
        tensors_path = Path(path) / TENSORS_FILE
        tensors, header = read_tensors(tensors_path)
        try:
            matrices = {int(name.removeprefix("layer_")): tensor for name, tensor in tensors.items()}
            words = {name: header[name] for name in KEY_FIELDS if name != "examples"}
            return cls(matrices, examples=int(header["examples"]), model_name=header["model_name"], **words)
        except (KeyError, ValueError) as error:
            raise StatisticsError(
                f"file {tensors_path} holds no Fisher statistics ({error}). Collect them again"
            ) from error

    def describe(self) -> dict[str, Any]:
        """Everything but the matrices, as plain data for JSON and for `run.json`."""
        return {
            "kind": "fisher",
            **{name: getattr(self, name) for name in (*KEY_FIELDS, "model_name")},
            "layers": list(self.layers),
            "dtype": "float32",
        }


def squared_gradients(model: LanguageModel, upper: Upper, layer: int, site: str) -> Tensor:
    """Sum over rows of the squared gradient of the row's own loss by W [out, in], float64, in one pass."""
    module, noted = model.linear(layer, site), {}

    def note(_: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        noted["input"] = inputs[0].detach()
        # Nothing below needs a gradient, so the output starts the graph.
        noted["output"] = output.detach().requires_grad_(True)
        return noted["output"]

    handle = module.register_forward_hook(note)
    try:
        with torch.enable_grad():
            losses = upper.row_losses()
            (sent,) = torch.autograd.grad(losses.sum(), noted["output"])
    finally:
        handle.remove()
    given, total = noted["input"], None
    for row in range(len(sent)):  # one matrix at a time: a row's gradient is as large as W
        square = (sent[row].double().T @ given[row].double()).square_()
        total = square if total is None else total.add_(square)
    if total is None or not torch.isfinite(total).all():
        raise StatisticsError(f"the gradients of layer {layer} are not finite. Load the model in float32")
    return total


@dataclass(frozen=True)
class FisherSettings:
    """How Fisher statistics are collected.

    Attributes:
        layers: blocks wanted.
        site: which matrix of them.
        limit: examples at most; None = all.
        batch_tokens: padded tokens of one pass.
    """

    layers: tuple[int, ...]
    site: str = "mlp_out"
    limit: int | None = 1000
    batch_tokens: int = 1024

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> FisherSettings:
        """From the JSON of a rule; unknown names are refused."""
        made = build(cls, content, "Fisher statistics")
        if not made.layers:
            raise SettingsError("Fisher statistics: setting layers is empty; name at least one block")
        return replace(made, layers=tuple(sorted(set(made.layers))))


def collect(
    spec: Mapping[str, Any], model_dir: Path | str, pairs: Path | str, out_dir: Path | str
) -> FisherStatistics:
    """The rule: load the model, collect over the upstream examples of a file (see `read_pairs`), write into `out_dir`."""
    loading = {name: spec[name] for name in ("dtype", "device") if name in spec}
    settings = FisherSettings.from_dict({k: v for k, v in spec.items() if k not in loading})
    return collect_fisher(load_model(model_dir, **loading), read_pairs(pairs), settings, out_dir)


def read_pairs(path: Path | str) -> list[tuple[str, str]]:
    """(prompt, answer) of each JSON line with these fields; of lines with a `set`, those of the set "upstream"."""
    pairs = []
    for place, content in read_records(path, "Give probes.jsonl or pairs.jsonl"):
        if content.get("set", "upstream") != "upstream":
            continue
        for name in ("prompt", "answer"):
            if not isinstance(content.get(name), str):
                what = f"expected a text, found {content.get(name)!r:.60}"
                raise DataError(what, file=path, record=place, field=name, remedy="Make the file again")
        pairs.append((content["prompt"], content["answer"]))
    return pairs


def collect_fisher(
    model: LanguageModel,
    pairs: Sequence[tuple[str, str]],
    settings: FisherSettings,
    out: Path | str | None = None,
) -> FisherStatistics:
    """F of all wanted layers; what `out` has already under the same key is kept, the sums of a broken collection too.

    Raises:
        StatisticsError: no examples, or gradients that are not finite.
        ModelError: a layer or site that the model does not have.
    """
    chosen = list(pairs[: settings.limit])
    if not chosen:
        raise StatisticsError("there are no upstream examples. Give a file with prompts and answers")
    text = json.dumps(chosen, ensure_ascii=False)
    key: dict[str, Any] = {
        "site": settings.site,
        "examples": len(chosen),
        "model_fingerprint": model.fingerprint,
        "examples_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    found = _matching(out, key)
    missing = [layer for layer in settings.layers if layer not in found]
    path = None if out is None else Path(out) / PARTIAL_FILE
    if missing:
        found |= _mean_squares(model, chosen, missing, settings, path, key)
    result = FisherStatistics(found, model_name=model.name, **key)
    if out is not None and missing:
        result.save(out)
    elif out is not None:
        write_description(Path(out) / DESCRIPTION_FILE, result.describe())
    if path is not None:
        path.unlink(missing_ok=True)
    return result


def _mean_squares(
    model: LanguageModel,
    pairs: Sequence[tuple[str, str]],
    layers: Sequence[int],
    settings: FisherSettings,
    path: Path | None,
    key: Mapping[str, Any],
) -> dict[int, Tensor]:
    """F of some layers, one after the other; `path`: where the sums so far are kept."""
    # Half a collection by other code, or in other batches, is not resumed.
    header = {**key, "batch_tokens": settings.batch_tokens, "code": source_digest(__name__) if path else ""}
    partial = Partial(path, header, {layer: _zeros(model, layer, settings.site) for layer in layers})
    texts = [f"{prompt} {answer}" for prompt, answer in pairs]
    lengths = [len(ids) for ids in model.tokenizer(texts)["input_ids"]]
    passes = list(product(layers, Batching(tokens=settings.batch_tokens).groups(lengths)))
    with interruption.deferred():
        for layer, group in passes[partial.batches :]:
            inputs = encode(model, [pairs[row][0] for row in group], [pairs[row][1] for row in group])
            partial.sums[layer] += squared_gradients(model, Upper(model, inputs, layer), layer, settings.site)
            partial.counted(f"the sums of {partial.batches + 1} of {len(passes)} passes are kept")
    return {
        layer: (total / len(pairs)).to(device="cpu", dtype=torch.float32)
        for layer, total in partial.sums.items()
    }


def _zeros(model: LanguageModel, layer: int, site: str) -> Tensor:
    matrix = matrix_view(model.linear(layer, site))
    return torch.zeros(matrix.shape, dtype=torch.float64, device=matrix.device)


def _matching(out: Path | str | None, key: Mapping[str, Any]) -> dict[int, Tensor]:
    """Layers that are there under the same key."""
    if out is None or not (Path(out) / TENSORS_FILE).exists():
        return {}
    try:
        found = FisherStatistics.load(out)
    except StatisticsError as error:
        log.warning("collecting again: %s", error)
        return {}
    if all(getattr(found, name) == key[name] for name in KEY_FIELDS):
        return dict(found.matrices)
    log.info("the Fisher statistics in %s have another model or other examples: collecting again", out)
    return {}
