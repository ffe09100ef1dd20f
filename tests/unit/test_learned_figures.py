"""Tables and figures of simultaneous edits and of training, from fabricated runs: drawn numbers computed another way."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from fabricated_runs import fabricate
from fabricated_simultaneous import fabricate_batches, fabricate_training
from test_house import ROOT

from palimpsest import figures, published, results
from palimpsest.errors import DataError, SettingsError
from palimpsest.figures import batch_curves, learned_training, read, simultaneous, style, success_table

METHODS = [
    {"editor": "ft", "title": "FT", "published": "FT"},
    {"editor": "enn", "title": "ENN", "published": "ENN", "not_run": True},
    {"editor": "mend", "variant": "k10", "title": "MEND (k = 10)", "published": "MEND"},
    {"editor": "serac", "title": "SERAC", "published": "SERAC"},
]
QA = {"table": "serac_main", "dataset": "QA", "model": "T5-large"}
TALK = {"table": "serac_main", "dataset": "ConvSent", "model": "Blenderbot-90M"}
NOT_BUILT = {"enn", "ke", "ft_kl"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three methods at ten edits on two data sets, of which one is dialogue; two over the number of edits."""
    root = tmp_path_factory.mktemp("results")
    found = {"root": root, "table": [], "sweep": []}
    for dataset, k in (("zsre", 10), ("opinions", 5)):
        for method, chance in (("ft", 0.6), ("mend:k10", 0.8), ("serac", 0.95)):
            found["table"] += fabricate_batches(
                root, f"{dataset}-{method}".replace(":", "-"), method=method, dataset=dataset, sizes=(k,), seeds=(0, 1),
                success=lambda split, k, chance=chance: chance, changed=lambda split, k, chance=chance: (1 - chance) / 2,
                drift=dataset == "opinions",
            )  # fmt: skip
    for method in ("mend", "serac"):
        found["sweep"] += fabricate_batches(
            root, f"sweep-{method}", method=method, seconds=0.2, bytes_of=lambda k: 8.0 * k,
            success=lambda split, k, method=method: 0.9 if method == "serac" else 0.9 / k,
        )  # fmt: skip
    return found


def _spec(drawer, **more):
    spec = {"name": "it", "drawer": drawer, "title": "A title", "scale": "mini", "models": [], "datasets": []}
    return {**spec, "methods": METHODS, **more}


def _means(runs, folder, split, metric, k):
    tables = [
        results.read_table(path / results.RECORDS_FILE, results.RECORDS_SCHEMA)
        for path in runs
        if folder in str(path)
    ]
    return [
        t[(t["split"] == split) & (t["metric"] == metric) & (t["n_edits"] == k)]["value"].mean()
        for t in tables
    ]


def test_the_table_has_measured_printed_and_unrun_rows(runs, tmp_path):
    spec = _spec(
        "success_table",
        datasets=["zsre", "opinions"],
        options={"published": {"places": {"zsre": QA, "opinions": TALK}}},
    )
    written = figures.draw("serac_table", spec, runs["table"], tmp_path)
    assert {path.name for path in written} == {"serac_table" + s for s in figures.outputs(spec)}
    table = pd.read_csv(tmp_path / "serac_table.csv", dtype={"printed": str})
    row = table.query("dataset == 'zsre' and method == 'MEND (k = 10)' and column == 'es_minus_dd'").iloc[0]
    wins, losses = (
        _means(runs["table"], "zsre-mend-k10", split, metric, 10)
        for split, metric in (("in_scope", "edit_success"), ("outside", "drawdown"))
    )
    assert row["mean"] == pytest.approx(np.mean(wins) - np.mean(losses), abs=1e-5)
    assert row["low"] < row["mean"] < row["high"] and (row["k"], row["seeds"], row["n"]) == (10, 2, 160)
    success = table.query("dataset == 'zsre' and method == 'SERAC' and column == 'es'").iloc[0]
    assert (success["printed"], success["shown"], success["evidence"]) == (".986", ".986†", "unchecked")
    before = table.query("dataset == 'zsre' and method == 'Unedited' and column == 'es'").iloc[0]
    assert before["mean"] == pytest.approx(
        np.mean(_means(runs["table"], "zsre-ft", "in_scope", "edit_success", 0)), abs=1e-5
    )
    text = (tmp_path / "serac_table.md").read_text()
    assert "| ENN | not run | .786† | not run |" in text and "Not run: ENN." in text and "† unchecked" in text
    assert "5 edits at once; printed: ConvSent, Blenderbot-90M" in text
    assert "one training for each model and data set" in text


