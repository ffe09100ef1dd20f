"""Sentences a mini model is pre-trained on: true facts in several phrasings, some of them held out."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from palimpsest.data.annotate import Candidate
from palimpsest.data.relations import fill
from palimpsest.data.zsre import NQ_PREFIX
from palimpsest.files import write_text

Sentence = dict[str, Any]


class HoldOut(Protocol):
    """The settings that decide what is shown."""

    @property
    def held_out_rephrasings(self) -> float:
        """Share of the rephrasings that is not shown."""

    @property
    def extra_templates(self) -> int:
        """Further templates shown per fact."""

    @property
    def held_out_templates(self) -> int:
        """Further templates not shown per fact."""

    @property
    def seed(self) -> int:
        """Seed of the choice."""


def sentence(prompt: str, answer: str, subject: str | None, fact: str, dataset: str, kind: str) -> Sentence:
    """One line of facts.jsonl; spans are character positions [start, end) in the text."""
    text = f"{prompt} {answer}"
    start = prompt.rfind(subject) if subject else -1
    return {
        "text": text,
        "subject": [start, start + len(subject)] if subject and start >= 0 else None,
        "answer": [len(prompt) + 1, len(text)],
        "fact": fact,
        "dataset": dataset,
        "kind": kind,
    }


def write_sentences(
    chosen: Sequence[Candidate], candidates: Sequence[Candidate], settings: HoldOut, dataset: str, out: Path
) -> tuple[list[str], dict[str, Any]]:
    """Write `out`/facts.jsonl (shown) and `out`/held_out.jsonl (not shown); return shown texts and counts.

    A phrasing that another fact completes differently is dropped; a held-out text is never among the shown.
    """
    generator = random.Random(f"held out {settings.seed}")
    rephrasings = [
        (row, number)
        for row, candidate in enumerate(chosen)
        for number in range(len(candidate.edit.rephrasings))
    ]
    hidden = set(generator.sample(rephrasings, round(settings.held_out_rephrasings * len(rephrasings))))
    pools = _template_pools(candidates)
    shown: list[Sentence] = []
    held_out: list[Sentence] = []
    for row, candidate in enumerate(chosen):
        for number, line in enumerate(_rephrased(candidate, dataset)):
            (held_out if (row, number) in hidden else shown).append(line)
        lines = _further(candidate, pools, generator, dataset)
        held = min(settings.held_out_templates, max(0, len(lines) - 1))
        held_out += lines[:held]
        shown += lines[held : held + settings.extra_templates]
        shown += _fixed(candidate, dataset)
    shown, held_out, contradictions = _consistent(shown, held_out)
    for name, lines in (("facts.jsonl", shown), ("held_out.jsonl", held_out)):
        write_text(out / name, "".join(json.dumps(line, ensure_ascii=True) + "\n" for line in lines))
    kinds: dict[str, list[str]] = defaultdict(list)
    for candidate in chosen:
        for kind in dict.fromkeys(candidate.rephrasing_kinds):
            kinds[kind].append(candidate.edit.identifier)
    return [line["text"] for line in shown], {
        "sentences": len(shown),
        "sentences_by_kind": dict(sorted(Counter(line["kind"] for line in shown).items())),
        "held_out_by_kind": dict(sorted(Counter(line["kind"] for line in held_out).items())),
        "held_out_rephrasings": list(
            dict.fromkeys(line["fact"] for line in held_out if line["kind"] == "rephrase")
        ),
        "contradicting_sentences_dropped": contradictions,
        "rephrasing_kinds": dict(sorted(kinds.items())),
    }


def _truth(candidate: Candidate) -> str:
    assert candidate.edit.truth is not None  # records without a true answer are not chosen
    return candidate.edit.truth


def _rephrased(candidate: Candidate, dataset: str) -> list[Sentence]:
    edit = candidate.edit
    return [
        sentence(text, _truth(candidate), edit.subject, edit.identifier, dataset, "rephrase")
        for text in edit.rephrasings
    ]


def _fixed(candidate: Candidate, dataset: str) -> list[Sentence]:
    """The prompt itself and the locality probes are always shown."""
    edit = candidate.edit
    lines = [sentence(edit.prompt, _truth(candidate), edit.subject, edit.identifier, dataset, "prompt")]
    kind = "locality" if dataset == "counterfact" else "unrelated"
    for probe, template in zip(edit.locality, candidate.probe_templates, strict=True):
        neighbour = next(
            (name for name in candidate.neighbours if template and fill(template, name) == probe.prompt), None
        )
        lines.append(sentence(probe.prompt, probe.answer, neighbour, edit.identifier, dataset, kind))
    return lines


def _template_pools(candidates: Iterable[Candidate]) -> dict[tuple[str, str], list[str]]:
    """Templates by (relation, true answer) as they occur in the file.

    Only templates that the file completes with this very answer are used: two recovered relations are really
    several (who plays which instrument, sport, position), and their templates must not be mixed.
    """
    pools: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for candidate in candidates:
        if candidate.template is not None and candidate.edit.truth is not None:
            pools[(candidate.relation, candidate.edit.truth)][candidate.template] = None
    return {key: sorted(pool) for key, pool in pools.items()}


def _further(
    candidate: Candidate, pools: dict[tuple[str, str], list[str]], generator: random.Random, dataset: str
) -> list[Sentence]:
    """The fact in every other template of its relation, in random order."""
    edit = candidate.edit
    used = {candidate.template, *candidate.rephrasing_templates}
    pool = [
        template
        for template in pools.get((candidate.relation, _truth(candidate)), [])
        if template not in used
    ]
    generator.shuffle(pool)
    subject = edit.subject or ""
    return [
        sentence(fill(t, subject), _truth(candidate), edit.subject, edit.identifier, dataset, "template")
        for t in pool
    ]


def _consistent(
    shown: list[Sentence], held_out: list[Sentence]
) -> tuple[list[Sentence], list[Sentence], int]:
    """One answer per prompt (prompts and probes first), every text once, held-out texts only held out."""
    rank = {"prompt": 0, "locality": 1, "unrelated": 1, "template": 2, "rephrase": 3}
    answers: dict[str, str] = {}
    for line in sorted([*shown, *held_out], key=lambda line: rank[line["kind"]]):
        answers.setdefault(_asked(line), _answer(line))
    agreeing = [line for line in shown if answers[_asked(line)] == _answer(line)]
    fixed = {line["text"] for line in agreeing if rank[line["kind"]] < 2}
    kept = {
        line["text"]: line
        for line in held_out
        if answers[_asked(line)] == _answer(line) and line["text"] not in fixed
    }
    unique: dict[str, Sentence] = {}
    for line in sorted(agreeing, key=lambda line: rank[line["kind"]]):
        if line["text"] not in kept:
            unique.setdefault(line["text"], line)
    dropped = len(shown) - len(agreeing) + sum(answers[_asked(line)] != _answer(line) for line in held_out)
    order = {line["fact"]: position for position, line in reversed(list(enumerate(shown)))}
    lines = sorted(unique.values(), key=lambda line: (order[line["fact"]], rank[line["kind"]]))
    return lines, list(kept.values()), dropped


def _asked(line: Sentence) -> str:
    return str(line["text"][: line["answer"][0] - 1])


def _answer(line: Sentence) -> str:
    return str(line["text"][line["answer"][0] :])


def as_upstream(candidate: Candidate, dataset: str) -> dict[str, Any]:
    """The record in CF-flat form or in MEND's ZsRE form, with the relation as one more field."""
    edit = candidate.edit
    case = edit.identifier.split("-", 1)[1]
    common: dict[str, Any] = {
        "case_id": int(case) if case.isdecimal() else case,
        "subject": edit.subject,
        "relation": candidate.relation,
    }
    prompts, answers = [probe.prompt for probe in edit.locality], [probe.answer for probe in edit.locality]
    if dataset == "counterfact":
        return common | {
            "prompt": edit.prompt,
            "target_new": edit.target,
            "ground_truth": edit.truth,
            "rephrase_prompt": _single(edit.rephrasings),
            "locality_prompt": _single(prompts),
            "locality_ground_truth": _single(answers),
        }
    return common | {
        "src": edit.prompt,
        "pred": edit.truth,
        "rephrase": _single(edit.rephrasings),
        "alt": edit.target,
        "answers": [edit.truth],
        "loc": _single([NQ_PREFIX + prompt for prompt in prompts]),
        "loc_ans": _single(answers),
        "cond": f"{edit.truth} >> {edit.target} || {edit.prompt}",
    }


def _single(values: Sequence[str]) -> str | list[str]:
    """Upstream has one text where there is one."""
    return values[0] if len(values) == 1 else list(values)
