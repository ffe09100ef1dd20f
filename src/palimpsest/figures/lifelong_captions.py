"""Sentences that captions of the lifelong figures share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from palimpsest.figures.captions import dataset_title, seeds, several_seeds
from palimpsest.figures.lifelong import SCORE_TITLES, SCORES, at_place, places_of, tasks_of, value
from palimpsest.figures.read import Run

_MEANINGS = {
    "trr": "TRR (test retention rate): score on upstream prompts",
    "err": "ERR (edit retention rate): score on all edits made so far",
    "average": "Avg: mean of TRR and ERR",
    "holdout": "hold-out: score on phrasings that are never edited",
    "es": "ES (edit success): score on an edit right after it is made",
    "arr": "ARR (accurate retention rate): perplexity of texts that were right from the start",
}


def legend(shown: Iterable[str]) -> str:
    """What the quantities drawn are, and no others; empty where none needs a word."""
    names = set(shown)
    said = "; ".join(words for name, words in _MEANINGS.items() if name in names)
    return said[:1].upper() + said[1:] + "." if said else ""


def streams(runs: Sequence[Run]) -> str:
    """Models, data sets, items, edits made and seeds, place by place."""
    words = []
    for task, model, dataset in places_of({}, runs):
        own = at_place(runs, (task, model, dataset))
        seen = {int(number) for run in own if (number := value(run, "seen")) is not None}
        made = {int(number) for run in own if (number := value(run, "edits")) is not None}
        words.append(
            f"{model} on {dataset_title(dataset)}, {_span(seen)} items, {_span(made)} edits, {seeds(own)}"
        )
    return "Lifelong streams: " + "; ".join(words) + "."


def scores(runs: Sequence[Run]) -> str:
    """What the score of each task is."""
    tasks = tasks_of(runs)
    said = {
        "qa": "F1 on token ids as in the released code (question answering)",
        "classification": "accuracy (label shift)",
        "generation": "mean perplexity, lower is better (biographies)",
    }
    return "Scores: " + ", ".join(said[task] for task in tasks if task in said) + "."


def edits_made(runs: Sequence[Run]) -> str:
    """At which looks seeds are joined."""
    by_edits = any((run.spec.get("options") or {}).get("until_edits") for run in runs)
    return f"Seeds are joined at the same number of {'edits made' if by_edits else 'items seen'}."


def ends(runs: Sequence[Run]) -> str:
    """Why lines over edits have different lengths; empty where all methods make as many."""
    made = {value(run, "edits") for run in runs}
    return (
        "A line ends at the number of edits that its method needed for the whole stream."
        if len(made) > 1
        else ""
    )


def replays(runs: Sequence[Run], shown: Iterable[str]) -> str:
    """Why the score on the edits jumps where a method trains on all of them again; empty where none does or none is shown."""
    every = {
        str(run.spec.get("title") or run.spec["editor"]): int(run.settings["retrain_frequency"])
        for run in runs
        if run.settings.get("retrain_frequency")
    }
    if not every or "err" not in set(shown):
        return ""
    said = "; ".join(
        f"{title} trains on all its edits again at every {number}th one" for title, number in every.items()
    )
    return f"{said}: its scores on edits and their phrasings jump there."


def bands(runs: Sequence[Run]) -> str:
    """How the spread over seeds is drawn."""
    return "Bands: lowest to highest seed." if several_seeds(runs) else "One seed: no bands."


def ahead(runs: Sequence[Run]) -> str:
    """That GRACE's seconds of an edit are not those of an edit alone; empty where it has none."""
    if not any(run.spec["editor"] == "grace" for run in runs):
        return ""
    return (
        "GRACE's values for the next 16 items of a stream are trained together before their turn, with knowledge of those "
        "items; the time of this is divided among them. The other methods train one edit at a time."
    )


def unchecked() -> str:
    """What the mark on a printed number means."""
    return "† unchecked: from memory of the paper, not found in a public source; never used in a verdict."


def score_title(task: str) -> str:
    """F1, accuracy or perplexity."""
    return SCORE_TITLES[SCORES[task]]


def _span(numbers: set[int]) -> str:
    if not numbers:
        return "no"
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def gated(runs: Sequence[Run]) -> str:
    """Rows of editors that write at the subject, on a model that the gate found not made for it."""
    failed = {
        f"{run.spec.get('title') or run.spec['editor']} on {run.spec['model']}": run.ill_suited
        for run in runs
        if run.ill_suited
    }
    if not failed:
        return ""
    words = " | ".join(f"{place} ({why})" for place, why in sorted(failed.items()))
    return f"The gate would refuse {words}. Such a row counts for no claim."
