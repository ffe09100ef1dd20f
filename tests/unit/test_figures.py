"""Figures and tables from fabricated runs: the numbers drawn are those computed another way."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from fabricated_runs import SPLITS, fabricate

from palimpsest import figures, results
from palimpsest.config import read_yaml, repository_root
from palimpsest.errors import DataError, SettingsError
from palimpsest.figures import bootstrap, editing_table, gallery, lambdas, read, style, tables
from palimpsest.files import write_json

CHANCE = {"memit": (0.5, 0.2, 0.6), "comeba_hk": (0.8, 0.4, 0.9)}


def _chance(editor):
    return lambda metric, n_edits: CHANCE[editor][list(SPLITS).index(metric)] - n_edits / 400


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two methods on two data sets; COMEBA-HK inspected; and a sweep of lambda with a fixed alpha."""
    root = tmp_path_factory.mktemp("results")
    found = {"root": root, "main": [], "sweep": []}
    for dataset in ("zsre", "counterfact"):
        for editor, title in (("memit", "MEMIT"), ("comeba_hk", "COMEBA-HK")):
            found["main"] += fabricate(
                root,
                f"{editor}-{dataset}",
                editor=editor,
                title=title,
                dataset=dataset,
                snapshots=(20, 40),
                settings={"lam_ratio": 0.5, "lam": 15000.0, "layers": [0, 1]},
                chance=_chance(editor),
                inspect=editor == "comeba_hk",
            )
    for alpha, fixed in ((1.0, False), (3.0, False), (3.0, True)):
        found["sweep"] += fabricate(
            root,
            f"alpha-{alpha:.0f}-{fixed}".lower(),
            editor="comeba_hk",
            variant=f"a{alpha:.0f}{fixed}",
            title="COMEBA-HK",
            snapshots=(20, 40),
            seeds=(0,),
            settings={"alpha_z": alpha, "fixed_alpha": fixed, "lam_ratio": alpha},
            chance=_chance("comeba_hk"),
        )
    return found


def _spec(drawer, **more):
    spec = {
        "name": "it",
        "drawer": drawer,
        "paper": "comeba_hk",
        "item": "Figure 0",
        "title": "A title",
        "scale": "mini",
    }
    return {**spec, "models": ["mini-gpt2"], "datasets": ["zsre", "counterfact"], **more}


METHODS = [
    {"editor": "mend", "title": "MEND", "published": "MEND", "not_run": True},
    {"editor": "memit", "title": "MEMIT", "published": "MEMIT"},
    {"editor": "comeba_hk", "title": "COMEBA-HK", "published": "COMEBA-HK"},
]
PUBLISHED = {"table": "comeba_hk_table2", "models": {"mini-gpt2": "GPT2-XL"}}


def test_colours_are_of_methods_that_there_are_and_spare_ones_are_spare():
    """A name that nothing has any more colours nothing; a new editor is not drawn in another's colour."""
    known = {("enn", "default"), ("ke", "default")}  # rows of the papers' tables
    for path in (repository_root() / "config" / "editors").glob("*.yaml"):
        known |= {(path.stem, variant) for variant in ("default", *(read_yaml(path).get("variants") or {}))}
    assert set(style.METHOD_COLOURS) <= known
    assert {editor for editor, _ in known} >= set(style.METHOD_MARKERS)
    assert not set(style.SPARE_COLOURS) & set(style.METHOD_COLOURS.values())


def test_bootstrap_of_a_share_is_the_binomial():
    values = np.repeat([0.0, 1.0], [30, 70])
    drawn = bootstrap.mean_draws(values, draws=20000)
    assert drawn.mean() == pytest.approx(0.7, abs=0.005)
    assert drawn.std() == pytest.approx(np.sqrt(0.7 * 0.3 / 100), rel=0.03)


