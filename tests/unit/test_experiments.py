"""From a scale's file to resolved runs."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest

from palimpsest import experiments
from palimpsest.config import Config, ConfigError, complete_settings, fill_defaults, merge_settings, read_yaml
from palimpsest.experiments import checks, figure_specs, resolve
from palimpsest.experiments.checks import preset_problem
from palimpsest.experiments.places import fisher_spec
from palimpsest.experiments.preflight import foreign_runs, lacking
from palimpsest.results import RUN_NAME

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def mini() -> experiments.Plan:
    return experiments.plan(ROOT / "config" / "mini.yaml", ROOT)


def changed(**changes) -> dict:
    content = read_yaml(ROOT / "config" / "smoke.yaml")
    return {**copy.deepcopy(content), **changes}


def test_sizes_of_the_decided_scale(mini: experiments.Plan):
    """Decided beforehand: edits, batches, snapshots and seeds of each table and figure."""
    for name, edits, batch, seeds in [
        ("comeba_table1", 200, 100, [0, 1, 2]), ("comeba_table2", 200, 10, [0, 1, 2]), ("comeba_fig3", 100, 10, [0]),
        ("comeba_fig4", 200, 10, [0, 1, 2]), ("comeba_fig6", 200, 10, [0, 1]), ("comeba_fig7", 600, 10, [0]),
    ]:  # fmt: skip
        figure = mini.figures[name]
        assert figure.runs
        for run, used in figure.runs.items():
            spec = mini.runs[run].spec
            beyond = ("rome", "serac", "retrieval") if name == "comeba_table2" else ("rome",)
            further = spec["editor"] in beyond or spec["model"] == "mini-gpt2-b"  # not in the paper: one seed
            further |= name == "comeba_table1" and "ft-target_new" in run
            assert (spec["edits"], spec["batch_size"], used) == (edits, batch, [0] if further else seeds), run
    assert {mini.runs[run].spec["batch_size"] for run in mini.figures["comeba_fig11"].runs} == {10, 100, 600}


def test_a_run_has_the_turn_of_the_first_paper_that_shows_it(mini: experiments.Plan):
    """COMEBA-HK, GRACE, MEND, SERAC, as in the scale's file; nothing that an earlier one shows waits for a later one."""
    order = {"comeba": 0, "grace": 1, "mend": 2, "serac": 3}
    assert set(mini.turns) == set(mini.runs)
    for name in mini.runs:
        showing = [figure for figure in mini.figures if name in mini.figures[figure].runs]
        assert mini.turns[name] == min(order[mini.config.experiments[figure]["group"]] for figure in showing)
    shared = set(mini.figures["crossover_table"].runs) & set(mini.figures["comeba_table2"].runs)
    assert shared
    assert {mini.turns[name] for name in shared} == {0}
    assert set(mini.turns.values()) == {0, 1, 2, 3}


def test_sizes_of_the_lifelong_streams(mini: experiments.Plan):
    """Decided beforehand: 300 items and 3 seeds per editor and task, one stream of 1,000."""
    main = mini.figures["grace_main_table"]
    tasks = {mini.runs[run].spec["dataset"] for run in main.runs}
    assert tasks == {"lifelong_qa", "lifelong_labels", "lifelong_lives"}
    for run, used in main.runs.items():
        spec = mini.runs[run].spec
        further = (
            spec["editor"] in ("rome", "serac", "retrieval") or spec["variant"] == "upstream"
        )  # one seed
        assert (spec["edits"], spec["batch_size"], spec["snapshot_every"]) == (300, 1, 50), run
        assert used == ([0] if further else [0, 1, 2]), run
    for name in ("grace_stream", "grace_time"):
        assert mini.figures[name].runs == main.runs
    long = {mini.runs[run].spec["editor"]: mini.runs[run].spec for run in mini.figures["grace_long"].runs}
    assert set(long) == {"ft", "defer", "grace"}
    assert {spec["edits"] for spec in long.values()} == {2100}  # items; edits are counted
    assert all(spec["options"]["until_edits"] == 1000 and "-u1000-" in spec["run"] for spec in long.values())
    assert not any("until_edits" in mini.runs[run].spec["options"] for run in main.runs)
    for model, layer in (("mini-t5", 2), ("mini-bert", 1), ("mini-gpt2-bio", 5)):
        specs = [mini.runs[run].spec for run in main.runs if mini.runs[run].spec["model"] == model]
        layers = {s["settings"]["layer"] for s in specs if "layer" in s["settings"]}
        assert layers == {layer}, model
        assert layer < mini.scale["models"][model]["shape"]["blocks"]


