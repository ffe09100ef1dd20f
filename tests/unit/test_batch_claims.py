"""Claims about simultaneous edits, judged on fabricated runs; the published tables of MEND and SERAC."""

from __future__ import annotations

import numpy as np
import pytest

from palimpsest import published, results
from palimpsest.claims import batches, statistics, streams
from palimpsest.claims import judge as judging
from palimpsest.claims.verdicts import ClaimTest
from palimpsest.errors import DataError, SettingsError
from palimpsest.figures.read import load_runs

METHODS = {
    "A": {"editor": "mend", "variant": "default", "title": "A"},
    "B": {"editor": "ft", "variant": "default", "title": "B"},
}
SPEC = {"draws": 200, "level": 0.95}


def run_of(root, editor, success, changed, seconds=0.5, seeds=(0, 1), edits=60, protocol="simultaneous"):
    """A run with these chances of success and of a changed answer, by k."""
    folders = []
    for seed in seeds:
        spec = {
            "run": f"{editor}-x",
            "editor": editor,
            "model": "mini-gpt2",
            "dataset": "zsre",
            "protocol": protocol,
        }
        metrics, records = [], []
        for step, k in enumerate(success, start=1):
            base = {"run": spec["run"], "seed": seed, "step": step, "n_edits": k}
            for split, metric, chance in (
                ("in_scope", "edit_success", success[k]),
                ("outside", "drawdown", changed[k]),
            ):
                drawn = np.random.default_rng([seed, k, len(metric), len(editor)]).random(edits) < chance
                metrics.append(
                    {**base, "split": split, "metric": metric, "value": float(drawn.mean()), "n": edits}
                )
                records += [
                    {**base, "edit": f"e{n}", "order": n, "split": split, "metric": metric, "value": float(v)}
                    for n, v in enumerate(drawn)
                ]
        folder = root / "runs" / spec["run"] / f"seed={seed}"
        results.write_metrics(folder / results.METRICS_FILE, metrics)
        results.write_records(folder / results.RECORDS_FILE, records)
        results.write_inspection(folder / results.INSPECTION_FILE, [])
        done = {
            "spec": spec,
            "seed": seed,
            "status": "complete",
            "edits_requested": edits,
            "edits_applied": edits,
        }
        times = {str(k): [seconds * k] * 3 for k in success}
        results.write_run(folder / "run.json", {**done, "history": {"edit_seconds": times}})
        folders.append(folder)
    return load_runs(folders)


@pytest.fixture
def runs(tmp_path):
    good = run_of(tmp_path, "mend", {1: 0.95, 10: 0.7}, {1: 0.05, 10: 0.2}, seconds=0.1)
    bad = run_of(tmp_path, "ft", {1: 0.5, 10: 0.5}, {1: 0.5, 10: 0.5}, seconds=0.9)
    return {"table": [*good, *bad]}


def judged(part, runs):
    part = {"experiments": ["table"], **part}
    (test,) = batches.tests_of_part({"id": "C1"}, part, runs)
    return judging.judge_test(test, METHODS, runs, SPEC)


def mean(runs, editor, split, k):
    metric = {"in_scope": "edit_success", "outside": "drawdown"}[split]
    found = [
        run.record_values(metric, split, k).mean() for run in runs["table"] if run.spec["editor"] == editor
    ]
    return float(np.mean(found))


def test_a_sum_is_that_of_the_means_and_its_sign_decides(runs):
    terms = [
        {"method": "A", "of": "es_minus_dd", "at": 10},
        {"method": "B", "of": "es_minus_dd", "at": 10, "times": -1},
    ]
    outcome = judged({"statistic": "at_once", "terms": terms}, runs)
    parts = [mean(runs, e, s, 10) for e in ("mend", "ft") for s in ("in_scope", "outside")]
    assert outcome.value == pytest.approx(parts[0] - parts[1] - parts[2] + parts[3])
    assert outcome.verdict == "holds" and outcome.low < outcome.value < outcome.high
    assert judged({"statistic": "at_once", "terms": terms, "above": 0.9}, runs).verdict == "fails"
    falls = [{"method": "A", "of": "es", "at": 1}, {"method": "A", "of": "es", "at": 10, "times": -1}]
    assert judged({"statistic": "at_once", "terms": falls, "above": 0.05}, runs).verdict == "holds"