def test_interval_over_seeds_narrows_with_seeds_and_shows_their_spread():
    generator = np.random.default_rng(0)
    per_seed = {seed: pd.Series(generator.random(200)).add_prefix(f"{seed}-") for seed in range(4)}
    one, four = (bootstrap.interval_over_seeds({s: per_seed[s] for s in range(k)}) for k in (1, 4))
    assert four.mean == pytest.approx(np.mean([per_seed[s].mean() for s in range(4)]))
    assert four.high - four.low == pytest.approx((one.high - one.low) / 2, rel=0.2)
    assert (four.seed_low, four.seeds, four.n) == (min(v.mean() for v in per_seed.values()), 4, 800)


def test_seeds_that_share_their_records_make_no_interval_narrower():
    """Four seeds that drew the same records know no more about others than one; half of them the same is in between."""
    generator = np.random.default_rng(2)
    values = pd.Series(generator.random(400)).add_prefix("r")

    def width(per_seed):
        found = bootstrap.interval_over_seeds(per_seed, draws=4000)
        return found.high - found.low

    one = width({0: values[:200]})
    assert width({seed: values[:200] for seed in range(4)}) == pytest.approx(one, rel=0.05)
    apart = width({0: values[:200], 1: values[200:]})
    assert apart == pytest.approx(one / np.sqrt(2), rel=0.1)
    # Var of a mean of two means that share half their records: (1 + 1/2) / 2 of that of one.
    assert width({0: values[:200], 1: values[100:300]}) == pytest.approx(one * np.sqrt(0.75), rel=0.1)
    cells = {0: values[:200].to_frame(), 1: values[100:300].to_frame()}
    joint = bootstrap.joint_means_of_seeds(cells, draws=4000)
    mean = np.mean([drawn[:, 0] for _, drawn in joint.values()], axis=0)
    low, high = bootstrap.limits(mean)
    assert high - low == pytest.approx(one * np.sqrt(0.75), rel=0.1)


def test_a_record_that_is_there_twice_counts_twice():
    """Two runs of one seed on the same records, as a line over several sweeps pools them."""
    twice = {0: pd.Series([0.0, 1.0, 1.0], ["a", "a", "b"]), 1: pd.Series([1.0, 0.0], ["a", "c"])}
    found = bootstrap.interval_over_seeds(twice)
    assert (found.seed_low, found.seed_high, found.n) == (0.5, pytest.approx(2 / 3), 5)
    assert found.mean == pytest.approx((2 / 3 + 0.5) / 2)


def test_joint_means_pair_records_and_ignore_absent_ones():
    generator = np.random.default_rng(1)
    base = generator.random(300)
    cells = pd.DataFrame({0: base, 1: base + 0.1, 2: np.where(np.arange(300) < 100, base, np.nan)})
    means, drawn = bootstrap.joint_means(cells)
    assert means[1] - means[0] == pytest.approx(0.1) and means[2] == pytest.approx(base[:100].mean())
    assert np.ptp(drawn[:, 1] - drawn[:, 0]) < 1e-12  # paired: the difference of the two never varies
    assert drawn[:, 2].std() == pytest.approx(base[:100].std() / 10, rel=0.1)


def test_table_shows_measured_printed_and_difference(runs, tmp_path):
    spec = _spec("editing_table", methods=METHODS, options={"published": PUBLISHED})
    written = figures.draw("comeba_table2", spec, runs["main"], tmp_path)
    assert {path.name for path in written} == {"comeba_table2" + suffix for suffix in figures.outputs(spec)}
    table = pd.read_csv(tmp_path / "comeba_table2.csv", dtype={"printed": str})
    row = table[
        (table.dataset == "zsre") & (table.editor == "comeba_hk") & (table.metric == "locality")
    ].iloc[0]
    own = [results.read_metrics(path) for path in runs["main"] if "comeba_hk-zsre" in str(path)]
    last = pd.concat(own).query("metric == 'locality' and n_edits == 40")["value"]
    assert row["mean"] == pytest.approx(last.mean(), abs=1e-5)
    assert (row["printed"], row["n"]) == ("0.9723", 120)
    assert row["difference"] == pytest.approx(last.mean() - 0.9723, abs=1e-5)
    assert row["low"] < row["mean"] < row["high"] and row["seed_low"] == pytest.approx(last.min())
    text = (tmp_path / "comeba_table2.md").read_text()
    assert "| MEND | not run | 0.0002 |" in text and "models trained here" in text
    tex = (tmp_path / "comeba_table2.tex").read_text()
    assert r"\toprule" in tex and "not run" in tex and "COMEBA-HK" in tex