def test_in_dialogue_drawdown_is_a_divergence(runs, tmp_path):
    spec = _spec(
        "success_table", datasets=["opinions"], options={"published": {"places": {"opinions": TALK}}}
    )
    figures.draw("it", spec, runs["table"], tmp_path)
    table = pd.read_csv(tmp_path / "it.csv", dtype={"printed": str})
    row = table.query("method == 'SERAC' and column == 'dd'").iloc[0]
    own = _means(runs["table"], "opinions-serac", "outside", "drift", 5)
    assert row["mean"] == pytest.approx(np.mean(own), abs=1e-5) and row["printed"] == "0"
    assert set(table.query("column == 'es_minus_dd'")["status"]) == {"no such quantity"}
    assert "mean KL divergence" in (tmp_path / "it.caption.md").read_text()


def test_the_best_drawdown_is_the_lowest_and_a_gate_is_not_ranked(runs):
    loaded = [run for run in read.load_runs(runs["table"]) if run.spec["dataset"] == "zsre"]
    spec = _spec("success_table", options={"columns": ["es", "dd", "opened"]})
    points = success_table.measured_points(spec, loaded, read.methods_of(spec, loaded))
    table = success_table.layout(points)
    assert list(table.columns) == [
        "Method",
        "ES",
        "DD",
        "Gate open, in scope",
    ]  # nothing printed: no column for it
    bold = {(table.groups[group][1][row][0], column) for group, row, column in table.emphasis}
    assert bold == {("SERAC", 1), ("SERAC", 2)}
    assert (0, 2) in table.faint  # ENN
    # FT loses nothing where its success is no better than the unedited model's: nothing to be best at.
    points.loc[(points["method"] == "FT") & (points["column"] == "dd"), "mean"] = 0.0
    assert ("FT", "dd") in success_table._best(points)
    points.loc[(points["method"] == "FT") & (points["column"] == "es"), "low"] = 0.0
    assert success_table._best(points) == {("SERAC", "es"), ("SERAC", "dd")}
    with pytest.raises(SettingsError, match="unknown quantity 'fame'"):
        simultaneous.quantity("fame")


def test_perplexity_rises_by_run_and_has_no_column_where_no_model_has_one(runs, tmp_path):
    """MEND's drawdown on text: one number a run, the seeds' range beside it, and the paper's."""
    options = {
        "columns": ["es", "perplexity"],
        "published": {
            "places": {
                "passages": {"table": "mend_table4", "dataset": "Wikitext", "model": "distilGPT-2 82M"}
            }
        },
    }
    made = fabricate_batches(
        tmp_path / "results", "text-mend", method="mend", dataset="passages", sizes=(1,), seeds=(0, 1), perplexity=2.0
    )  # fmt: skip
    methods = [{"editor": "mend", "title": "MEND", "published": "MEND"}]
    figures.draw("it", _spec("success_table", methods=methods, options=options), made, tmp_path)
    row = pd.read_csv(tmp_path / "it.csv").query("column == 'perplexity' and method == 'MEND'").iloc[0]
    assert (row["mean"], row["low"], row["high"], row["printed"]) == (2.5, 2.0, 3.0, 0.225)
    assert "2.500 [2.000, 3.000]" in (tmp_path / "it.md").read_text()
    loaded = [run for run in read.load_runs(runs["table"]) if run.spec["dataset"] == "zsre"]
    spec = _spec("success_table", options=options)
    points = success_table.measured_points(spec, loaded, read.methods_of(spec, loaded))
    table = success_table.layout(points)
    assert "Perplexity rise" not in table.columns
    assert {len(row) for _, rows in table.groups for row in rows} == {len(table.columns)}


