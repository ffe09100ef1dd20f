"""Specs from anywhere, and what is read beside them: the house's own errors come out, and no traceback."""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fuzz import QUICK, WORLD, broken, junk, refusing
from tiny import saved_world

from palimpsest import cli
from palimpsest.command_line import commands
from palimpsest.config import ConfigError, load_config, read_yaml, repository_root
from palimpsest.data.lifelong import upstream_text
from palimpsest.data.prepare import build_dataset
from palimpsest.data.readers import reader_of
from palimpsest.data.text import read_passages
from palimpsest.data.world import generate
from palimpsest.errors import DataError, ModelError, PalimpsestError, SettingsError
from palimpsest.figures import draw
from palimpsest.models.gate import settings_of as gate_settings
from palimpsest.models.hub import pinned
from palimpsest.models.loading import load_model, resolve
from palimpsest.models.manifest import describe_model
from palimpsest.models.pretrain import settings_of
from palimpsest.models.pretrain_pairs import pretrain_pairs, training_of
from palimpsest.models.shapes import class_names, shape_of
from palimpsest.models.training import Schedule
from palimpsest.plain import SEEDS, unwritable
from palimpsest.runs.run import _check_spec
from palimpsest.runs.searches import search_targets
from palimpsest.toy import ToySettings, run_toy

COMMIT = "0" * 40
LONG = "x" * 5000

# numbers of the command line ---------------------------------------------------------------------------------------------

SEEDED = (
    ["world", "--settings", "{}", "--out", "x"],
    ["train-editor", "--spec", "{}", "--model", "m", "--dataset", "d", "--out", "x"],
    ["targets", "--spec", "{}", "--model", "m", "--dataset", "d", "--out", "x"],
    ["run", "--spec", "{}", "--model", "m", "--dataset", "d", "--out", "x"],
    ["edit", "--model", "m", "--editor", "ft", "--prompt", "a", "--target", "b"],
)


@pytest.mark.parametrize("words", SEEDED, ids=lambda words: words[0])
@settings(parent=QUICK, max_examples=25)
@given(
    number=st.one_of(
        st.integers(-(10**25), 10**25), st.sampled_from(["", "a", "1.5", "NaN", "9" * 5000, *SEEDS])
    )
)
def test_seeds_are_what_every_generator_takes(words, number):
    parsed = None
    try:
        parsed = cli._parser().parse_args([*words, f"--seed={number}"]).seed
    except SystemExit as ending:
        assert ending.code == 2
    good = isinstance(number, int) and SEEDS[0] <= number <= SEEDS[1]
    assert parsed == (number if good else None)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seed", "-1"], "'-1' is no whole number from 0 to 4294967295"),
        (["--seed", str(10**20)], "is no whole number from 0 to 4294967295"),
        (["--seed", "0", "--threads", "-1"], "argument --threads: '-1' is no whole number from 1 to 4096"),
        (["--seed", "0", "--threads", "0"], "argument --threads"),
    ],
)
@pytest.mark.parametrize("command", ["run", "targets"])
def test_a_number_that_cannot_be_is_wrong_usage(command, words, said, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--spec", "{}", "--model", "m", "--dataset", "d", "--out", "x", *words])
    assert stop.value.code == 2 and said in capsys.readouterr().err


def test_an_editor_takes_the_same_seeds(gpt2):
    from palimpsest import make_editor

    for seed in (-1, SEEDS[1] + 1, True, 1.0, "a"):
        with pytest.raises(SettingsError, match=r"seed is .*; expected a whole number from 0 to 4294967295"):
            make_editor("ft", gpt2, {"layer": 1}, seed=seed)
    make_editor("ft", gpt2, {"layer": 1}, seed=SEEDS[1]).remove()


# what JSON and YAML let through --------------------------------------------------------------------------------------------


@QUICK
@given(junk)
def test_a_spec_that_is_taken_can_be_written_down(content):
    spec = {"title": content}
    with refusing():
        found = commands.read_spec(json.dumps(spec))
        assert json.loads(json.dumps(found, allow_nan=False, ensure_ascii=False).encode()) == spec
        assert not list(unwritable(found))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"title": NaN}', r"--spec: title is nan\. Give a finite number"),
        ('{"options": {"x": [1, 1e999]}}', r"--spec: options\.x\[1\] is inf\."),
        ('{"title": "\\ud800"}', r"--spec: title = .* holds half a character"),
        ('{"\\ud800": 1}', r"--spec: a key of the whole = .* holds half a character"),
    ],
)
def test_what_would_stop_the_first_checkpoint_is_refused_at_once(text, said):
    with pytest.raises(PalimpsestError, match=said):
        commands.read_spec(text)
    run = {
        "run": "a",
        "protocol": "consecutive",
        "dataset": "d",
        "model": "m",
        "editor": "ft",
        "edits": 2,
        "batch_size": 1,
    }
    with pytest.raises(SettingsError, match=said.removeprefix("--spec: ")):
        _check_spec({**run, **json.loads(text)})