def test_fisher_information_is_asked_for_once_per_model_and_stream():
    """All runs of a model on a stream share one file: their layers together, one matrix of each block."""

    def spec(layer: int, **settings) -> dict:
        about = {"editor": "ft_ewc", "variant": "upstream", "model": "m", "dataset": "lifelong_qa"}
        return {**about, "settings": {"fisher": "upstream", "layer": layer, "site": "mlp_out", **settings}}

    runs = [spec(2), spec(1), spec(3, fisher="edits"), {**spec(0), "model": "other"}]
    assert fisher_spec(runs, "m", "lifelong_qa") == {"kind": "fisher", "layers": [1, 2], "site": "mlp_out"}
    with pytest.raises(ConfigError, match="mlp_in and mlp_out; give one site"):
        fisher_spec([*runs, spec(1, site="mlp_in")], "m", "lifelong_qa")


def test_fisher_information_needs_a_stream():
    """A data set of single facts says nothing about what is to be kept."""
    sizes = {"models": ["smoke-gpt2"], "datasets": ["zsre"], "edits": 4, "seeds": [0]}
    sizes |= {"methods": ["ft_ewc:upstream"]}
    with pytest.raises(ConfigError, match="ft_ewc:upstream on zsre: .*Name a data set with a `task`"):
        experiments.plan(changed(experiments={"crossover_curves": sizes}), ROOT)


def test_streams_of_different_lengths():
    """Each model may have its own number of edits; one without a number is named."""
    sizes = {
        "pairs": {"smoke-t5": "lifelong_qa", "smoke-bert": "lifelong_labels"},
        "seeds": [0],
        "methods": ["grace"],
    }
    plan = experiments.plan(
        changed(experiments={"grace_stream": {**sizes, "edits": {"smoke-t5": 3, "smoke-bert": 5}}}), ROOT
    )
    assert {run.spec["model"]: run.spec["edits"] for run in plan.runs.values()} == {
        "smoke-t5": 3,
        "smoke-bert": 5,
    }
    with pytest.raises(ConfigError, match="no number for the model 'smoke-bert'"):
        experiments.plan(changed(experiments={"grace_stream": {**sizes, "edits": {"smoke-t5": 3}}}), ROOT)


def test_experiments_share_runs(mini: experiments.Plan):
    shared = set(mini.figures["comeba_table2"].runs) & set(mini.figures["comeba_fig4"].runs)
    assert {mini.runs[name].spec["editor"] for name in shared} == {"memit", "comeba_hk"}
    # the middle of each sweep is the plain run
    assert set(mini.figures["comeba_fig6"].runs) & shared
    assert set(mini.figures["comeba_fig10"].runs) & shared
    assert set(mini.figures["comeba_fig5"].runs) & shared


def test_names_are_a_function_of_content(mini: experiments.Plan):
    contents = [{key: value for key, value in run.spec.items() if key != "run"} for run in mini.runs.values()]
    assert all(RUN_NAME.fullmatch(name) for name in mini.runs)
    assert all(one != other for i, one in enumerate(contents) for other in contents[:i])


def test_settings_come_from_model_and_protocol():
    paper = experiments.plan(ROOT / "config" / "paper.yaml", ROOT)
    by = {
        (r.spec["protocol"], r.spec["model"], r.spec["editor"], r.spec["variant"]): r.spec
        for r in paper.runs.values()
        if not r.spec["run"].count("lam")
    }
    assert by["consecutive", "gpt2-xl", "memit", "default"]["settings"]["lam"] == 20000
    assert by["consecutive", "gpt2-xl", "comeba_hk", "default"]["settings"]["lam"] == 15000
    assert by["single_round", "gpt2-xl", "comeba_hk", "default"]["settings"]["lam"] == 5000
    assert by["consecutive", "gpt-j-6b", "memit", "default"]["settings"]["layers"] == [3, 4, 5, 6, 7, 8]
    assert by["consecutive", "gpt-j-6b", "memit", "default"]["options"]["dtype"] == "float16"
    assert by["consecutive", "gpt2-xl", "comeba_hk", "no_hooks"]["settings"]["hooks"] is False