def test_answers_that_were_never_right_are_not_lost(runs, tmp_path):
    """On passages no continuation is right out of scope before an edit: nothing can be lost, and no drop is shown."""
    rows = [("outside", "right_before", 0.0), ("outside", "accuracy_drop", 0.0), ("far", "right_before", 1.0)]
    text = SimpleNamespace(metrics=pd.DataFrame(rows, columns=["split", "metric", "value"]))
    asked = [run for run in read.load_runs(runs["table"]) if run.spec["dataset"] == "zsre"]
    assert not simultaneous.known_outside([text]) and simultaneous.known_outside(asked)
    options = {"columns": ["es", "drop", "dd"]}
    spec = _spec("success_table", datasets=["passages"], options=options)
    made = fabricate_batches(
        tmp_path / "results",
        "text",
        method="serac",
        dataset="passages",
        sizes=(10,),
        changed=lambda split, k: 1.0,
    )
    loaded = read.load_runs(made)
    for run in loaded:
        run.metrics.loc[run.metrics["metric"].isin(["accuracy_drop", "right_before"]), "value"] = 0.0
    points = success_table.measured_points(spec, loaded, read.methods_of(spec, loaded))
    shown = points[points["editor"] == "serac"].set_index("column")
    assert shown["status"].to_dict() == {
        "es": "measured",
        "drop": "no such quantity",
        "dd": "no such quantity",
    }


def test_curves_show_the_rows_and_the_printed_numbers(runs, tmp_path):
    methods = [METHODS[1], {"editor": "mend", "title": "MEND", "published": "MEND"}, METHODS[3]]
    options = {
        "quantities": ["es", "drop"],
        "published": {"table": "mend_table5", "dataset": "zsRE", "model": "BART-base 139M"},
    }
    figures.draw(
        "mend_batches", _spec("batch_curves", methods=methods, options=options), runs["sweep"], tmp_path
    )
    points = pd.read_csv(tmp_path / "mend_batches.csv")
    own = points.query("source == 'measured' and method == 'MEND' and quantity == 'es'").set_index("k")[
        "mean"
    ]
    assert list(own.index) == [1, 10, 40]
    for k, value in own.items():
        assert value == pytest.approx(
            np.mean(_means(runs["sweep"], "sweep-mend", "in_scope", "edit_success", k)), abs=1e-5
        )
    printed = points.query("source == 'printed' and quantity == 'es'")
    assert dict(printed.query("method == 'ENN'")[["k", "mean"]].to_numpy()) == {
        1: 0.99, 5: 0.94, 25: 0.35, 75: 0.16, 125: 0.11}  # fmt: skip
    assert set(printed["method"]) == {"ENN", "MEND"}
    caption = (tmp_path / "mend_batches.caption.md").read_text()
    assert (
        "Hollow marks, dotted" in caption and "Not run: ENN." in caption and "1, 10 and 40 at once" in caption
    )
    spec = _spec("batch_curves", methods=methods[1:])
    assert batch_curves.printed_sizes({}, read.methods_of(spec, [])[0]) == []


def test_curves_of_dialogue_show_a_divergence_and_no_difference(runs, tmp_path):
    """A KL beside shares: its own axis and name, and no line of "ES - DD"; each row has the numbers of edits that it ran."""
    spec = _spec("batch_curves", methods=METHODS[3:], options={"quantities": ["es", "dd", "es_minus_dd"]})
    figures.draw("it", spec, runs["table"], tmp_path)
    points = pd.read_csv(tmp_path / "it.csv")
    talk, asked = (points.query(f"dataset == '{name}'") for name in ("opinions", "zsre"))
    assert set(talk["quantity"]) == {"es", "drift"} and set(talk["k"]) == {5}
    assert set(asked["quantity"]) == {"es", "dd", "es_minus_dd"} and set(asked["k"]) == {10}
    own = _means(runs["table"], "opinions-serac", "outside", "drift", 5)
    assert talk.query("quantity == 'drift'")["mean"].iloc[0] == pytest.approx(np.mean(own), abs=1e-5)


def test_runs_of_other_protocols_are_left_aside(runs, tmp_path):
    other = fabricate(tmp_path / "other", "consecutive-serac", editor="serac", dataset="zsre")
    spec = _spec("batch_curves", methods=METHODS[3:], options={"quantities": ["edit"]})
    figures.draw("it", spec, [*runs["sweep"], *other], tmp_path)
    assert set(pd.read_csv(tmp_path / "it.csv")["k"]) == {1, 10, 40}
    with pytest.raises(DataError, match="no run of simultaneous edits"):
        figures.draw("it", spec, other, tmp_path)