@settings(parent=QUICK, max_examples=15)
@given(
    st.sampled_from([("settings",), ("models",), ("experiments",), ("jobs",), ()]),
    st.one_of(st.booleans(), st.integers(), st.none(), st.dates(), st.floats(allow_nan=False)),
    st.sampled_from([{}, 1, None]),
)
def test_a_key_that_is_no_text_is_named_with_its_place(place, key, value):
    """YAML reads on, yes, 1 and 2026-01-01 without quotes as something else; Snakemake hands over what it has read itself."""
    content = read_yaml(repository_root() / "config" / "smoke.yaml")
    holder = content
    for step in place:
        holder = holder.setdefault(step, {})
        if not isinstance(holder, dict):
            return
    holder[key] = value
    with pytest.raises(ConfigError, match=r"has the key .*, which is no text. Put it into quotes") as found:
        load_config(content)
    assert f"config: {place[0] if place else 'the whole'} has" in str(found.value)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scale.yaml"
        path.write_text(yaml.safe_dump(content))
        with pytest.raises(ConfigError, match=r"scale\.yaml.*the key .* is no text\. Put it into quotes"):
            read_yaml(path)


def test_the_line_of_such_a_key_is_said(tmp_path):
    (tmp_path / "a.yaml").write_text("scale: x\nsettings:\n  on: {}\n")
    with pytest.raises(
        ConfigError, match=r"(?s)a\.yaml is not valid YAML: the key True is no text.*line 3, column 3"
    ):
        read_yaml(tmp_path / "a.yaml")


def test_numbers_that_are_not_finite_are_no_configuration():
    content = read_yaml(repository_root() / "config" / "smoke.yaml")
    content["settings"] = {"ft": {"learning_rate": math.nan}}
    with pytest.raises(ConfigError, match=r"config: settings\.ft\.learning_rate is nan"):
        load_config(content)


# specs of commands ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    generate(WORLD, 0, folder)
    return folder


DATASETS = (
    {"reader": "counterfact", "file": "counterfact.json", "schema": None, "limit": 3, "bad_records": "skip", "deduplicate": True,
     "keep_answer": 0.5, "reserve": 0, "sha256": None},
    {"reader": "zsre", "file": "zsre.json", "hub": None, "targets": None, "implied": None, "true_false": None, "title": "x",
     "learning": {"file": "zsre.json", "limit": 2}},
    {"reader": "passages", "file": "text.txt", "drop_edited_locality": True},
)  # fmt: skip


@pytest.mark.parametrize("spec", DATASETS, ids=lambda spec: spec["reader"])
@QUICK
@given(data=st.data())
def test_specs_of_data_sets(world, spec, data):
    with tempfile.TemporaryDirectory() as folder, refusing():
        build_dataset(broken(spec, data), world, Path(folder) / "out")


def test_an_upstream_that_names_its_hub_as_nothing(world):
    """A scale's file may state null where a key is left out."""
    rows, about = upstream_text({"file": "corpus.txt", "hub": None, "prompt_words": 1}, world)
    assert rows and about["file"] == ["corpus.txt"]