def test_the_unedited_model_stands_beside_the_methods(tmp_path):
    """Its row has no printed number, and an editor that changes nothing is not the best at keeping everything."""
    made = []
    for editor, chances in (("ft", (0.25, 0.25, 1.0)), ("memit", (0.9, 0.8, 0.6)), ("rome", (0.8, 0.7, 0.7))):
        own = dict(zip(SPLITS, chances, strict=True))
        made += fabricate(
            tmp_path / "results", editor, editor=editor, dataset="zsre", before=(0.25, 0.2, 1.0),
            chance=lambda metric, n_edits, own=own: own[metric],
        )  # fmt: skip
    methods = [
        {"editor": name, "title": name.upper(), "published": "MEMIT"} for name in ("ft", "memit", "rome")
    ]
    spec = _spec("editing_table", methods=methods, datasets=["zsre"], options={"published": PUBLISHED})
    figures.draw("table", spec, made, tmp_path)
    rows = pd.read_csv(tmp_path / "table.csv").query("editor == 'unedited'").set_index("metric")
    before = pd.concat([results.read_metrics(path) for path in made[:3]]).query("n_edits == 0")
    for metric in SPLITS:
        expected = before[before["metric"] == metric]["value"].mean()
        assert rows.loc[metric, "mean"] == pytest.approx(expected, abs=1e-5)
    assert rows["printed"].isna().all() and set(rows["n"]) == {120}
    points = editing_table.measured_points(spec, read.load_runs(made), read.methods_of(spec, []))
    table = editing_table.layout(points, read.methods_of(spec, []))
    bold = {(table.groups[group][1][row][0], table.columns[column]) for group, row, column in table.emphasis}
    assert bold == {("MEMIT", "Reliability"), ("MEMIT", "Generality"), ("ROME", "Locality")}
    figures.draw("curves", _spec("curves", methods=methods, datasets=["zsre"]), made, tmp_path)
    lines = pd.read_csv(tmp_path / "curves.csv").query("source == 'unedited'").set_index("metric")["mean"]
    assert dict(lines) == pytest.approx(dict(rows["mean"][["reliability", "generality"]]), abs=1e-5)
    assert "Dotted: the unedited model" in (tmp_path / "curves.caption.md").read_text()


def test_data_sets_are_called_as_the_scale_calls_them(runs, tmp_path):
    spec = _spec("editing_table", methods=METHODS, options={"published": PUBLISHED})
    titled = {**spec, "dataset_titles": {"zsre": "Records of mine"}}
    for name, told in (("named", titled), ("plain", spec)):
        figures.draw(name, told, runs["main"], tmp_path)
    named, plain = ((tmp_path / f"{name}.md").read_text() for name in ("named", "plain"))
    caption = (tmp_path / "named.caption.md").read_text()
    assert "mini-gpt2, Records of mine" in named and "mini-gpt2, counterfact" in named
    assert "counterfact and Records of mine" in caption or "Records of mine and counterfact" in caption
    assert "Records of mine" not in plain and "| 0.9723 |" in plain  # the printed rows go by the name


def test_captions_say_what_had_fewer_seeds(runs, tmp_path):
    fewer = [path for path in runs["main"] if "memit" not in str(path) or path.name == "seed=0"]
    for name, shown in (("all", runs["main"]), ("fewer", fewer)):
        figures.draw(name, _spec("editing_table", methods=METHODS), shown, tmp_path)
    words = (tmp_path / "all.caption.md").read_text(), (tmp_path / "fewer.caption.md").read_text()
    assert "3 seeds (0, 1, 2)." in words[0] and "fewer" not in words[0]
    assert "3 seeds (0, 1, 2); fewer (at least 1) for MEMIT." in words[1], words[1]


