"""Verdicts: what is built into fabricated runs is found, what is not measured is never judged."""

from __future__ import annotations

import csv
import json

import numpy as np
import pandas as pd
import pytest
from fabricated_runs import fabricate

from palimpsest.claims.judge import judge
from palimpsest.claims.statistics import (
    Cell,
    Layout,
    early_drop,
    interior_maximum,
    level,
    majority,
    shown,
    slope,
    steadiest,
    sweep_decline,
    sweep_lowest,
)
from palimpsest.claims.verdicts import Outcome, decide, over_seeds, verdict_of
from palimpsest.errors import SettingsError
from palimpsest.figures.read import load_runs


def _layout(values, part=None, times=(1.0,)):
    """Cells from {(term, metric, dataset, n_edits): mean}."""
    return np.array(list(values.values())), Layout([Cell(*key) for key in values], part or {}, times)


def test_slope_is_per_hundred_edits():
    means, layout = _layout({(0, "m", "d", n): 0.9 - 0.001 * n for n in (50, 100, 200)})
    assert slope(means, layout) == pytest.approx(-0.1)
    assert slope(np.stack([means, means + 1]), layout) == pytest.approx([-0.1, -0.1])


def test_majority_needs_more_than_half():
    values = {
        (term, m, "d", 9): (0.5 + (0.1 if m in "ab" else -0.1) * (term == 0))
        for term in (0, 1)
        for m in "abcd"
    }
    means, layout = _layout(values, times=(1.0, -1.0))
    assert majority(means, layout) == pytest.approx(-0.1)  # two of four is not most
    values[0, "c", "d", 9] = 0.7
    assert majority(*_layout(values, times=(1.0, -1.0))) == pytest.approx(0.1)


def test_sweep_statistics():
    inner, ends = (
        {(k, "m", "d", 9): v for k, v in enumerate(values)} for values in ((0.5, 0.8, 0.6), (0.9, 0.8, 0.6))
    )
    assert interior_maximum(*_layout(inner, times=(1, 1, 1))) == pytest.approx(0.2)
    assert interior_maximum(*_layout(ends, times=(1, 1, 1))) == pytest.approx(-0.1)
    assert sweep_decline(*_layout(ends, {"rise": 0.02, "drop": 0.1}, (1, 1, 1))) == pytest.approx(-0.2)
    flat = {(k, "m", "d", 9): v for k, v in enumerate((0.9, 0.9, 0.88))}
    assert sweep_decline(*_layout(flat, {"rise": 0.02, "drop": 0.1}, (1, 1, 1))) == pytest.approx(0.02)
    assert sweep_lowest(*_layout(inner, times=(1, 1, 1))) == pytest.approx(0.1)
    later = {(k, "m", "d", 9): v for k, v in enumerate((0.5, 0.8, 0.4))}  # the first is not worst of all
    assert sweep_lowest(*_layout(later, times=(1, 1, 1))) == pytest.approx(-0.1)


def test_level_and_steadiest_over_snapshots():
    means, layout = _layout(
        {(0, "m", "d", n): v for n, v in ((20, 0.9), (40, 0.6), (100, 0.58))}, {"from": 0.4, "below": 0.05}
    )
    assert level(means, layout) == pytest.approx(0.03)
    means, layout = _layout(
        {(0, "m", "d", n): v for n, v in ((10, 0.9), (20, 0.7), (100, 0.5))}, {"to": 0.2, "above": 0.05}
    )
    assert early_drop(means, layout) == pytest.approx(0.15)
    values = {
        (term, "m", "d", n): 0.9 - (0.1 if term == 0 else 0.4) * (n == 40)
        for term in (0, 1, 2)
        for n in (20, 40)
    }
    found = _layout(values, times=(1, -1, -1))
    assert steadiest(*found) == pytest.approx(0.3)
    assert shown("steadiest", *found) == pytest.approx(
        [0.1, 0.4, 0.4]
    )  # what is compared, not where it ended
    assert shown("slope", *found) == pytest.approx([0.8, 0.5, 0.5])


@pytest.mark.parametrize(
    ("per_seed", "low", "high", "hedged", "verdict"),
    [
        ((0.1, 0.2), 0.05, 0.3, False, "holds"),
        ((-0.01, 0.4), 0.05, 0.3, False, "undecided"),  # not the sign in every seed
        ((0.1, 0.2), -0.01, 0.3, False, "undecided"),
        ((-0.1, -0.2), -0.3, -0.05, False, "fails"),
        ((0.01, -0.4), -0.3, -0.05, False, "undecided"),  # nor to fail
        ((-0.1, -0.2), -0.3, -0.05, True, "undecided"),  # "may" cannot fail
        ((0.0, 0.0), 0.0, 0.0, False, "undecided"),
    ],
)
def test_decision(per_seed, low, high, hedged, verdict):
    assert decide(per_seed, low, high, hedged) == verdict