@pytest.mark.parametrize("scale", ["paper", "small"])
def test_runs_of_comparisons_of_lambda_differ(scale: str):
    """No run stands there twice under two names; in a single round each method has the other's lambda (quirk 30)."""
    plan = experiments.plan(ROOT / "config" / f"{scale}.yaml", ROOT)
    inner = {"gpt2-xl": 6400, "gpt-j-6b": 16384, "gpt2": 3072}  # d_k
    for figure in ("comeba_lambda", "comeba_lambda_single"):
        places: dict[tuple[str, str], dict[str, list[int]]] = {}
        for spec in (plan.runs[name].spec for name in plan.figures[figure].runs):
            lam, ratio = (spec["settings"][key] for key in ("lam", "lam_ratio"))
            place = places.setdefault((spec["model"], spec["dataset"]), {"memit": [], "comeba_hk": []})
            place[spec["editor"]].append(round(ratio * inner[spec["model"]]) if lam is None else lam)
        for own in (own for place in places.values() for own in place.values()):
            assert own and len(set(own)) == len(own), figure
    assert all(sorted(place["memit"]) == sorted(place["comeba_hk"]) for place in places.values())
    if scale == "paper":
        assert set(places["gpt2-xl", "zsre"]["memit"]) == {5000, 20000}


def test_specs_state_every_setting(mini: experiments.Plan):
    for run in mini.runs.values():
        assert set(run.spec["settings"]) == set(mini.config.settings_schema[run.spec["editor"]]["properties"])


def test_sweeps():
    settings = {"layers": [0, 1, 2], "lam": 3.0, "lam_ratio": None, "alpha_z": 2.2, "fixed_alpha": False}
    assert resolve._sweep("last_layers", 1, settings) == ({"layers": [2]}, "last1")
    assert resolve._sweep("last_layers", 5, settings) == ({}, "")
    assert resolve._sweep("alpha_z", 2.2, settings) == ({}, "")
    assert resolve._sweep("lam", {"lam_ratio": 0.5}, settings) == ({"lam_ratio": 0.5}, "lam_ratio-0.5")
    both = {"alpha_z": 3.0, "fixed_alpha": True}
    assert resolve._sweep("alpha_z", both, settings) == (both, "alpha_z-3.0-fixed_alpha-True")


def test_exclusive_settings_replace_each_other():
    assert merge_settings({"lam": 1, "clamp": 2}, {"lam_ratio": 3}) == {"clamp": 2, "lam_ratio": 3}
    assert merge_settings({"lam_ratio": 3}, {"lam": 1}, {"lam": 2}) == {"lam": 2}


def test_editors_that_do_not_exist_are_rows_without_runs(mini: experiments.Plan):
    methods = {method["editor"]: method for method in mini.figures["mend_table"].spec["methods"]}
    assert methods["enn"]["not_run"]
    assert methods["ke"]["not_run"]
    assert not any(run.spec["editor"] in ("enn", "ke") for run in mini.runs.values())