def test_latex_gets_every_character_as_printed():
    written = tables._tex("<0.001, >0.99, 5% of {a_b} ^ $2")
    assert written == r"$<$0.001, $>$0.99, 5\% of \{a\_b\} \^{} \$2"


def test_curves_draw_only_measured_points(runs, tmp_path):
    spec = _spec(
        "curves", methods=METHODS, datasets=["zsre"], options={"published": {**PUBLISHED, "at": 1000}}
    )
    figures.draw("fig", spec, runs["main"], tmp_path)
    points = pd.read_csv(tmp_path / "fig.csv")
    assert set(points["source"]) == {"measured"} and set(points["n_edits"]) == {20, 40}
    assert set(points["line"]) == {"MEMIT", "COMEBA-HK"}
    assert "only at 1,000 edits" in (tmp_path / "fig.caption.md").read_text()
    spec["options"]["published"]["at"] = 40
    figures.draw("reached", spec, runs["main"], tmp_path)
    printed = pd.read_csv(tmp_path / "reached.csv").query("source != 'measured'")
    assert len(printed) == 6 and set(printed["source"]) == {"printed, Table 2"}


@pytest.mark.parametrize(
    ("series", "titles"),
    [
        ("alpha", {"$α_0$ = 1", "$α_0$ = 3", "α = 3 fixed"}),
        ("lambda", {"λ = 1 $d_k$", "λ = 3 $d_k$"}),
    ],
)
def test_sweeps_are_read_from_the_settings(runs, tmp_path, series, titles):
    spec = _spec("curves", methods=[{"editor": "comeba_hk", "variant": "*"}], options={"series": series})
    figures.draw("fig", spec, runs["sweep"], tmp_path)
    assert set(pd.read_csv(tmp_path / "fig.csv")["line"]) == titles
    assert ("fixed: it stays at α₀." in (tmp_path / "fig.caption.md").read_text()) is (series == "alpha")


@pytest.mark.parametrize(
    ("lam", "rival", "pairs"), [(0.375, 0.5, ["ratio"]), (2.3, 3.1, ["ratio"]), (1.0, 3.0, [])]
)
def test_pairs_of_lambda_are_named_by_their_ratio(lam, rival, pairs):
    ours, memit = read.Method("comeba_hk", "default", "ours"), read.Method("memit", "default", "MEMIT")
    beside = [(lam, ours), (rival, memit)]
    assert lambdas._pairs(lam, ours, beside) == lambdas._pairs(rival, memit, beside) == pairs
    both = [*beside, (rival, read.Method("comeba_hk", "other", "ours"))]
    assert lambdas._pairs(rival, memit, both) == ["equal", *pairs]


def test_same_input_gives_the_same_bytes(runs, tmp_path):
    spec = _spec("curves", methods=METHODS, datasets=["zsre"])
    for folder in ("one", "two"):
        figures.draw("fig", spec, runs["main"], tmp_path / folder)
    for suffix in figures.outputs(spec):
        assert (tmp_path / "one" / f"fig{suffix}").read_bytes() == (
            tmp_path / "two" / f"fig{suffix}"
        ).read_bytes()


@pytest.mark.parametrize("drawer", ["zscores", "unedited_subjects", "reachable_alpha"])
def test_inspection_figures(runs, tmp_path, drawer):
    figures.draw("fig", _spec(drawer), runs["main"], tmp_path)
    points = pd.read_csv(tmp_path / "fig.csv")
    if drawer == "zscores":
        assert (
            set(points["split"]) == {"edit", "rephrase"}
            and (points["z_subject"] <= points["ceiling"] + 1e-9).all()
        )
    if drawer == "unedited_subjects":
        assert list(points["split"]) == ["edit", "rephrase", "locality", "unedited"]
    if drawer == "reachable_alpha":
        lines = points.query("dataset == 'zsre' and split == 'edit'").set_index(["answer_tokens", "alpha"])
        shares = lines["share"]
        rows = pd.concat(
            read.load_runs([path])[0].inspection for path in runs["main"] if "hk-zsre" in str(path)
        )
        rows = rows[rows["split"] == "edit"].drop_duplicates(["edit", "tokens"])
        # spec 2.2: 2.2 is out of reach with 6 tokens or fewer; an answer's token is one of them
        assert shares[0, 2.2] == pytest.approx((rows["tokens"] <= 6).mean(), abs=1e-5)
        assert shares[1, 2.2] == pytest.approx((rows["tokens"] + 1 <= 6).mean(), abs=1e-5)