def test_counts_that_are_equal_are_not_more():
    """C13 of GRACE: as many edits as errors in every seed is no error prevented; a flat curve of measurements is nothing."""
    assert over_seeds([0.0, 0.0], exact=True)[0] == "fails"
    assert over_seeds([0.0, 0.0])[0] == over_seeds([0.0, 1.0], exact=True)[0] == "undecided"
    assert over_seeds([0.0], exact=True)[0] == "undecided"  # one seed decides nothing


def test_claim_from_its_tests():
    def outcomes(*names):
        return [Outcome(None, name, "") for name in names]

    assert verdict_of(outcomes("holds", "holds")) == "holds"
    assert verdict_of(outcomes("holds", "undecided")) == "undecided"
    assert verdict_of(outcomes("holds", "undecided", "not run")) == "not run"
    assert verdict_of(outcomes("fails", "not run")) == "fails"
    # printed tables that agree among themselves are no finding of a run
    assert verdict_of(outcomes("as printed", "as printed")) == "as printed"
    assert verdict_of(outcomes("as printed", "undecided")) == "undecided"
    assert verdict_of(outcomes("as printed", "holds")) == "holds"


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """COMEBA-HK far above MEMIT everywhere but in reliability on CounterFact, single round."""
    root = tmp_path_factory.mktemp("results")
    names: dict[str, list[str]] = {
        "comeba_table1": [],
        "comeba_table2": [],
        "comeba_fig3": [],
        "comeba_fig10": [],
    }
    height = {"comeba_hk": 0.85, "memit": 0.5, "ft": 0.05}
    for experiment, protocol in (("comeba_table1", "single_round"), ("comeba_table2", "consecutive")):
        for dataset in ("zsre", "counterfact"):
            for editor in ("comeba_hk", "memit", "ft"):
                lower = (
                    0.6
                    if editor == "comeba_hk" and dataset == "counterfact" and protocol == "single_round"
                    else 0.0
                )

                def chance(metric, n_edits, editor=editor, lower=lower):
                    return height[editor] - (lower if metric == "reliability" else 0.0)

                run = f"{experiment}-{dataset}-{editor}"
                growth = (1000, 1000) if editor == "comeba_hk" else (1000, 2000)
                fabricate(
                    root,
                    run,
                    editor=editor,
                    dataset=dataset,
                    protocol=protocol,
                    edits=80,
                    chance=chance,
                    settings={"lam_ratio": 0.5, "hooks": True},
                    state_bytes=growth,
                )
                names[experiment].append(run)
    fabricate(root, "z", editor="comeba_hk", edits=40, inspect=True, seeds=(0,), settings={"hooks": True})
    names["comeba_fig3"].append("z")
    for alpha, fixed in ((1.0, False), (1.5, False), (3.0, False), (3.0, True)):
        run = f"alpha-{alpha:g}-{fixed}".lower().replace(".", "_")

        def chance(metric, n_edits, alpha=alpha, fixed=fixed):
            if fixed:
                return 2.0 if metric == "locality" else 0.02
            return 0.4 if alpha == 1.0 and metric == "locality" else 0.9

        fabricate(
            root,
            run,
            editor="comeba_hk",
            variant=run,
            edits=80,
            seeds=(0, 1),
            chance=chance,
            settings={"alpha_z": alpha, "fixed_alpha": fixed},
        )
        names["comeba_fig10"].append(run)
    names["comeba_fig7"] = ["never-made"]
    out = tmp_path_factory.mktemp("figures")
    spec = {
        "scale": "mini",
        "paper": "comeba_hk",
        "models": {"weaker": "mini-gpt2", "stronger": "mini-gpt2"},
        "datasets": {"zsre": "zsre", "counterfact": "counterfact"},
        "experiments": names,
        "draws": 400,
    }
    judge(spec, root, out)
    return root, out