def test_two_trainings_must_differ_by_more_than_their_noise(runs):
    """The same statistic decides between methods, and says nothing between two trainings that were each made once."""
    small = [{"method": "A", "of": "es", "at": 1}, {"method": "A", "of": "es", "at": 10, "times": -1}]
    part = {"statistic": "at_once", "terms": small}
    assert judged(part, runs).verdict == "holds"
    found = judged({**part, "noise": 0.3}, runs)
    assert found.verdict == "undecided" and "two trainings: less than 0.3" in found.evidence
    assert judged({**part, "noise": 0.05}, runs).verdict == "holds"
    assert judged({**part, "above": 0.9, "noise": 0.05}, runs).verdict == "fails"


def test_a_model_that_failed_the_gate_is_no_evidence(runs):
    part = {"statistic": "at_once", "terms": [{"method": "A", "of": "es", "at": 1}]}
    failed = {"verdict": "fail", "reasons": ["only 0.07 of the facts can be changed"], "needed": True}
    for run in runs["table"]:
        run.info["gate"] = {**failed, "needed": False}  # MEND does not write at the subject
    assert judged(part, runs).verdict == "holds"
    for run in runs["table"]:
        run.info["gate"] = failed
    found = judged(part, runs)
    assert found.verdict == "not run" and "failed the gate" in found.evidence


def test_each_baseline_is_a_test_and_missing_ones_are_not_run(runs):
    part = {"statistic": "at_once", "experiments": ["table"], "against": ["B", "C"], "terms": [
        {"method": "A", "of": "es", "at": 1}, {"method": "against", "of": "es", "at": 1, "times": -1}]}  # fmt: skip
    methods = {**METHODS, "C": {"editor": "serac", "variant": "default", "title": "C"}}
    tests = list(judging.tests_of({"id": "C1", "parts": [part]}, {}, runs))
    assert [judging.judge_test(test, methods, runs, SPEC).verdict for test in tests] == ["holds", "not run"]
    late = {"statistic": "at_once", "terms": [{"method": "A", "of": "es", "at": 200}]}
    assert "not measured with 200 edits" in judged(late, runs).evidence
    with pytest.raises(SettingsError, match="unknown quantity"):
        judged({"statistic": "at_once", "terms": [{"method": "A", "of": "fame", "at": 1}]}, runs)


def test_own_is_the_only_size_of_a_run(tmp_path, runs):
    """Data sets may have sizes of their own; a run of several has none that is its own."""
    one = {"one": run_of(tmp_path / "one", "mend", {5: 0.9}, {5: 0.1})}
    part = {
        "statistic": "at_once",
        "experiments": ["one"],
        "terms": [{"method": "A", "of": "es", "at": "own"}],
    }
    outcome = judged(part, one)
    assert outcome.verdict == "holds" and "with 5 edits" in outcome.evidence
    several = judged({**part, "experiments": ["table"]}, runs)
    assert several.verdict == "not run" and "2 sizes of batches" in several.evidence
    seconds = {**part, "statistic": "edit_seconds", "terms": [{"method": "A", "at": "own"}]}
    assert judged(seconds, one).value == pytest.approx(0.5)


def test_a_part_may_be_about_some_data_sets(runs):
    part = {
        "statistic": "at_once",
        "experiments": ["table"],
        "datasets": ["zsre"],
        "terms": [{"method": "A", "of": "es", "at": 1}],
    }
    (test,) = batches.tests_of_part({"id": "C1"}, part, runs, {"datasets": {"zsre": "zsre"}})
    assert test.datasets == ("zsre",)
    (test,) = batches.tests_of_part({"id": "C1"}, part, runs, {"datasets": {"zsre": "another"}})
    assert test.model == "no model"  # not run, rather than judged on another data set


def test_few_records_decide_nothing(tmp_path):
    runs = {"table": run_of(tmp_path, "mend", {1: 1.0}, {1: 0.0}, edits=8)}
    part = {"statistic": "at_once", "terms": [{"method": "A", "of": "es", "at": 1}]}
    assert judged(part, runs).verdict == "undecided"