def test_the_other_drawers(runs, tmp_path):
    figures.draw("gap", _spec("metric_gap", datasets=["zsre"]), runs["main"], tmp_path)
    gap = pd.read_csv(tmp_path / "gap.csv").query(
        "method == 'COMEBA-HK' and split == 'edit' and dataset == 'zsre'"
    )
    means = gap.set_index("metric")["mean"]
    assert means["reliability"] > means["exact_match"] > means["generation_match"]
    figures.draw("batch", _spec("batch_sizes", datasets=["zsre"]), runs["main"], tmp_path)
    assert set(pd.read_csv(tmp_path / "batch.csv")["batch_size"]) == {10}
    figures.draw("lambda", _spec("lambda_comparison", datasets=["zsre"]), runs["main"], tmp_path)
    assert set(pd.read_csv(tmp_path / "lambda.csv")["lambda"]) == {0.5}
    assert "COMEBA-HK" in (tmp_path / "lambda.md").read_text()
    rows = pd.read_csv(tmp_path / "lambda.csv")
    assert set(rows["pair"]) == {"equal"}
    arranged = lambdas._arranged(rows[rows["metric"] == "reliability"])
    assert arranged[0] == "the same λ" and [row["method"] for row in arranged[1:]] == ["COMEBA-HK", "MEMIT"]
    assert "equal: one λ for both." in (tmp_path / "lambda.caption.md").read_text()


def test_model_figures_and_the_stamp(tmp_path):
    gate = tmp_path / "models" / "mini-gpt2" / "gate-zsre.json"
    gate.parent.mkdir(parents=True)
    content = {
        "recall": 0.9,
        "recall_rephrased": 0.7,
        "ceiling": {"0": 0.9, "1": 0.2},
        "state_swap": {"0": 0.4},
        "verdict": "fail",
        "reasons": ["the ceiling is too low"],
        "n": 50,
        "probed": 40,
        "majority_baseline": 0.1,
        "thresholds": {"recall": 0.9, "ceiling": 0.7, "state_swap": 0.2},
    }
    gate.write_text(json.dumps(content))
    (gate.parent / "training.csv").write_text(
        "step,loss,learning_rate,tokens,seconds\n1,5,0.001,100,1\n2,4,0.001,200,2\n"
    )
    figures.draw("path", _spec("critical_path", gates=[str(gate)]), [], tmp_path)
    figures.draw("loss", _spec("training_curves", training=[str(gate.parent / "training.csv")]), [], tmp_path)
    points = pd.read_csv(tmp_path / "path.csv")
    ceiling = points.query("measure == 'ceiling'")
    assert ceiling["value"].tolist() == [0.9, 0.2] and set(ceiling["n"]) == {40}
    # Wilson's interval of 36 in 40, as printed in tables of binomial limits
    assert ceiling[["low", "high"]].iloc[0].tolist() == pytest.approx([0.7695, 0.9604], abs=1e-4)
    caption = (tmp_path / "path.caption.md").read_text()
    assert "40 for the ceiling" in caption and "the ceiling is too low" in caption
    assert "ceiling 0.7, recall 0.9, state swap 0.2." in caption
    from palimpsest.figures.captions import stamp_text

    assert stamp_text(_spec("critical_path", gates=[str(gate)])) == "model fails its gate"
    assert stamp_text(_spec("critical_path", gates=[str(gate)], options={"stamp": ""})) == ""