@QUICK
@given(data=st.data())
def test_specs_of_texts(world, data):
    spec = {"files": ["text.txt", "corpus.txt"], "kind": "plain", "limit": 3, "shortest": 5}
    with refusing():
        assert all(isinstance(passage, str) for passage in read_passages(broken(spec, data), world))
    with refusing():
        read_passages(
            {"hub": broken({"id": "a/b", "revision": "main"}, data), "seed": 1, "passage": "article"}
        )


MODELS = (
    {"kind": "path", "path": "model", "family": "gpt2", "dtype": "float32", "name": "x", "fingerprint": False},
    {"kind": "hub", "id": "a/b", "revision": COMMIT, "tokenizer": f"c/d@{COMMIT}", "fingerprint": False},
    {"kind": "random", "family": "gpt2", "width": 8, "blocks": 1, "heads": 2, "context": 16, "vocabulary": 300, "seed": 1,
     "dropout": 0.0, "initial_range": 0.02, "inner": None, "corpus": "corpus.txt"},
    {"kind": "random", "family": "bert", "labels": ["a", "b"], "width": 8, "heads": 2},
    {"kind": "random", "family": "t5", "gated": True, "decoder_blocks": 1, "width": 8, "heads": 2},
)  # fmt: skip


@pytest.mark.parametrize("number", range(len(MODELS)))
@QUICK
@given(data=st.data())
def test_specs_of_models(number, data):
    """Nothing is loaded or built: what is refused is refused before."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (Path(folder) / "model").mkdir()
        (Path(folder) / "corpus.txt").write_text("a b c\n" * 3)
        spec = broken(MODELS[number], data)
        patch.setattr("palimpsest.models.manifest.load_model", lambda *_, **__: stop())
        patch.setattr("palimpsest.models.manifest.train_tokenizer", lambda *_: stop())
        with refusing():
            describe_model(spec, Path(folder) / "out")


def stop():
    raise ModelError("far enough: everything of the spec is checked")


@QUICK
@given(data=st.data())
def test_specs_of_pretraining_the_gate_and_others(data):
    shape = {"family": "gptj", "width": 8, "blocks": 1, "heads": 2, "rotary": 4, "context": 16}
    with refusing():
        settings_of(
            broken({**shape, "seed": 1, "learning_rate": 1e-3, "beta2": 0.9, "weight_decay": 0.0}, data)
        )
    with refusing():
        training_of(broken({"family": "bert", "labels": ["a", "b"], "seed": 1, "repeats": {"a": 1}}, data))
    with refusing():
        shape_of(broken({**shape, "family": "bert", "labels": 3}, data))
    with refusing():
        gate_settings(broken({"layers": [0], "edits": 3, "clamp": 0.75, "steps": 1}, data))
    with refusing():
        ToySettings.from_dict(broken({"points": 3, "radii": [1.0]}, data))
    with refusing():
        class_names(data.draw(junk))
    with refusing(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("palimpsest.toy.compute", lambda *_: {})
        patch.setattr("palimpsest.toy.write_json", lambda *_: None)
        run_toy({"seeds": data.draw(junk)}, Path("nowhere"))
    with refusing():
        draw("a", {"drawer": data.draw(junk)}, [], "nowhere")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: reader_of({"reader": []}), r"reader: expected one of .*, found \[\]"),
        (lambda: read_passages({"files": 5}), r"text\.files: expected a list of file names, found 5"),
        (lambda: read_passages({"files": "a.txt"}), "text.files: expected a list of file names"),
        (lambda: read_passages({"limit": 10**30}), r"text\.limit is 10+; expected a whole number from 0"),
        (lambda: describe_model({"path": 5}, "x"), "model setting 'path' is 5; expected a text"),
        (
            lambda: describe_model({"kind": "hub", "id": "a/b", "revision": 5}, "x"),
            "'revision' is 5; expected a text",
        ),
        (
            lambda: describe_model({"kind": "random", "vocabulary": "a"}, "x"),
            "'vocabulary' is 'a'; expected a whole",
        ),
        (
            lambda: describe_model({"kind": "random", "seed": -1}, "x"),
            "'seed' is -1; expected a whole number from 0",
        ),
        (
            lambda: describe_model({"kind": "random", "corpus": "no-file"}, "x"),
            "file no-file: the file does not exist. Correct the key 'corpus'",
        ),
        (lambda: describe_model({"path": LONG}, "x"), "does not exist"),
        (lambda: pinned("a/b", 5), r"'a/b' is not pinned to a commit \(found 5\)"),
        (lambda: resolve("a\0b"), "names no model"),
        (lambda: Schedule(seed=10**20), "'seed' is 10+; expected"),
        (lambda: Schedule(beta2=1.0), "'beta2' is 1.0; expected a number of at least 0 and below 1"),
        (lambda: draw("a", {"drawer": []}, [], "x"), r"there is no drawer '\[\]'"),
    ],
)
def test_what_was_once_a_traceback(call, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PalimpsestError, match=said):
        call()
    assert not os.listdir(tmp_path)


def test_a_name_that_is_too_long_for_a_path_is_one_that_is_not_there(tmp_path):
    with pytest.raises(ModelError, match="is not pinned to a commit"):
        load_model(LONG)
    with pytest.raises(DataError, match="the file does not exist"):
        build_dataset({"reader": "zsre", "file": LONG}, tmp_path, tmp_path / "out")


def test_a_search_says_what_it_lacks(tmp_path):
    for spec, said in (({}, "lacks edits, settings"), ({"edits": 2}, "lacks settings")):
        with pytest.raises(SettingsError, match=said):
            search_targets(spec, 0, tmp_path, tmp_path, tmp_path / "out")


# manifests -----------------------------------------------------------------------------------------------------------------


@QUICK
@given(data=st.data())
def test_manifests_of_models(data):
    content = {"path": "a/b", "revision": COMMIT, "name": "x", "tokenizer": f"c/d@{COMMIT}", "family": None}
    with tempfile.TemporaryDirectory() as folder, refusing():
        path = Path(folder) / "manifest.json"
        path.write_text(json.dumps(broken(content, data)))
        where, revision, name, elsewhere = resolve(folder)
        assert isinstance(where, str) and isinstance(name, str)
        assert isinstance(revision, str | None) and isinstance(elsewhere, str | None)
        pinned(where, revision)


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ({"path": "a/b", "revision": 5}, "revision"),
        ({"path": "a\0b"}, "path"),
        ({"path": "a/b", "name": ["x"]}, "name"),
    ],
)
def test_a_manifest_that_is_not_what_it_should_be_is_named(tmp_path, content, field):
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=rf"manifest\.json, field '{field}': expected a text"):
        load_model(tmp_path)


def test_a_source_whose_manifest_is_a_list(tmp_path):
    pair = {"prompt": "Ada lives in", "answer": "Velden", "kind": "upstream"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(DataError, match=r"manifest\.json: expected an object, found list"):
        pretrain_pairs({"family": "bert", "width": 8, "heads": 2}, tmp_path, tmp_path / "out")


def test_a_run_whose_title_is_no_number_stops_before_it_starts(tmp_path, capsys):
    saved_world(tmp_path, edits=2)
    spec = {"run": "a", "protocol": "consecutive", "dataset": "d", "model": "m", "editor": "ft", "edits": 2, "batch_size": 1,
            "settings": {"layer": 0, "steps": 1}, "title": math.nan}  # fmt: skip
    named = [
        "--model",
        str(tmp_path / "model"),
        "--dataset",
        str(tmp_path / "data"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert cli.main(["run", "--spec", json.dumps(spec), "--seed", "0", *named]) == 1
    assert "palimpsest: --spec: title is nan" in capsys.readouterr().err and not (tmp_path / "out").exists()
