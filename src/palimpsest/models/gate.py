"""The gate after pre-training: does the model know its facts, and can they be changed at the subject?"""

from __future__ import annotations

import logging
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from palimpsest.edits import Edit, read_edits
from palimpsest.errors import DataError, SettingsError
from palimpsest.files import write_json
from palimpsest.models.critical_path import TracedQuestion, prepare, state_swap, target_vector_ceiling
from palimpsest.models.loading import LanguageModel, load_model
from palimpsest.models.pretrain_rows import read_facts
from palimpsest.models.tokens import encode_pairs
from palimpsest.plain import build

log = logging.getLogger(__name__)
# Blocks with parallel attention and MLP need the larger clamp; fixed before any editing result was seen.
CLAMP = {"gptj": 1.5}
FEWEST_PAIRS = 10
LOADING = ("device", "dtype")


@dataclass(frozen=True)
class GateSettings:
    """What is asked of a model.

    Attributes:
        recall, ceiling, state_swap: smallest shares that pass; state_swap None is not judged.
        layers: blocks that will be edited; None is the first third.
        edits: facts tried by the ceiling and the swaps.
        clamp, step_ratio, steps: of the target vectors; clamp None is .75, or the family's value of `CLAMP`.
        phrasings: other phrasings tried at most, of each kind.
        seed: which facts are tried.
    """

    recall: float = 0.95
    ceiling: float = 0.8
    state_swap: float | None = 0.25
    layers: tuple[int, ...] | None = None
    edits: int = 40
    clamp: float | None = None
    step_ratio: float = 0.025
    steps: int = 20
    phrasings: int = 300
    seed: int = 0