def test_times_are_per_edit(runs):
    terms = [{"method": "B", "at": 10}, {"method": "A", "at": 10, "times": -1}]
    outcome = judged({"statistic": "edit_seconds", "terms": terms}, runs)
    assert outcome.verdict == "holds" and outcome.value == pytest.approx(0.8)
    assert "(seeds +0.8 to +0.8)" in outcome.evidence
    alone = {"table": [run for run in runs["table"] if run.seed == 0]}
    assert judged({"statistic": "edit_seconds", "terms": terms}, alone).verdict == "undecided"
    missing = judged({"statistic": "edit_seconds", "terms": [{"method": "A", "at": 3}]}, runs)
    assert missing.verdict == "not run"


def test_unchecked_numbers_judge_nothing():
    cell = {
        "table": "serac_main",
        "dataset": "QA",
        "model": "T5-large",
        "method": "SERAC",
        "metric": "edit_success",
    }
    test = ClaimTest("C1", {"statistic": "printed", "terms": [cell]}, "as printed", ("QA",), ("x",))
    assert judging.judge_test(test, {}, {}, SPEC).verdict == "not run"


@pytest.mark.parametrize("paper", ["mend", "serac"])
def test_every_claim_can_be_judged(paper):
    document = published.claims_document(paper)
    known = {*batches.STATISTICS, *streams.STATISTICS, *statistics.STATISTICS}
    assert [claim["id"] for claim in document["claims"]] == [
        f"C{n + 1}" for n in range(len(document["claims"]))
    ]
    for claim in document["claims"]:
        assert claim["text"] and claim["location"] and claim["parts"]
        for part in claim["parts"]:
            assert part["statistic"] in known and part["terms"]
            for term in part["terms"]:
                if part["statistic"] == "printed":
                    keys = ("dataset", "model", "method", "metric")
                    cell = published.find_printed(term["table"], **{key: term[key] for key in keys})
                    assert cell is not None and cell.evidence == "confirmed"
                else:
                    assert part["experiments"] and term["method"] in {*document["methods"], "against"}
                if part["statistic"] == "at_once":
                    assert term["of"] in batches.QUANTITIES and (term["at"] == batches.OWN or term["at"] >= 1)
            assert set(part.get("against", ())) <= set(document["methods"])
        for outcome in (
            judging.judge_test(t, document["methods"], {}, SPEC) for t in judging.tests_of(claim, {}, {})
        ):
            assert outcome.verdict == (
                "as printed" if outcome.test.part["statistic"] == "printed" else "not run"
            )


def test_mends_tables_agree_with_each_other():
    """What the paper prints twice is the same number (spec, section 10), and bounds keep their sign."""
    three, four, five, nine = (published.load_table(f"mend_table{n}") for n in (3, 4, 5, 9))
    assert [len(published.load_table(f"mend_table{n}")) for n in (3, 4, 5, 6, 9, 11)] == [
        32,
        30,
        20,
        28,
        16,
        28,
    ]
    mend = {(c.dataset, c.model, c.metric): c for c in three if c.method == "MEND"}
    assert {(c.dataset, c.model, c.metric): c.shown for c in nine if "MLP" in c.method} == {
        key: c.shown for key, c in mend.items()
    }
    for (dataset, model, metric), cell in mend.items():
        others = [c.value for c in three if (c.dataset, c.model, c.metric) == (dataset, model, metric)]
        assert metric != "edit_success" or cell.value == max(others)
    for method in ("MEND", "ENN"):
        for metric in ("edit_success", "accuracy_drop"):
            (one,) = (c for c in five if (c.method, c.metric) == (method, f"{metric}@1"))
            (other,) = (c for c in four if (c.dataset, c.method, c.metric) == ("zsRE", method, metric))
            assert one.shown == other.shown
    printed = published.find_printed(
        "mend_table4", dataset="FEVER", model="BERT-base 110M", method="MEND", metric="edit_success"
    )
    assert printed is not None and (printed.shown, printed.value) == (">0.99", 0.99)
    assert all(
        cell.evidence == "unchecked" and cell.shown.endswith("†")
        for cell in published.load_table("serac_main")
    )


def test_a_wrong_sign_is_refused(monkeypatch, tmp_path):
    head = ",".join(published.BOUND_COLUMNS)
    (tmp_path / "odd.csv").write_text(f"{head}\np,l,d,m,x,es,1,1,~,,confirmed,s\n")
    monkeypatch.setattr(published.resources, "files", lambda _: tmp_path)
    with pytest.raises(DataError, match="'bound'"):
        published.load_table("odd")