def test_lines_that_hide_each_other_are_named():
    rows = [
        {
            "model": "m",
            "dataset": "zsre",
            "quantity": "edit",
            "source": "measured",
            "method": name,
            "mean": value,
        }
        for name, values in (("A", (1, 1)), ("B", (1, 0.998)), ("C", (1, 1)), ("D", (0.9, 1)))
        for value in values
    ]
    assert batch_curves._coincide(pd.DataFrame(rows)) == "A, B, C coincide at 1 (ES, own prompt)."
    assert batch_curves._coincide(pd.DataFrame(rows[2:])) == ""


def test_costs_are_per_edit(runs, tmp_path):
    methods = [{"editor": "mend", "title": "MEND"}, METHODS[3]]
    figures.draw("serac_cost", _spec("edit_cost", methods=methods), runs["sweep"], tmp_path)
    points = pd.read_csv(tmp_path / "serac_cost.csv")
    row = points.query("method == 'MEND' and measure == 'seconds per edit' and k == 10").iloc[0]
    assert row["mean"] == pytest.approx(0.02)  # the median of .2, .6, .2, over ten edits
    kept = points.query("method == 'SERAC' and measure == 'bytes kept'").set_index("k")["mean"]
    assert dict(kept) == {1: 8.0, 10: 80.0, 40: 320.0}
    assert "Training of the learned editors is not in it" in (tmp_path / "serac_cost.caption.md").read_text()


def test_of_two_runs_of_a_seed_the_first_counts(runs, tmp_path):
    """Retrieval is measured for two figures whose runs are drawn together: one seed has no band."""
    (own,) = [path for path in runs["sweep"] if "sweep-serac" in str(path) and path.name == "seed=0"]
    again = fabricate_batches(tmp_path / "results", "again", method="serac", seconds=9.0, seeds=(0,))
    figures.draw("cost", _spec("edit_cost", methods=[METHODS[3]]), [own, *again], tmp_path)
    points = pd.read_csv(tmp_path / "cost.csv").query("measure == 'seconds per edit'")
    assert len(points) == 3
    assert (points["low"] == points["high"]).all() and points["mean"].max() == pytest.approx(0.2)


def _training(path, **more):
    entry = {"file": str(path), "editor": "mend", "title": "MEND", "model": "mini-gpt2", "dataset": "zsre"}
    return {**entry, **more}


def test_training_shows_the_state_that_was_kept(tmp_path):
    one = fabricate_training(tmp_path, "mend-zsre", best=700)
    two = fabricate_training(tmp_path, "mend-zsre-no-norm", best=300, dropped=4, steps=600)
    other = fabricate_training(tmp_path, "serac-zsre")
    entries = [
        _training(one), _training(two, title="MEND (no normalisation)"), _training(other, editor="serac", title="SERAC")
    ]  # fmt: skip
    spec = _spec(
        "learned_training", trainings=entries, options={"stamp": ""}, dataset_titles={"zsre": "ZsRE"}
    )
    for folder in ("a", "b"):
        figures.draw("learned_training", spec, [], tmp_path / folder)
    points = pd.read_csv(tmp_path / "a" / "learned_training.csv")
    kept = points[points["kept"] & (points["split"] == "valid") & (points["loss"] == "total")]
    assert list(kept["step"]) == [700, 300, 700]
    caption = (tmp_path / "a" / "learned_training.caption.md").read_text()
    assert "3 trainings, 600 to 1,000 steps each; seed 0" in caption
    assert "MEND (no normalisation) on mini-gpt2, ZsRE: 4." in caption
    for suffix in figures.FIGURE_SUFFIXES:
        first, second = (tmp_path / folder / f"learned_training{suffix}" for folder in ("a", "b"))
        assert first.read_bytes() == second.read_bytes()