def examine(
    spec: Mapping[str, Any],
    model_dir: Path | str,
    dataset_dir: Path | str,
    source_dir: Path | str | None,
    out: Path | str,
    known: Path | str,
) -> dict[str, Any]:
    """Examine one model on one data set; writes the verdict (`out`) and the facts it knows (`known`).

    Args:
        spec: keys of `GateSettings`, and `device` and `dtype` to load the model with; `model` and `dataset` are names
            kept for the figure, `mode` is not read here.
        dataset_dir: holds edits.jsonl; source_dir: holds facts.jsonl, for recall on trained phrasings (may
            be None).

    Raises:
        SettingsError: unknown or impossible key. DataError: no edit has a truth. ModelError: the model
        cannot be read.
    """
    loading = {name: spec[name] for name in LOADING if name in spec}
    settings = settings_of({name: value for name, value in spec.items() if name not in LOADING})
    model = load_model(model_dir, **loading)
    model.need_decoder("the gate")
    layers = list(settings.layers if settings.layers is not None else range(max(1, -(-model.n_blocks // 3))))
    for layer in layers:
        model.block(layer)  # refuses a layer that does not exist
    edits = _edits_with_truth(Path(dataset_dir) / "edits.jsonl")
    right = exact(model, [(edit.prompt, str(edit.truth)) for edit in edits])
    known_edits = [edit for edit, knows in zip(edits, right, strict=True) if knows]
    content: dict[str, Any] = {
        "model": spec.get("model", model.name),
        "dataset": spec.get("dataset", Path(dataset_dir).name),
        "family": model.family.name,
        "fingerprint": model.fingerprint,
        "n": len(edits),
        "layers": layers,
        "recall": len(known_edits) / len(edits),
        "majority_baseline": majority_baseline(edits),
        **_phrasings(model, edits, source_dir, settings),
        **_probes(model, known_edits or edits, settings),
        "threshold": settings.ceiling,
        "thresholds": {name: getattr(settings, name) for name in ("recall", "ceiling", "state_swap")},
    }
    content["reasons"] = reasons(content, settings, layers)
    content["verdict"] = "fail" if content["reasons"] else "pass"
    names = [edit.identifier for edit in known_edits]
    write_json(known, {"known": names, "checked": len(edits), "fingerprint": model.fingerprint})
    write_json(out, content)
    why = "; ".join(content["reasons"])
    log.info("%s on %s: %s %s", content["model"], content["dataset"], content["verdict"], why)
    return content


def settings_of(spec: Mapping[str, Any]) -> GateSettings:
    """Gate settings of a spec; unknown names are refused."""
    settings = build(GateSettings, spec, "the gate", beside=("model", "dataset", "mode", "name", "title"))
    for name in ("edits", "steps", "phrasings"):
        if int(getattr(settings, name)) < 1:
            raise SettingsError(f"gate setting '{name}' is {getattr(settings, name)!r}; expected at least 1")
    return settings


def _edits_with_truth(path: Path) -> list[Edit]:
    edits = [edit for edit in read_edits(path) if edit.truth]
    if not edits:
        raise DataError(
            "no edit says what the answer was before",
            file=path,
            field="truth",
            remedy="Use a data set with ground truth, or set the gate off",
        )
    return edits


def exact(model: LanguageModel, pairs: Sequence[tuple[str, str]], rows_at_once: int = 128) -> list[bool]:
    """For each (prompt, answer): is every answer token the top prediction, given the tokens before it?"""
    right: list[bool] = []
    for start in range(0, len(pairs), rows_at_once):
        batch = encode_pairs(model, pairs[start : start + rows_at_once])
        ids = batch.tokens.input_ids
        position = torch.arange(ids.shape[1])[None]
        start_at, end_at = batch.answer_start.cpu()[:, None], batch.answer_end.cpu()[:, None]
        at_row, at_column = torch.nonzero((position >= start_at - 1) & (position < end_at - 1), as_tuple=True)
        top = model.logits(batch.tokens, (at_row, at_column)).argmax(dim=-1).cpu()
        wrong = torch.zeros(len(ids)).index_add(0, at_row, (top != ids.cpu()[at_row, at_column + 1]).float())
        right += (wrong == 0).tolist()
    return right


def majority_baseline(edits: Sequence[Edit]) -> float:
    """Share answered right by always giving the most frequent truth of the relation (or of the prompt's
    template)."""
    truths: dict[str, Counter[str | None]] = defaultdict(Counter)
    for edit in edits:
        truths[_relation(edit)][edit.truth] += 1
    return sum(counter.most_common(1)[0][1] for counter in truths.values()) / len(edits)


def reasons(content: Mapping[str, Any], settings: GateSettings, layers: Sequence[int]) -> list[str]:
    """Why the model fails, in words; empty when it passes."""
    found, last = [], str(max(layers))
    if content["recall"] < settings.recall:
        found.append(
            f"recall of its facts is {content['recall']:.2f}, at least {settings.recall:.2f} is needed"
        )
    ceiling = content["ceiling"].get(last)
    if ceiling is not None and ceiling < settings.ceiling:
        found.append(
            f"only {ceiling:.2f} of the facts can be changed by a vector at the subject's last token "
            f"of block {last} (at least {settings.ceiling:.2f} is needed): "
            "the model keeps its facts elsewhere"
        )
    swaps = [
        content["state_swap"][str(layer)]
        for layer in layers
        if content["state_swap"].get(str(layer)) is not None
    ]
    if settings.state_swap is not None and swaps and max(swaps) < settings.state_swap:
        found.append(
            f"another subject's state brings its answer along in {max(swaps):.2f} of the cases, "
            f"at least {settings.state_swap:.2f} is needed"
        )
    return found


def _relation(edit: Edit) -> str:
    return edit.relation or (edit.prompt.replace(edit.subject, "{}") if edit.subject else edit.prompt)


def _phrasings(
    model: LanguageModel, edits: Sequence[Edit], source_dir: Path | str | None, settings: GateSettings
) -> dict[str, float | None]:
    """Recall on phrasings that pre-training had, and on those of the records."""
    source = random.Random(settings.seed)
    unseen = [(prompt, str(edit.truth)) for edit in edits for prompt in edit.rephrasings]
    seen = []
    if source_dir is not None:
        prompts = {edit.prompt for edit in edits}
        facts = read_facts(Path(source_dir) / "facts.jsonl")
        asked = [
            (fact["text"][: fact["answer"][0]].rstrip(), fact["text"][slice(*fact["answer"])], fact)
            for fact in facts
        ]
        mine = {fact["fact"] for prompt, _, fact in asked if prompt in prompts}
        seen = [
            (prompt, answer)
            for prompt, answer, fact in asked
            if fact["fact"] in mine and fact["kind"] in ("rephrase", "template")
        ]
    result = {}
    for name, pairs in (("recall_rephrased", unseen), ("recall_trained_phrasings", seen)):
        chosen = source.sample(pairs, min(len(pairs), settings.phrasings))
        right = exact(model, chosen)
        result[name] = sum(right) / len(right) if right else None
    return result


def _probes(model: LanguageModel, edits: Sequence[Edit], settings: GateSettings) -> dict[str, Any]:
    """Ceiling and state swap of every block, on a sample of edits that have a subject."""
    source = random.Random(settings.seed)
    with_subject = [edit for edit in edits if edit.subject]
    sample = source.sample(with_subject, min(len(with_subject), settings.edits))
    result: dict[str, Any] = {"ceiling": {}, "state_swap": {}, "probed": len(sample)}
    if not sample:
        return result
    clamp = settings.clamp if settings.clamp is not None else CLAMP.get(model.family.name, 0.75)
    rows = prepare(model, [TracedQuestion(edit.prompt, str(edit.subject), edit.target) for edit in sample])
    for layer in range(model.n_blocks):
        result["ceiling"][str(layer)] = target_vector_ceiling(
            model, rows, layer, clamp, settings.step_ratio, settings.steps
        )
    pairs = _donors(sample, with_subject, source)
    if len(pairs) >= min(FEWEST_PAIRS, len(sample)):
        receivers = prepare(
            model, [TracedQuestion(one.prompt, str(one.subject), str(other.truth)) for one, other in pairs]
        )
        donors = prepare(
            model, [TracedQuestion(other.prompt, str(other.subject), str(other.truth)) for _, other in pairs]
        )
        for layer in range(model.n_blocks):
            result["state_swap"][str(layer)] = state_swap(model, receivers, donors, layer)
    return {**result, "clamp": clamp, "swapped": len(pairs)}


def _donors(sample: Sequence[Edit], edits: Sequence[Edit], source: random.Random) -> list[tuple[Edit, Edit]]:
    """For each edit another one of the same relation with another truth, where there is one."""
    pairs = []
    for edit in sample:
        others = [
            other
            for other in edits
            if _relation(other) == _relation(edit)
            and other.truth != edit.truth
            and other.subject != edit.subject
        ]
        if others:
            pairs.append((edit, source.choice(others)))
    return pairs