def test_gallery_shows_every_figure_and_forgets_old_ones(tmp_path):
    source, target = tmp_path / "figures", tmp_path / "gallery"
    with pytest.raises(DataError, match="Run the workflow"):
        gallery.collect(source, target)
    source.mkdir()
    for name in (
        "fig_a.caption.md",
        "fig_a.png",
        "table_b.caption.md",
        "table_b.png",
        "table_b.md",
        "claims.md",
    ):
        (source / name).write_text(f"content of {name}")
    gallery.collect(source, target)
    index = (target / "README.md").read_text()
    assert (
        "![fig_a](fig_a.png)" in index and "content of table_b.caption.md" in index and "claims.md" in index
    )
    for seed, (scale, commit, dirty) in enumerate(
        [("mini", "a" * 40, False), ("mini", "b" * 40, True), ("smoke", "c" * 40, False)]
    ):
        run = {
            "spec": {"scale": scale},
            "started": f"2026-01-0{seed + 1}T10:00:00",
            "git": {"commit": commit, "dirty": dirty},
        }
        write_json(tmp_path / "results" / "runs" / "r" / f"seed={seed}" / "run.json", run)
    gallery.collect(source, target, results=tmp_path / "results")
    said = "2 runs from 2026-01-01 to 2026-01-02, at commits aaaaaaaa, bbbbbbbb (changed)."
    assert said in (target / "README.md").read_text()
    gallery.collect(source, tmp_path / "one", only=["table_b"])
    assert not (tmp_path / "one" / "fig_a.png").exists() and (tmp_path / "one" / "table_b.png").exists()
    with pytest.raises(DataError, match="There are: fig_a, table_b"):
        gallery.collect(source, tmp_path / "one", only=["fig_c"])
    (source / "fig_a.caption.md").unlink()
    gallery.collect(source, target)
    assert not (target / "fig_a.png").exists() and (target / "table_b.png").exists()


def test_bad_input_is_named(runs, tmp_path):
    with pytest.raises(SettingsError, match="editing_table"):
        figures.draw("fig", _spec("nothing"), [], tmp_path)
    with pytest.raises(DataError, match="no run fits"):
        figures.draw("fig", _spec("curves", models=["other"]), runs["main"], tmp_path)
    broken = tmp_path / "broken" / "seed=0"
    broken.mkdir(parents=True)
    (broken / "run.json").write_text(json.dumps({"seed": 0, "status": "complete"}))
    with pytest.raises(DataError, match="'spec'"):
        figures.draw("fig", _spec("curves"), [broken], tmp_path)
    with pytest.raises(DataError, match="inspect"):
        figures.draw("fig", _spec("zscores", methods=[{"editor": "memit"}]), runs["main"], tmp_path)
    assert not list(tmp_path.glob("fig.*"))


def test_labels_are_spread_and_stay_inside():
    placed = style.spread_apart([0.9, 0.91, 0.92, 0.1], 0.1, 0.0, 1.0)
    ordered = sorted(placed)
    assert min(b - a for a, b in pairwise(ordered)) > 0.0999 and 0 <= ordered[0] <= ordered[-1] <= 1
    assert placed.index(max(placed)) == 2


def test_listing_drawers_loads_nothing_heavy():
    code = (
        "import sys, palimpsest.figures, palimpsest.claims, palimpsest.published as p; p.claims(); "
        "assert not {'pandas', 'matplotlib', 'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    code = "import sys, palimpsest.figures.curves, palimpsest.claims.means; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_control_model_has_no_empty_rows(runs, tmp_path):
    control = fabricate(
        tmp_path, "control", editor="comeba_hk", model="mini-gpt2-b", dataset="zsre", seeds=(0,)
    )
    spec = _spec(
        "editing_table",
        methods=METHODS,
        datasets=["zsre"],
        models=["mini-gpt2", "mini-gpt2-b"],
        options={"published": PUBLISHED},
    )
    figures.draw("table", spec, runs["main"] + control, tmp_path)
    table = pd.read_csv(tmp_path / "table.csv")
    assert set(table.query("model == 'mini-gpt2'")["method"]) == {"MEND", "MEMIT", "COMEBA-HK"}
    assert set(table.query("model == 'mini-gpt2-b'")["method"]) == {"COMEBA-HK"}