def _rows(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_verdicts_follow_what_was_built_in(judged):
    _, out = judged
    verdicts = {row["claim"]: row["verdict"] for row in _rows(out / "claims.csv")}
    assert verdicts["C1"] == "fails"  # reliability on CounterFact
    assert verdicts["C3"] == "holds"  # the sentence that it may
    assert verdicts["C4"] == verdicts["C20"] == "not run"  # MEND does not exist
    assert verdicts["C16"] == verdicts["C18"] == verdicts["C21"] == "holds"
    assert verdicts["C2"] == "not run"  # no lambda below MEMIT's
    assert verdicts["C15"] == "not run"  # its runs were never made
    assert set(verdicts) == {f"C{number}" for number in range(1, 22)}


def test_parts_are_judged_even_where_an_editor_is_missing(judged):
    _, out = judged
    order = [row for row in _rows(out / "claims_tests.csv") if row["claim"] == "C4"]
    assert {row["verdict"] for row in order if "MEND" in row["evidence"]} == {"not run"}
    assert {row["verdict"] for row in order if "MEND" not in row["evidence"]} == {"holds"}
    assert all(not row["value"] for row in order if row["verdict"] == "not run")


def test_value_and_interval_are_the_paired_difference(judged):
    root, out = judged
    row = next(
        r
        for r in _rows(out / "claims_tests.csv")
        if (r["claim"], r["dataset"], r["metric"]) == ("C1", "zsre", "generality")
    )
    differences = []
    for seed in (0, 1, 2):
        left, right = (
            load_runs([root / "runs" / f"comeba_table1-zsre-{editor}" / f"seed={seed}"])[0].record_values(
                "generality"
            )
            for editor in ("comeba_hk", "memit")
        )
        differences.append(left - right)
    assert float(row["value"]) == pytest.approx(np.mean([d.mean() for d in differences]), abs=1e-5)
    assert [float(v) for v in row["per_seed"].split()] == pytest.approx(
        [d.mean() for d in differences], abs=1e-5
    )
    error = np.sqrt(np.sum([d.var(ddof=0) / len(d) for d in differences])) / 3  # of the mean over three seeds
    assert (float(row["high"]) - float(row["low"])) == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert int(row["n"]) == sum(map(len, differences))


def test_report_for_readers(judged):
    _, out = judged
    text = (out / "claims.md").read_text()
    assert (
        "models trained here" in text
        and "| [C21](#c21) |" in text
        and "Paper: ZsRE (reliability: 0.8221 / 0.6119" in text
    )
    assert pd.read_csv(out / "claims.csv")["tests"].min() >= 1


def test_judging_twice_gives_the_same_and_a_bad_spec_is_refused(judged, tmp_path):
    with pytest.raises(SettingsError, match="experiments"):
        judge({"paper": "comeba_hk"}, tmp_path, tmp_path)
    judge({"scale": "mini", "experiments": {}, "models": {}}, tmp_path, tmp_path)
    assert {row["verdict"] for row in _rows(tmp_path / "claims.csv")} == {"not run"}


def test_a_handful_of_records_decides_nothing(tmp_path):
    for editor, chance in (("comeba_hk", 2.0), ("memit", -1.0)):
        fabricate(tmp_path, editor, editor=editor, edits=8, seeds=(0,), chance=lambda *_, c=chance: c)
    spec = {"scale": "smoke", "models": {"weaker": "mini-gpt2", "stronger": "mini-gpt2"}}
    judge({**spec, "experiments": {"comeba_table2": ["comeba_hk", "memit"]}}, tmp_path, tmp_path)
    found = [row for row in _rows(tmp_path / "claims_tests.csv") if row["claim"] == "C4" and row["value"]]
    assert found and {(row["verdict"], float(row["value"])) for row in found} == {("undecided", 1.0)}


def test_only_the_seeds_of_the_plan_are_judged(tmp_path):
    """Seed 1 is left over from an earlier plan, and would turn the verdict."""
    for editor in ("comeba_hk", "memit"):
        better = editor == "comeba_hk"
        for seed, high in ((0, better), (1, not better)):
            chance = 2.0 if high else -1.0
            fabricate(tmp_path, editor, editor=editor, edits=40, seeds=(seed,), chance=lambda *_, c=chance: c)
    spec = {"scale": "smoke", "models": {"weaker": "mini-gpt2", "stronger": "mini-gpt2"}}
    verdicts = {}
    for seeds in ([0], [0, 1]):
        planned = {"comeba_table2": {"comeba_hk": seeds, "memit": seeds}}
        judge({**spec, "experiments": planned}, tmp_path / ".", tmp_path)
        rows = _rows(tmp_path / "claims_tests.csv")
        verdicts[len(seeds)] = {row["verdict"] for row in rows if row["claim"] == "C4" and row["value"]}
    assert verdicts == {1: {"holds"}, 2: {"undecided"}}


def test_the_smallest_of_the_means_must_have_enough_records(tmp_path):
    """Majority over two data sets, one of which has ten records."""
    for dataset, edits in (("zsre", 40), ("counterfact", 10)):
        for variant, chance in (("no_hooks", 2.0), ("default", -1.0)):
            editor = "comeba_hk" if variant == "no_hooks" else "memit"
            run = f"{dataset}-{editor}"
            fabricate(tmp_path, run, editor=editor, variant=variant, dataset=dataset, edits=edits,
                      chance=lambda *_, c=chance: c, settings={"hooks": False})  # fmt: skip
    runs = [f"{dataset}-{editor}" for dataset in ("zsre", "counterfact") for editor in ("comeba_hk", "memit")]
    spec = {"scale": "smoke", "models": {"weaker": "mini-gpt2"}, "experiments": {"comeba_fig4": runs}}
    judge(spec, tmp_path, tmp_path)
    (row,) = [row for row in _rows(tmp_path / "claims_tests.csv") if row["claim"] == "C8" and row["value"]]
    assert row["statistic"] == "majority" and row["verdict"] == "undecided" and float(row["value"]) > 0


def test_evidence_says_which_protocol_a_mean_is_of(judged):
    rows = [row for row in _rows(judged[1] / "claims_tests.csv") if row["claim"] == "C5" and row["value"]]
    assert rows
    for row in rows:
        assert "COMEBA-HK (consecutive)" in row["evidence"] and "MEMIT (single round)" in row["evidence"]


@pytest.mark.parametrize(("kept", "verdict"), [(2.0, "holds"), (0.5, "undecided")])
def test_what_an_editor_that_writes_nothing_does_not_harm_is_no_evidence(tmp_path, kept, verdict):
    """C25: GRACE leaves rephrasings and locality alone; that counts only where its edits are kept."""
    chances = {"reliability": kept, "generality": -1.0, "locality": 2.0}
    fabricate(tmp_path, "grace", editor="grace", dataset="zsre", chance=lambda metric, _: chances[metric])
    spec = {"scale": "smoke", "paper": "grace", "models": {"weaker": "mini-gpt2"}}
    judge({**spec, "experiments": {"crossover_table": ["grace"]}, "draws": 50}, tmp_path, tmp_path)
    rows = [row for row in _rows(tmp_path / "claims_tests.csv") if row["claim"] == "C25" and row["value"]]
    assert {row["metric"]: row["verdict"] for row in rows} == {
        "rephrase.exact_match": verdict,
        "locality": verdict,
    }
    assert all(("does not count: reliability" in row["evidence"]) == (kept < 1) for row in rows)


def test_a_model_that_failed_the_gate_is_no_evidence(tmp_path):
    """COMEBA-HK's C5: with both methods far apart, but on a model that keeps its facts elsewhere."""
    names: dict[str, list[str]] = {"comeba_table1": [], "comeba_table2": []}
    for experiment, protocol in (("comeba_table1", "single_round"), ("comeba_table2", "consecutive")):
        for editor in ("comeba_hk", "memit"):
            high = 0.9 if (editor, protocol) == ("comeba_hk", "consecutive") else 0.5
            name = f"{protocol}-{editor}"
            fabricate(
                tmp_path,
                name,
                editor=editor,
                dataset="zsre",
                settings={"lam_ratio": 0.5},
                protocol=protocol,
                chance=lambda *_, high=high: high,
            )
            names[experiment].append(name)
    spec = {"scale": "smoke", "models": {"weaker": "mini-gpt2"}, "experiments": names, "draws": 50}

    def verdict():
        judge(spec, tmp_path, tmp_path)
        (row,) = [
            r
            for r in _rows(tmp_path / "claims_tests.csv")
            if r["claim"] == "C5" and r["model"] == "mini-gpt2"
        ]
        return row["verdict"], row["evidence"]

    assert verdict()[0] == "holds"
    for path in (tmp_path / "runs").glob("*/seed=*/run.json"):
        gate = {
            "mode": "warn",
            "verdict": "fail",
            "reasons": ["only 0.07 of the facts can be changed"],
            "needed": True,
        }
        path.write_text(json.dumps(json.loads(path.read_text()) | {"gate": gate}))
    assert verdict()[0] == "not run" and "failed the gate" in verdict()[1]