def test_all_problems_at_once():
    broken = changed()
    broken["datasets"]["zsre"]["source"] = "smoke-wrold"
    broken["models"]["smoke-gpt2"]["source"] = "nowhere"
    broken["experiments"]["comeba_fig3"]["models"] = ["smoke-gpt3"]
    broken["experiments"]["comeba_fig44"] = {"models": ["smoke-gpt2"]}
    with pytest.raises(ConfigError) as caught:
        experiments.plan(broken, ROOT)
    text = str(caught.value)
    assert text.startswith("4 problems")
    for words in (
        "datasets.zsre.source",
        "did you mean 'smoke-world'",
        "models.smoke-gpt2.source",
        "smoke-gpt3",
        "comeba_fig44",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["datasets"].pop("counterfact"), "experiments.comeba_fig3.datasets: 'counterfact'"),
        (
            lambda c: c["experiments"]["comeba_table1"].update(
                also=[{"models": ["smoke-gtp2"], "methods": ["ft"], "datasets": ["zsre"]}]
            ),
            "experiments.comeba_table1.also.models: 'smoke-gtp2' is not one of them (did you mean 'smoke-gpt2'?)",
        ),
        (lambda c: c["experiments"]["comeba_fig3"].update(values=[1, 2]), "experiments.comeba_fig3.values"),
        (lambda c: c["claims"]["models"].update(weaker="nope"), "claims.models.weaker: 'nope'"),
        (lambda c: c["claims"].update(level=95), "claims.level"),
        (
            lambda c: c["models"].update({"smoke-gpt2": {"kind": "path", "path": "/m", "preset": "smoke-gpt2"}}),
            "models.smoke-gpt2: a model of kind 'path' needs the key 'family'",
        ),
        (
            lambda c: c["models"].update(
                {"smoke-gpt2": {"kind": "path", "path": "/m", "family": "gpt2", "preset": "smoke-gpt2"}}
            ),
            "models.smoke-gpt2: comeba_hk needs statistics of its keys",
        ),
    ],
)  # fmt: skip
def test_what_would_fail_later_is_said_at_once(change, words: str):
    content = changed()
    change(content)
    with pytest.raises(ConfigError) as caught:
        experiments.plan(content, ROOT)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("device", "gpu", "device"),
        ("scale", "Smoke!", "scale"),
        ("colour", 1, "unknown key 'colour'"),
        ("experiments", {}, "experiments"),
        ("editors", ["ft", "ft"], "editors"),
    ],
)
def test_wrong_values_name_their_key(key: str, value: object, words: str):
    with pytest.raises(ConfigError, match=words.replace("'", "."), check=lambda error: bool(error.problems)):
        experiments.plan(changed(**{key: value}), ROOT)


def test_missing_key_is_named():
    content = changed()
    del content["gate"]
    with pytest.raises(ConfigError, match="'gate' is missing"):
        experiments.plan(content, ROOT)


def test_a_group_with_seeds_of_its_own_adds_them(mini: experiments.Plan):
    content = changed()
    table = content["experiments"]["comeba_table2"]
    table["also"] = [{"models": ["smoke-gpt2"], "methods": ["memit"], "seeds": [7]}]
    plan = experiments.plan(content, ROOT)
    seeds = [
        used
        for run, used in plan.figures["comeba_table2"].runs.items()
        if "smoke-gpt2" in run and "-memit-" in run
    ]
    assert seeds and all(used == [0, 7] for used in seeds)


def test_two_runs_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(resolve, "_run_name", lambda spec, suffix: "same")
    with pytest.raises(ConfigError, match="two different runs are called 'same'"):
        experiments.plan(ROOT / "config" / "smoke.yaml", ROOT)