def test_a_variant_has_one_look_in_all_panels():
    entries = [_training("x"), _training("x", title="MEND (toolkit)"), _training("x", editor="serac", title="SERAC (toolkit)"),
               _training("x", editor="serac", title="Retrieve and prompt")]  # fmt: skip
    names = [learned_training._short(entry) for entry in entries]
    assert names == ["default", "toolkit", "toolkit", "Retrieve and prompt"]
    crowd = [f"v{n}" for n in range(9)]
    looks = learned_training._looks([names[:2], names[2:], ["default", *crowd]])
    assert len(set(looks.values())) == len(looks) == 12 and looks["default"][0] == style.INK
    assert len({looks[name][0] for name in crowd}) == 9  # no colour twice in a panel


def test_trainings_that_end_near_the_default_have_a_panel_of_their_own():
    def part(title, last):
        row = {"step": 1, "split": "valid", "loss": "total", "value": last}
        return _training("x", title=title), pd.DataFrame([row]), None

    bundle = [part("MEND", 1.0), *(part(f"MEND (near {n})", 1 + n / 10) for n in range(3))]
    far = [part("MEND (high)", 9.0), part("MEND (low)", 0.1)]
    assert learned_training._views([*bundle, *far]) == {"all": [bundle[0], *far], "bundle": bundle}
    assert list(learned_training._views([*bundle, far[0]])) == [""]


def test_panels_of_many_trainings_stand_first_and_have_room():
    part = ({}, pd.DataFrame(), None)
    sizes = (("one", 1), ("many", 9), ("few", 3), ("more", 5), ("last", 1))
    panels = {(name, "model", "data", ""): [part] * count for name, count in sizes}
    panels["many", "model", "data", "bundle"] = [part] * 3
    rows = learned_training._rows(panels)
    named = [[key[0] for key in keys] for keys, _, _ in rows]
    assert named == [["many", "more"], ["many"], ["few"], ["one"], ["last"]]
    across, heights = [row[1] for row in rows], [row[2] for row in rows]
    assert across == sorted(across) and heights == sorted(heights, reverse=True)


def test_a_training_without_validation_is_refused(tmp_path):
    path = fabricate_training(tmp_path, "mend-zsre")
    path.write_text("step,split,loss,value\n50,train,total,1.0\n")
    with pytest.raises(DataError, match="no loss of validation"):
        figures.draw("it", _spec("learned_training", trainings=[_training(path)]), [], tmp_path)
    path.write_text("step,loss,value\n")
    with pytest.raises(DataError, match="'split' is missing"):
        figures.draw("it", _spec("learned_training", trainings=[_training(path)]), [], tmp_path)
    for entries in ([], [_training(tmp_path / "absent" / "training.csv")]):
        with pytest.raises(DataError, match="training"):
            figures.draw("it", _spec("learned_training", trainings=entries), [], tmp_path)


@pytest.mark.parametrize("paper", ["serac", "mend"])
def test_the_experiments_name_what_exists(paper):
    """Methods in config/editors, numbers in the published tables, quantities, and every experiment that a claim names."""
    folder = ROOT / "config" / "experiments"
    content = yaml.safe_load((folder / f"{paper}.yaml").read_text())
    everything = [yaml.safe_load(path.read_text())["experiments"] for path in folder.glob("*.yaml")]
    assert content["paper"] == content["group"] == paper
    assert published.experiments_judged(paper) <= {name for entries in everything for name in entries}
    for name, entry in content["experiments"].items():
        options = entry.get("options") or {}
        for quantity in (*options.get("columns", ()), *options.get("quantities", ())):
            assert quantity in simultaneous.QUANTITIES, name
        for method in entry.get("methods", ()):
            editor, _, variant = (method if isinstance(method, str) else method["method"]).partition(":")
            file = ROOT / "config" / "editors" / f"{editor}.yaml"
            assert (editor in NOT_BUILT) != file.is_file(), (name, editor)
            if variant:
                assert variant in yaml.safe_load(file.read_text())["variants"], (name, method)
        titles = [
            m["published"] for m in entry.get("methods", ()) if isinstance(m, dict) and "published" in m
        ]
        for dataset, at in ((options.get("published") or {}).get("places") or {}).items():
            found = [
                published.find_printed(
                    at["table"], dataset=at["dataset"], model=at["model"], method=title, metric="edit_success"
                )
                for title in titles
            ]
            # ConvSent has no FT and no LU; of every other place each method that names a row has one.
            assert any(found) and (dataset == "opinions" or all(found)), (name, dataset)
