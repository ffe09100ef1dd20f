"""The table of claims and verdicts, as csv and markdown."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from palimpsest.claims.verdicts import VERDICTS, Outcome
from palimpsest.figures.captions import dataset_title, scale_words

Judged = Sequence[tuple[dict[str, Any], str, list[Outcome]]]


def write_report(
    judged: Judged, spec: dict[str, Any], out: Path, write: Callable[[Path, str], None]
) -> list[Path]:
    """Write claims.csv (one row a claim), claims_tests.csv (one row a test) and claims.md, or by the spec's `stem`."""
    names = [str(spec.get("stem") or "claims") + end for end in (".csv", "_tests.csv", ".md")]
    rows = [
        {
            "claim": claim["id"], "verdict": verdict, "text": claim["text"], "location": claim["location"],
            "paper": paper_numbers(claim), "tests": len(outcomes), **_counts(outcomes),
            "scale": spec.get("scale", ""),
            "evidence": " | ".join(f"{place(outcome)}: {outcome.evidence}" for outcome in outcomes),
        }
        for claim, verdict, outcomes in judged
    ]  # fmt: skip
    write(out / names[0], _csv(rows))
    write(
        out / names[1],
        _csv([_test_row(claim, outcome) for claim, _, found in judged for outcome in found]),
    )
    write(out / names[2], markdown(judged, spec))
    return [out / name for name in names]


def markdown(judged: Judged, spec: dict[str, Any]) -> str:
    """A table of all claims, then the numbers behind every verdict."""
    counts = Counter(verdict for _, verdict, _ in judged)
    several = {"holds": "hold", "fails": "fail"}
    summary = ", ".join(
        f"{counts[verdict]} {several.get(verdict, verdict) if counts[verdict] > 1 else verdict}"
        for verdict in VERDICTS
        if counts[verdict]
    )
    lines = [
        "# Claims and verdicts", "",
        f"{spec['source']}. {scale_words(spec.get('scale'))} {summary}.", "",
        "*holds*: in every seed, and the interval excludes the opposite; *fails*: the other way round; "
        "*undecided*: anything else, or fewer than 20 records a seed; *not run*: a needed run or editor is missing, or "
        "the model failed the gate that an editor needs; *as printed*: the papers' tables say so, nothing was measured here. "
        "A statistic is positive where the claim is right; where the claim names a bound, it is the margin over it. "
        "In brackets: bootstrap interval over "
        "records, the same ones resampled in all seeds. MEND and SERAC were trained once for each model and data set: intervals "
        "say nothing about another training. Numbers of keys, seconds, means whose records were not kept, and shapes of a sweep "
        "(a rank correlation, the worst block) have none to draw from: theirs is the range of the seeds, and a single seed "
        "decides nothing. Checks that a run makes itself are true or false.", "",
        "| | claim | paper | verdict | tests |", "| --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for claim, verdict, outcomes in judged:
        tests = ", ".join(f"{count} {name}" for name, count in _counts(outcomes).items() if count)
        lines.append(
            f"| [{claim['id']}](#{claim['id'].lower()}) | {claim['text']} | {claim['location']} "
            f"| **{verdict}** | {tests} |"
        )
    for claim, verdict, outcomes in judged:
        lines += ["", f"## {claim['id']}", "", f"{claim['text']} ({claim['location']}) **{verdict}.**", ""]
        if claim.get("paper"):
            lines += [f"Paper: {paper_numbers(claim)}.", ""]
        if claim.get("note"):
            lines += [claim["note"], ""]
        if claim.get("hedge") == "may":
            lines += ["The paper says that this can happen, so not seeing it decides nothing.", ""]
        lines += [f"- {place(outcome)}: {outcome.evidence}. *{outcome.verdict}*" for outcome in outcomes]
    return "\n".join(lines) + "\n"


# What a statistic is where it is no sum of the means that the test's line shows.
SHAPES = {
    "majority": "the comparison that decides a majority",
    "slope": "slope per 100 edits, with the sign that makes the claim positive",
    "level": "change along the stream, against its limit",
    "early_drop": "fall at the beginning of the stream",
    "steadiest": "range along the stream, against the others' smallest",
    "interior_maximum": "best inner value, against both ends",
    "sweep_lowest": "lowest other value, against the first",
    "sweep_spread": "range over the sweep, against its limit",
    "sweep_decline": "rises and fall along the sweep, against their limits",
    "outlier": "median at the subject, against the other tokens' 95th percentile",
}


def place(outcome: Outcome) -> str:
    """Model, data set and metric of a test, and what its statistic is where the numbers do not show it."""
    test = outcome.test
    named = f"{test.model}, {' and '.join(map(dataset_title, test.datasets))}, {', '.join(test.metrics)}"
    shape = SHAPES.get(test.part["statistic"])
    return f"{named} ({shape})" if shape else named


def paper_numbers(claim: dict[str, Any]) -> str:
    """The paper's values in one line."""

    def words(value: Any) -> str:
        if isinstance(value, dict):
            return "; ".join(
                f"{name}: {words(part)}" if not isinstance(part, dict) else f"{name} ({words(part)})"
                for name, part in value.items()
            )
        if isinstance(value, list):
            return " / ".join(words(part) for part in value)
        return str(value)

    return words(claim.get("paper") or {})


def _counts(outcomes: Sequence[Outcome]) -> dict[str, int]:
    counts = Counter(outcome.verdict for outcome in outcomes)
    return {verdict: counts[verdict] for verdict in VERDICTS}


def _test_row(claim: dict[str, Any], outcome: Outcome) -> dict[str, Any]:
    test = outcome.test
    numbers = {
        name: "" if (value := getattr(outcome, name)) is None else f"{value:.6g}"
        for name in ("value", "low", "high")
    }
    return {
        "claim": claim["id"],
        "verdict": outcome.verdict,
        "statistic": test.part["statistic"],
        "model": test.model,
        "dataset": " ".join(test.datasets),
        "metric": " ".join(test.metrics),
        **numbers,
        "per_seed": " ".join(f"{value:.6g}" for value in outcome.per_seed),
        "n": outcome.n or "",
        "evidence": outcome.evidence,
    }


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
