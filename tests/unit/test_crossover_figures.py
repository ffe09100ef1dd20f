"""The cross-over of both protocols, from fabricated runs: its intervals are those of the records."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from fabricated_lifelong import fabricate_stream
from fabricated_runs import fabricate

from palimpsest import figures
from palimpsest.figures import bootstrap, read

METHODS = [
    {"editor": "ft", "title": "FT"},
    {"editor": "grace", "variant": "published", "title": "GRACE (as published)"},
]
HERE = ("mini-gpt2", "counterfact")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Both drawers on a method that changes nothing and one that works, in both protocols."""
    root, out = tmp_path_factory.mktemp("results"), tmp_path_factory.mktemp("figures")
    made = []
    for editor, variant, chance in (
        ("ft", "default", (0.25, 0.25, 1.0)),
        ("grace", "published", (0.9, 0.5, 0.8)),
    ):
        own = dict(zip(("reliability", "generality", "locality"), chance, strict=True))
        made += fabricate(
            root, f"consecutive-{editor}", editor=editor, variant=variant, snapshots=(20, 40), before=(0.25, 0.25, 1.0),
            chance=lambda metric, n_edits, own=own: own[metric], settings={"compat": "official"} if variant != "default" else {},
        )  # fmt: skip
    for method, end in (("ft", (0.72, 0.2)), ("grace:published", (0.6, 0.9))):
        name, compat = f"stream-{method.replace(':', '-')}", {"compat": "official"} if ":" in method else {}
        made += fabricate_stream(
            root, name, method=method, items=40, every=20, end=end, place=HERE, settings=compat
        )
    spec = {
        "name": "it",
        "title": "A title",
        "scale": "mini",
        "models": [],
        "datasets": [],
        "methods": METHODS,
    }
    for name in ("crossover_table", "crossover_curves"):
        figures.draw(name, {**spec, "drawer": name}, made, out)
    return read.load_runs(made), out


def _expected(runs, editor, protocol, metric, split, n_edits):
    own = [r for r in runs if (r.spec["editor"], r.spec["protocol"]) == (editor, protocol)]
    values = {run.seed: read.identified(run, run.record_values(metric, split, n_edits)) for run in own}
    return bootstrap.interval_over_seeds(values)


def test_the_table_has_the_intervals_of_the_records(drawn):
    runs, out = drawn
    table = pd.read_csv(out / "crossover_table.csv").set_index(["protocol", "method", "quantity"])
    for protocol, quantity, metric, split in (
        ("consecutive", "reliability", "reliability", "edit"),
        ("lifelong", "trr", "token_f1", "upstream"),
    ):
        expected = _expected(runs, "grace", protocol, metric, split, 40)
        row = table.loc[(protocol, "GRACE (as published)", quantity)]
        measured = row[["mean", "interval_low", "interval_high"]].astype(float)
        assert list(measured) == pytest.approx([expected.mean, expected.low, expected.high], abs=1e-5)
    before = table.loc[("consecutive", "Unedited", "reliability")]
    assert before["interval_low"] < before["mean"] < before["interval_high"]
    assert np.isnan(table.loc[("consecutive", "FT", "edits"), "interval_low"])


def test_the_curves_have_bands_where_records_were_kept(drawn):
    runs, out = drawn
    points = pd.read_csv(out / "crossover_curves.csv").query("method == 'GRACE (as published)'")
    own = points.query("quantity == 'generality'").set_index("step")
    expected = _expected(runs, "grace", "consecutive", "generality", "rephrase", 20)
    assert (own["low"].iloc[-2], own["high"].iloc[-2]) == pytest.approx(
        (expected.low, expected.high), abs=1e-5
    )
    stream = points.query("quantity == 'trr'").set_index("step")
    assert stream["low"].isna().to_dict() == {0: False, 20: True, 40: False}  # of probes: first and last look
    assert points.query("quantity == 'err'")["low"].notna().all()


def test_captions_say_how_each_protocol_asks_and_no_more_than_is_shown(drawn):
    _, out = drawn
    table, curves = (
        (out / f"{name}.caption.md").read_text() for name in ("crossover_table", "crossover_curves")
    )
    for words in (table, curves):
        assert "teacher-forced token accuracies" in words and "scores of freely generated answers" in words
        assert "GRACE (as published) asks its codebook at the first token of the target" in words
        assert "ES (" not in words and "ARR (" not in words and "95 % bootstrap interval" in words
    assert "a bar at the end" in curves


def test_who_changes_nothing_is_not_the_best_at_keeping(drawn):
    _, out = drawn
    rows = [
        line for line in (out / "crossover_table.md").read_text().splitlines() if line.startswith("| FT |")
    ]
    assert len(rows) == 2 and not any("**" in row for row in rows)