def test_a_new_line_of_methods_is_in_the_tables_of_every_scale(tmp_path: Path):
    """A scale says which methods it leaves out, not which it has: else a new editor would be in no table."""
    for folder in ("config", "workflow/schemas"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for paper, lists in (("comeba_hk", ("single_round", "consecutive")), ("grace", ("main",))):
        path = tmp_path / "config" / "experiments" / f"{paper}.yaml"
        text = path.read_text()
        for name in lists:
            text = text.replace(
                f"  {name}: &{name}\n", f"  {name}: &{name}\n    - {{method: lu, title: New}}\n"
            )
        path.write_text(text)
    for scale in ("smoke", "mini", "rehearsal"):
        found = experiments.plan(tmp_path / "config" / f"{scale}.yaml", tmp_path)
        for table in ("comeba_table1", "comeba_table2", "grace_main_table"):
            figure = found.figures[table]
            assert "New" in {method["title"] for method in figure.spec["methods"]}
            assert any("-lu-" in run for run in figure.runs), (scale, table)


def with_editor(folder: Path, settings: str) -> Path:
    """The repository's configuration with a copy of MEMIT under another name, in the table of consecutive runs."""
    for name in ("config", "workflow/schemas"):
        shutil.copytree(ROOT / name, folder / name)
    text = f"editor: mine\ntitle: Mine\n{settings}"
    (folder / "config" / "editors" / "mine.yaml").write_text(text)
    path = folder / "config" / "experiments" / "comeba_hk.yaml"
    path.write_text(
        path.read_text().replace("  consecutive: &consecutive\n", "  consecutive: &consecutive\n    - mine\n")
    )
    return folder


@pytest.mark.parametrize(
    ("properties", "settings", "words"),
    [
        (
            {"layers": {"default": [13, 14]}},
            "",
            r"mine\.yaml: layers \[13, 14\] for '[a-z0-9-]+', which has blocks 0 to",
        ),
        ({"layers": {"default": None}}, "", r"needs statistics, but has neither `layers` nor `layer`"),
        ({"layer": {"default": 1}}, "", None),
        ({"layers": {"default": [13]}}, "settings: {layers: [0, 1]}\n", None),
        (
            None,
            "",
            r"'mine' is not in workflow/schemas/editors\.schema\.json\. Run palimpsest schema --write",
        ),
    ],
)
def test_a_new_editor_that_would_stop_the_others_is_refused(
    tmp_path, monkeypatch, properties, settings, words
):
    """Layers that no model has reach the statistics of all; forgotten settings and schemas are named."""
    root = with_editor(tmp_path, settings)
    if properties is not None:
        path = root / "workflow" / "schemas" / "editors.schema.json"
        schema = json.loads(path.read_text())
        form = {"type": "object", "properties": properties, "additionalProperties": False}
        named = {"mine": {**form, "traits": {"needs_statistics": True, "needs_decoder": True}}}
        schema["editors"] |= named
        path.write_text(json.dumps(schema))
    else:
        (tmp_path / "editors").mkdir()
        (tmp_path / "editors" / "mine.py").write_text("")
        monkeypatch.setattr(checks, "__file__", str(tmp_path / "experiments" / "checks.py"))
    if words is None:
        layers = experiments.plan(root / "config" / "smoke.yaml", root).statistics_layers("smoke-gpt2")
        assert layers and max(layers) < 4
        return
    with pytest.raises(ConfigError, match=words):
        experiments.plan(root / "config" / "smoke.yaml", root)


def test_a_preset_that_an_editor_does_not_know_is_refused():
    """It would edit with the settings of another model, without a word."""
    content = changed()
    content["models"]["smoke-gpt2"]["preset"] = "mini-gpt"
    words = r"preset = 'mini-gpt': config/editors/memit.yaml has no settings for it \(did you mean 'mini-gpt.*Correct it"
    with pytest.raises(ConfigError, match=words):
        experiments.plan(content, ROOT)
    assert (
        preset_problem(
            Config({"models": {"m": {}}, "settings": {}}, {"e": {"variants": {"v": {}}}}), "e", "v", "m"
        )
        is None
    )


@pytest.mark.parametrize("place", ["model", "scale", "variant"])
def test_settings_that_are_stated_serve_instead_of_a_preset(place):
    stated = {"steps": 3}
    model = {"preset": "new", "settings": {"e": stated} if place == "model" else {}}
    scale = {"models": {"m": model}, "settings": {"e:v": stated} if place == "scale" else {}}
    variant = {"models": {"new": stated}} if place == "variant" else {}
    config = Config(scale, {"e": {"models": {"old": {}}, "variants": {"v": variant, "w": {}}}})
    assert preset_problem(config, "e", "v", "m") is None
    assert (preset_problem(config, "e", "w", "m") is None) == (place == "model")


def test_finished_runs_of_another_scale_are_seen(tmp_path):
    """And nothing else: those of this one, broken ones, folders without a run."""
    texts = {
        "theirs": '{"spec": {"scale": "other"}}',
        "own": '{"spec": {"scale": "mine"}}',
        "broken": '{"spec"',
        "list": "[]",
    }
    for folder, text in texts.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "run.json").write_text(text)
    found = foreign_runs("mine", [tmp_path / name for name in ("theirs", "own", "broken", "list", "none")])
    assert len(found) == 1 and found[0].startswith(f"1 of scale other, such as {tmp_path / 'theirs'}.")


