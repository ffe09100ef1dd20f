"""Pre-training of the small models that answer: encoder-decoders (T5 shape) and classifiers (BERT shape).

They are trained on pairs of prompt and answer. A pair of the kind "held_out" is never read; it measures.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from palimpsest.errors import DataError, ModelError, SettingsError
from palimpsest.files import read_object
from palimpsest.models.families import family_of
from palimpsest.models.hub import NO_PICKLE, pinned
from palimpsest.models.loading import AUTO, LanguageModel, load_model
from palimpsest.models.manifest import save_network, write_manifest
from palimpsest.models.objectives import encode, judge
from palimpsest.models.packaged import checksum, locate
from palimpsest.models.pairs import HELD_OUT, read_pairs
from palimpsest.models.shapes import class_names, random_network, shape_keys, shape_of
from palimpsest.models.tokenizer import train_tokenizer
from palimpsest.models.training import CHECKPOINT, Schedule, digest_of, train, write_curve
from palimpsest.plain import build

FAMILIES = ("t5", "bert")
FREE = {"kind", "name", "title", "source", "threads", "gate", "layers", "family", "start"}
NONE = -100  # no target here
MEASURED = 400  # pairs of each kind that are asked at the end


@dataclass(frozen=True)
class PairTraining(Schedule):
    """How a model is trained on pairs; see `training.Schedule` for what is not named here.

    Attributes:
        batch: pairs a step.
        vocabulary: tokens of the tokenizer at most.
        repeats: how often pairs of a kind are read for one reading of the others, such as {upstream: 2}.
        bottleneck: share of the rows whose answer is read from the last state of the encoder alone: a decoder sees
            nothing but the state of `</s>`, a classifier reads that of `[SEP]` in the place of `[CLS]`: the states
            that ask a codebook. Measured at the edited layer of the mini models: nearest question with the same
            answer .99 with half of the rows, .87 with none; nearest case of the same topic .97 and .36. Training
            only: the saved model is an ordinary one.
    """

    batch: int = 32
    vocabulary: int = 1500
    repeats: dict[str, int] | None = None
    bottleneck: float = 0.0


@dataclass(frozen=True)
class PairRows:
    """A batch: token ids and mask of the prompts [b, n], and token ids of the answers [b, m] (-100: none) or classes
    [b, 1]."""

    input_ids: Tensor
    attention_mask: Tensor
    targets: Tensor


def pretrain_pairs(spec: dict[str, Any], source: Path | str, out: Path | str, threads: int = 1) -> None:
    """Train one model on a source directory (pairs.jsonl) and write it to `out` in hub format.

    With `start` in the spec (a directory in hub format, a hub id, or `package:NAME/FOLDER`) its weights and tokenizer
    are trained further, else a network of the given shape starts at random. Classes of a classifier are `labels` of
    the spec, or of the source's manifest, or the answers in alphabetical order. An interrupted run continues from its
    checkpoint when spec and source are the same.

    Raises:
        SettingsError: an unknown or impossible key of `spec` (keys of `shapes.shape_keys` and of `PairTraining`).
        ModelError: training diverged, or `start` cannot be read.
        DataError: pairs.jsonl is missing or damaged, or a class is not in the label set.
    """
    torch.set_num_threads(max(1, int(threads)))
    source, out = Path(source), Path(out)
    training = training_of(spec)
    pairs = read_pairs(source / "pairs.jsonl")
    read = [pair for pair in pairs if pair["kind"] != HELD_OUT]
    origin = read_object(source / "manifest.json") if (source / "manifest.json").exists() else {}
    labels = spec.get("labels") or origin.get("labels") or sorted({pair["answer"] for pair in pairs})
    family = family_of(spec["family"])
    if family.kind == "encoder":
        labels = class_names(labels)
    if spec.get("start"):
        start = locate(str(spec["start"]))
        shape, network, tokenizer = None, *_start(start, family.name, labels, training.seed)
    else:
        # `source` is a directory here and no key of the shape
        own = {key: value for key, value in spec.items() if key != "labels"}
        shape = shape_of(own | ({"labels": labels} if family.kind == "encoder" else {}))
        texts = [pair[name] for pair in read for name in ("prompt", "answer")]
        tokenizer = train_tokenizer(texts, training.vocabulary, shape["context"], family.kind)
        network = random_network(shape, tokenizer, training.seed)
    model = LanguageModel(network, tokenizer, family, str(spec.get("name", "model")))
    network.requires_grad_(True)
    _refuse_long(model, pairs)
    rows = train(
        network,
        batches(model, read, training),
        lambda batch, step: pair_loss(network, batch, training),
        lambda batch: batch.input_ids.numel(),
        training,
        out / CHECKPOINT,
        digest_of(spec, [source / "pairs.jsonl", source / "manifest.json"], __name__),
    )
    network.eval()
    measured = measure(model, pairs)
    save_network(network, tokenizer, out)
    write_curve(out / "training.csv", rows)
    about = {
        "pretrained_here": True,
        "start": spec.get("start"),
        "start_sha256": checksum(str(spec["start"])) if spec.get("start") else None,
        "shape": shape,
        "training": {f.name: getattr(training, f.name) for f in fields(training)},
        "parameters": sum(p.numel() for p in network.parameters()),
        "vocabulary": len(tokenizer),
        "labels": list(labels) if family.kind == "encoder" else None,
        "source": origin,
        "pairs": len(read),
        "right": measured,
        "tokens": rows[-1]["tokens"],
        "final_loss": rows[-1]["loss"],
    }
    write_manifest(out, about)
    (out / CHECKPOINT).unlink(missing_ok=True)


def training_of(spec: Mapping[str, Any]) -> PairTraining:
    """The training settings of a model spec; unknown names are refused."""
    if spec.get("family") not in FAMILIES:
        raise SettingsError(
            f"model setting 'family' is {spec.get('family')!r}; pairs train one of {', '.join(FAMILIES)}"
        )
    beside = {*shape_keys(spec["family"]), "labels", *FREE}
    training = build(PairTraining, spec, "the model", beside)
    for name in ("steps", "batch", "log_every"):
        if int(getattr(training, name)) < 1:
            raise SettingsError(f"model setting '{name}' is {getattr(training, name)!r}; expected at least 1")
    if not 0 <= training.bottleneck <= 1:
        raise SettingsError(
            f"model setting 'bottleneck' is {training.bottleneck!r}; expected a share between 0 and 1"
        )
    if any(not isinstance(times, int) or times < 1 for times in (training.repeats or {}).values()):
        raise SettingsError(
            f"model setting 'repeats' is {training.repeats!r}; expected whole numbers above 0"
        )
    return training


def batches(
    model: LanguageModel, pairs: Sequence[Mapping[str, Any]], training: PairTraining
) -> Iterator[PairRows]:
    """Batches for ever, of rows of similar length; the stream is a function of the seed."""
    tokenizer = model.tokenizer
    prompts = tokenizer([pair["prompt"] for pair in pairs], truncation=True, max_length=model.context)[
        "input_ids"
    ]
    answers = _answers(model, pairs)
    repeats = training.repeats or {}
    order = [index for index, pair in enumerate(pairs) for _ in range(repeats.get(pair["kind"], 1))]
    source = random.Random(f"{training.seed} rows")
    while True:
        source.shuffle(order)
        groups = []
        for start in range(0, len(order), 16 * training.batch):
            near = sorted(order[start : start + 16 * training.batch], key=lambda index: len(prompts[index]))
            groups += [near[at : at + training.batch] for at in range(0, len(near), training.batch)]
        source.shuffle(groups)
        for group in groups:
            ids = _padded([prompts[index] for index in group], tokenizer.pad_token_id)
            mask = _padded([[1] * len(prompts[index]) for index in group], 0)
            yield PairRows(ids, mask, _padded([answers[index] for index in group], NONE))


def _refuse_long(model: LanguageModel, pairs: Sequence[Mapping[str, Any]]) -> None:
    for number, pair in enumerate(pairs, start=1):
        length = len(model.tokenizer(pair["prompt"])["input_ids"])
        if length > model.context:
            raise DataError(
                f"the prompt has {length} tokens, the model reads {model.context}",
                file="pairs.jsonl",
                record=f"line {number}",
                field="prompt",
                remedy="Cut documents with the setting 'words', or raise 'context'",
            )


def _answers(model: LanguageModel, pairs: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    if model.kind == "encoder_decoder":
        return model.tokenizer([pair["answer"] for pair in pairs])["input_ids"]
    number = {name: index for index, name in enumerate(model.labels)}
    if strange := sorted({pair["answer"] for pair in pairs} - set(number)):
        raise DataError(
            f"class {strange[0]!r} is outside the label set ({', '.join(number)})",
            file="pairs.jsonl",
            field="answer",
            remedy="Name all classes in 'labels' of the source",
        )
    return [[number[pair["answer"]]] for pair in pairs]


def _padded(rows: Sequence[Sequence[int]], filling: int) -> Tensor:
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[filling] * (longest - len(row))] for row in rows])


def pair_loss(network: nn.Module, batch: PairRows, training: PairTraining) -> Tensor:
    """Mean loss over the answers' tokens (or the classes) of a batch."""
    mask = batch.attention_mask
    last = mask.sum(dim=1) - 1
    narrow = torch.rand(len(mask)) < training.bottleneck
    if not network.config.is_encoder_decoder:  # type: ignore[union-attr]
        return _class_loss(network, batch, torch.where(narrow, last, 0))
    extra: dict[str, Any] = {"input_ids": batch.input_ids}
    if training.bottleneck > 0:
        encoder: Any = network.get_encoder()  # type: ignore[operator]
        extra = {"encoder_outputs": encoder(input_ids=batch.input_ids, attention_mask=mask)}
        mask = torch.where(narrow[:, None], nn.functional.one_hot(last, mask.shape[1]), mask)
    return network(attention_mask=mask, labels=batch.targets, **extra).loss


