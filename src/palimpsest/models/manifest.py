"""manifest.json of a model directory: where the weights are, what they are, and how they came about."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from palimpsest.errors import ModelError, SettingsError
from palimpsest.files import read_object, whole_folder, write_json
from palimpsest.models.families import family_of
from palimpsest.models.hub import pinned
from palimpsest.models.loading import MANIFEST, LanguageModel, load_model
from palimpsest.models.pairs import read_pairs
from palimpsest.models.shapes import SHAPE, random_network, shape_keys, shape_of
from palimpsest.models.tokenizer import train_tokenizer
from palimpsest.plain import SEEDS, check_whole
from palimpsest.text_files import text_lines

log = logging.getLogger(__name__)
TEXTS = ("kind", "path", "id", "revision", "tokenizer", "family", "name", "dtype", "corpus", "pairs")
EXTERNAL = {
    "kind",
    "path",
    "id",
    "revision",
    "tokenizer",
    "family",
    "name",
    "title",
    "dtype",
    "device",
    "fingerprint",
    "layers",
    "gate",
}


def save_network(network: nn.Module, tokenizer, out: Path) -> None:
    """Write a hub-format directory (config, safetensors, tokenizer); the manifest that makes it valid comes
    last. An earlier model goes when the new one is written."""
    with whole_folder(out, drop=(MANIFEST, "model*.safetensors*")) as half:
        network.save_pretrained(str(half))  # type: ignore[operator]
        tokenizer.save_pretrained(str(half))


def write_manifest(out: Path, extra: Mapping[str, Any]) -> None:
    """Manifest of a model whose files lie beside it; the fingerprint is that of the model as it is read back."""
    model = load_model(out)
    write_json(
        out / MANIFEST,
        {
            "path": ".",
            "revision": None,
            "family": model.family.name,
            "fingerprint": model.fingerprint,
            "pretrained_here": False,
            **extra,
        },
    )


def describe_model(spec: dict[str, Any], out: Path | str) -> None:
    """Write the manifest of a model that is not pre-trained here.

    Args:
        spec: `kind` "path" (`path`: a directory), "hub" (`id`, pinned `revision`) or "random" (a randomly
            initialised stand-in: keys of `shapes.shape_keys`, `vocabulary`, `seed`, for its tokenizer an optional
            `corpus` file or `pairs` (pairs.jsonl of a source, whose classes are the model's; its files are
            written to `out`). Optional `family`, `dtype`, `name`, `fingerprint`
            (False skips loading); of the first two `tokenizer`: a directory or `org/name@COMMIT` with the tokenizer of a
            model whose own files have none.
        out: directory for manifest.json.

    Raises:
        SettingsError: an unknown kind or key. ModelError: the model cannot be read. DataError: `corpus` or `pairs` cannot.
    """
    out = Path(out)
    for name in TEXTS:
        value = spec.get(name)
        if value is not None and (not isinstance(value, str) or "\0" in value):
            raise SettingsError(f"model setting '{name}' is {value!r:.60}; expected a text")
    if spec.get("kind") == "random":
        _random_stand_in(spec, out)
        return
    target = _target(spec)
    content: dict[str, Any] = {"path": target, "revision": spec.get("revision"), "family": spec.get("family")}
    content |= {"pretrained_here": False, "fingerprint": None}
    if spec.get("name"):
        content["name"] = spec["name"]
    if spec.get("tokenizer"):
        place, options = pinned(str(spec["tokenizer"]))
        content["tokenizer"] = (
            f"{place}@{options['revision']}" if "revision" in options else str(Path(place).resolve())
        )
    if spec.get("fingerprint", True):
        dtype, revision, family = spec.get("dtype", "float32"), spec.get("revision"), spec.get("family")
        model: LanguageModel = load_model(
            target, dtype, revision=revision, family=family, tokenizer=content.get("tokenizer")
        )
        content |= {"family": model.family.name, "fingerprint": model.fingerprint, "blocks": model.n_blocks}
        content |= {"width": model.width, "inner": model.inner_width, "context": model.context}
    elif content["family"]:
        content["family"] = family_of(str(content["family"])).name
    write_json(out / MANIFEST, content)


def _target(spec: Mapping[str, Any]) -> str:
    """Absolute directory or hub id of an external model, after checking the spec."""
    kind = spec.get("kind", "path")
    if kind not in ("path", "hub"):
        raise SettingsError(f"model kind {kind!r} is not known (known: path, hub, random)")
    unknown = sorted(set(spec) - EXTERNAL)
    if unknown:
        raise SettingsError(
            f"unknown key {unknown[0]!r} in the spec of a {kind} model; "
            f"known are {', '.join(sorted(EXTERNAL))}"
        )
    needed = "path" if kind == "path" else "id"
    if not spec.get(needed):
        raise SettingsError(f"a model of kind {kind!r} needs the key {needed!r}")
    if kind == "hub":
        return str(spec["id"])
    if not os.path.isdir(spec["path"]):
        raise ModelError(
            f"model directory {spec['path']} does not exist. Correct the key 'path' in the configuration"
        )
    return str(Path(spec["path"]).resolve())


def _random_stand_in(spec: Mapping[str, Any], out: Path) -> None:
    free = {"kind", "vocabulary", "seed", "corpus", "pairs", "name", "title", "layers", "gate", "dtype"}
    known = free | set(shape_keys(spec.get("family", SHAPE["family"])))
    unknown = sorted(set(spec) - known)
    if unknown:
        raise SettingsError(
            f"unknown key {unknown[0]!r} in the spec of a random model; known are {', '.join(sorted(known))}"
        )
    labels = _labels_of(spec) if "labels" in known else None
    shape = shape_of({**spec, **({"labels": labels} if labels else {})})
    seed = check_whole(spec.get("seed", 0), "model setting 'seed'", *SEEDS)
    vocabulary = check_whole(spec.get("vocabulary", 1000), "model setting 'vocabulary'")
    if spec.get("pairs"):
        texts = [
            text for pair in read_pairs(Path(spec["pairs"])) for text in (pair["prompt"], pair["answer"])
        ]
    elif spec.get("corpus"):
        lines = text_lines(spec["corpus"], "Correct the key 'corpus', or leave it out for made-up lines")
        texts = [part for line in lines for part in line.splitlines()]
    else:
        texts = _filler(seed)
    kind = family_of(shape["family"]).kind
    tokenizer = train_tokenizer(texts, vocabulary, shape["context"], kind)
    network = random_network(shape, tokenizer, seed).eval()
    save_network(network, tokenizer, out)
    write_manifest(
        out,
        {
            "random": True,
            "shape": shape,
            "seed": seed,
            "vocabulary": len(tokenizer),
            "parameters": sum(p.numel() for p in network.parameters()),
        },
    )


def _labels_of(spec: Mapping[str, Any]) -> Any:
    """Classes of a stand-in classifier: its own, or those that the source beside its pairs was made with."""
    if spec.get("labels") or not spec.get("pairs"):
        return spec.get("labels")
    beside = Path(spec["pairs"]).parent / MANIFEST
    return read_object(beside).get("labels") if os.path.isfile(beside) else None


def _filler(seed: int) -> list[str]:
    """Made-up lines, enough to train a small tokenizer without any file."""
    random = np.random.default_rng(seed)
    words = [
        "".join(random.choice(list("abcdefghiklmnoprstuvwy"), random.integers(2, 8))) for _ in range(800)
    ]
    return [" ".join(random.choice(words, 12)).capitalize() + "." for _ in range(400)]
