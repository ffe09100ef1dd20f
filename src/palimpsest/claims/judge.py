"""Which sentences of a paper hold for the runs at hand? Claims are data; this judges them.

A test *holds* when its statistic is positive in every seed and its bootstrap interval over records (of the
mean over seeds) lies above zero; it *fails* when both lie below zero; otherwise it is *undecided*.
A claim holds when all its tests hold and fails when one fails. A test whose runs are missing is *not run*,
and so is its claim unless another test fails. With fewer than 20 records a seed every test stays undecided.
Sentences that only say that something *may* happen hold when it is seen and are undecided otherwise.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from palimpsest.claims import batches, means, streams
from palimpsest.claims.report import write_report
from palimpsest.claims.verdicts import ClaimTest, NotMeasuredError, Outcome, verdict_of
from palimpsest.errors import SettingsError
from palimpsest.figures.captions import naming_datasets
from palimpsest.figures.read import Run, load_runs
from palimpsest.files import write_text
from palimpsest.published import claims_document

log = logging.getLogger(__name__)


def judge(spec: dict[str, Any], results_dir: Path | str, out: Path | str) -> list[Path]:
    """Judge every claim of a paper and write `claims.csv`, `claims_tests.csv` and `claims.md` into `out`.

    Args:
        spec: scale; paper (key of the claims file `published/claims_*.yaml`); models {weaker, stronger} and
            datasets {zsre, counterfact} as they are named in the runs;
            experiments {name: [run names]}; optional draws and level; stem of the files' names ("claims");
            toy, the file of the toy figure (`results_dir/toy/toy.json`).
        results_dir: folder that holds `runs/{run}/seed=N`.
        out: folder for the files.

    Raises:
        SettingsError: the spec names no experiments, or a claim uses an unknown statistic.
        DataError: a run directory that exists is damaged.
    """
    if not isinstance(spec.get("experiments"), dict):
        raise SettingsError("claims: 'experiments' must map each experiment to its run names")
    document = claims_document(spec.get("paper") or "comeba_hk")
    runs = _load(spec["experiments"], Path(results_dir))
    spec = {"source": document["paper"], "toy": str(Path(results_dir) / "toy" / "toy.json"), **spec}
    judged = []
    for claim in document["claims"]:
        outcomes = [judge_test(test, document["methods"], runs, spec) for test in tests_of(claim, spec, runs)]
        judged.append((claim, verdict_of(outcomes), outcomes))
        log.info("claim %s: %s", claim["id"], judged[-1][1])
    with naming_datasets(spec.get("dataset_titles")):
        return write_report(judged, spec, Path(out), write_text)


def tests_of(
    claim: dict[str, Any], spec: dict[str, Any], runs: dict[str, list[Run]] | None = None
) -> Iterator[ClaimTest]:
    """Every combination of model, data set and metric (or split) that the parts of a claim list.

    A part about lifelong streams lists tasks; its models and data sets are those that the runs have, as are those of a part
    about simultaneous edits.
    """
    models = spec.get("models") or {}
    names = spec.get("datasets") or {}
    for part in claim["parts"]:
        if part["statistic"] in batches.STATISTICS:
            yield from batches.tests_of_part(claim, part, runs or {}, spec)
            continue
        if "models" not in part:
            yield from streams.tests_of_part(claim, part, runs or {}, spec)
            continue
        datasets = tuple(names.get(dataset, dataset) for dataset in part["datasets"])
        metrics = tuple(part.get("metrics") or part.get("splits") or ())
        for role in part["models"]:
            model = models.get(role, role)
            hedged = claim.get("hedge") == "may"
            if part.get("together"):
                yield ClaimTest(claim["id"], part, model, datasets, metrics, hedged)
                continue
            for dataset in datasets:
                for metric in metrics:
                    yield ClaimTest(claim["id"], part, model, (dataset,), (metric,), hedged)


def judge_test(
    test: ClaimTest, methods: dict[str, Any], runs: dict[str, list[Run]], spec: dict[str, Any]
) -> Outcome:
    """Find the runs of a test and judge it; a missing run or snapshot makes it "not run", with the reason."""
    try:
        if test.part["statistic"] in batches.STATISTICS:
            return batches.judge_batches(test, methods, runs, spec)
        if test.part["statistic"] in streams.STATISTICS:
            return streams.judge_stream(test, methods, runs, spec)
        terms = means.find_terms(test, methods, runs)
        return means.judge_terms(test, terms, spec)
    except NotMeasuredError as reason:
        return Outcome(test, "not run", str(reason))


def _load(experiments: dict[str, Any], results_dir: Path) -> dict[str, list[Run]]:
    """Finished runs of every experiment; one whose folder is missing is left out ("not run").

    Where an experiment names the seeds of a run, others that lie beside them are not of this plan and are not read.
    """
    opened: dict[Path, Run] = {}
    found: dict[str, list[Run]] = {}
    for experiment, runs in experiments.items():
        found[experiment] = []
        for name in runs:
            folder = results_dir / "runs" / name
            seeds = runs[name] if isinstance(runs, dict) else None
            places = sorted(folder.glob("seed=*")) if seeds is None else [folder / f"seed={n}" for n in seeds]
            for place in (place for place in places if (place / "run.json").is_file()):
                if place not in opened:
                    (opened[place],) = load_runs([place])
                found[experiment].append(opened[place])
    return found