def _class_loss(network: Any, batch: PairRows, position: Tensor) -> Tensor:
    """Cross entropy when the head reads the state at `position` [b] of each row."""
    states = network.base_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    rows = torch.arange(len(position))
    pooled = network.base_model.pooler(states.last_hidden_state[rows, position][:, None])
    return nn.functional.cross_entropy(network.classifier(network.dropout(pooled)), batch.targets[:, 0])


@torch.no_grad()
def measure(model: LanguageModel, pairs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Share of the pairs of each kind whose whole answer the model gives (with the right tokens before it)."""
    model.network.eval()
    shares = {}
    for kind in sorted({pair["kind"] for pair in pairs}):
        mine = [pair for pair in pairs if pair["kind"] == kind]
        mine = mine[:: max(1, len(mine) // MEASURED)][:MEASURED]
        right = 0
        for start in range(0, len(mine), 50):
            some = mine[start : start + 50]
            inputs = encode(model, [pair["prompt"] for pair in some], [pair["answer"] for pair in some])
            right += int(judge(model, inputs).right.sum())
        shares[kind] = right / len(mine)
    return shares


def _start(where: str, family: str, labels: Sequence[str], seed: int) -> tuple[Any, Any]:
    """Network and tokenizer of an existing model; a classifier gets a new head for `labels`, drawn from the seed."""
    import transformers

    kind = family_of(family).kind
    if kind != "encoder":
        model = load_model(where, family=family)
        return model.network, model.tokenizer
    where, options = pinned(where)
    named = {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(where, use_fast=True, **options)
        torch.manual_seed(seed)  # of the new head
        network = getattr(transformers, AUTO[kind]).from_pretrained(
            where, num_labels=len(labels), ignore_mismatched_sizes=True, **NO_PICKLE, **options, **named
        )
    except Exception as error:  # transformers raises many kinds; the reader needs one sentence
        raise ModelError(
            f"cannot start from the model {where}: {type(error).__name__}: {str(error).splitlines()[0]}. "
            "Give a directory with config.json, model.safetensors and tokenizer.json"
        ) from error
    if network.config.model_type != family:
        raise ModelError(f"{where} is a {network.config.model_type} model, not {family}. Correct 'family'")
    return network.float(), tokenizer