def test_what_is_not_on_this_machine_is_listed(monkeypatch, tmp_path):
    monkeypatch.setenv("PALIMPSEST_DATA", str(tmp_path))
    (tmp_path / "here.json").write_text("[]")
    scale = {
        "sources": {
            "w": {"kind": "world"},
            "r": {"kind": "real", "real": {"file": "r.json", "text": {"files": ["a.txt"]}}},
        },
        "datasets": {
            "d": {"file": "here.json"},
            "e": {"source": "r", "file": "not asked"},
            "f": {"file": "f.json"},
        },
        "models": {
            "m": {"kind": "path", "path": str(tmp_path / "m")},
            "n": {"kind": "path", "path": str(tmp_path)},
        },
    }
    said = lacking(scale, ["m", "n"])
    assert said.endswith(
        f": r.json, a.txt, f.json\n  models.m.path: there is no directory {tmp_path / 'm'}. Correct the path"
    )
    assert lacking({"sources": {}, "datasets": {}, "models": {}}, []) == ""


def test_an_editor_of_decoders_on_another_model_is_told_to_name_its_tasks():
    """Were it planned, the statistics of T5 would be wanted, and the run would fail long after."""
    content = changed()
    rows = content["experiments"]["grace_main_table"]["also"]
    (row,) = [row for row in rows if row["methods"] == ["rome"]]
    row["models"] = ["smoke-t5", *row["models"]]
    words = r"rome edits decoder-only models, and 'smoke-t5' .* Write {method: rome, tasks: \[generation\]}"
    with pytest.raises(ConfigError, match=words):
        experiments.plan(content, ROOT)


@pytest.mark.parametrize("pair", ["lam", "of_a_new_editor"])
def test_a_number_and_its_ratio_take_each_other_s_place(pair):
    """Any `x` and `x_ratio`: the one that is set last."""
    ratio = f"{pair}_ratio"
    assert merge_settings({ratio: 0.5, "steps": 3}, {pair: 2.0}) == {pair: 2.0, "steps": 3}
    assert merge_settings({pair: 2.0}, {ratio: 0.5}) == {ratio: 0.5}
    assert merge_settings({pair: 2.0}, {ratio: None}) == {pair: 2.0, ratio: None}
    null = {"anyOf": [{"type": "number"}, {"type": "null"}], "default": 1.0}
    config = Config({}, {}, {}, {"mine": {"properties": {pair: null, ratio: null}}})
    assert complete_settings(config, "mine", {ratio: 0.5}) == {pair: None, ratio: 0.5}
    assert complete_settings(config, "mine", {}) == {pair: 1.0, ratio: 1.0}


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        (
            {"without": ["rom"]},
            "experiments.comeba_table1.without: there is no method 'rom'.*did you mean 'rome'",
        ),
        ({"without": ["ft:other"]}, "there is no method 'ft:other'"),
        ({"without": ["ft"], "methods": ["memit"]}, "give `methods` or `without`, not both"),
    ],
)
def test_what_a_scale_leaves_out_must_exist(stated: dict[str, object], words: str):
    content = changed()
    content["experiments"]["comeba_table1"] |= stated
    with pytest.raises(ConfigError, match=words):
        experiments.plan(content, ROOT)


def test_repeated_keys_are_refused(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("one: 1\ntwo: 2\none: 3\n")
    with pytest.raises(ConfigError, match="'one' is given twice"):
        read_yaml(tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path / "missing.yaml")


def test_anchors_and_merges_work(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n")
    assert read_yaml(tmp_path / "a.yaml")["b"] == {"x": 1, "y": 3}


def test_defaults_of_the_schema_are_filled_in():
    content = {"a": {"b": {}}}
    schema = {
        "properties": {
            "a": {"additionalProperties": {"properties": {"c": {"default": [1]}}}},
            "d": {"default": 2},
        }
    }
    fill_defaults(content, schema)
    assert content == {"a": {"b": {"c": [1]}}, "d": 2}


def test_a_method_that_only_further_runs_name_is_drawn_once():
    entry = {"methods": ["ft", {"method": "memit", "title": "MEMIT"}, "rome"]}
    sizes = {"methods": ["memit"], "also": [{"methods": ["grace:half", "ft"]}, {"methods": ["grace:half"]}]}
    assert figure_specs.methods_drawn(entry, sizes) == [
        "ft",
        {"method": "memit", "title": "MEMIT"},
        "grace:half",
    ]
