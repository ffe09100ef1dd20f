"""One search of target vectors for several single-round runs: the same edits come out, and nothing foreign is taken."""

from __future__ import annotations

import json
import re
import shutil

import pandas as pd
import pytest
from test_runs import run, spec, world  # noqa: F401  the fixture
from tiny import breaking_off

from palimpsest import experiments, results
from palimpsest.cli import main
from palimpsest.config import repository_root
from palimpsest.editors import editor_class, editor_names
from palimpsest.editors.shared.stored_targets import StoredTargets
from palimpsest.edits import Edit, write_edits
from palimpsest.errors import PalimpsestError, SettingsError
from palimpsest.experiments import shared
from palimpsest.files import read_json, write_json
from palimpsest.runs import searches
from palimpsest.runs.inputs import RunFiles
from palimpsest.runs.run import execute

KEY_VALUE = [name for name in editor_names() if getattr(editor_class(name), "shares_targets", False)]


def single_round(editor="comeba_hk", **changes):
    settings = {"layers": [0, 1], "steps": 3, **changes.pop("settings", {})}
    whole = spec("comeba_hk", protocol="single_round", snapshot_every=None, **changes)
    return {**whole, "editor": editor, "run": f"toy-{editor}", "settings": settings}


def search_of(the_spec):
    defaults = {name: None for name in shared.SEARCH_SETTINGS}
    kind = editor_class(the_spec["editor"]).settings_type
    defaults |= {name: getattr(kind(), name) for name in defaults}
    return shared.search_spec({**the_spec, "settings": {**defaults, **the_spec["settings"]}})


def search(world, out, the_spec, seed=0):  # noqa: F811
    return searches.search_targets(search_of(the_spec), seed, world / "model", world / "data", out)


@pytest.mark.parametrize("editor", KEY_VALUE)
@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_stored_target_vectors_change_no_result(world, tmp_path, editor, batch_size):  # noqa: F811
    the_spec = single_round(editor, batch_size=batch_size)
    search(world, tmp_path / "targets", the_spec)
    run(world, tmp_path / "own", the_spec)
    run(world, tmp_path / "shared", the_spec, targets=tmp_path / "targets")
    own, shared = (results.read_records(tmp_path / name) for name in ("own", "shared"))
    pd.testing.assert_frame_equal(own, shared, rtol=1e-3, atol=1e-3)
    assert read_json(tmp_path / "shared" / "run.json")["targets"].startswith("searched once")


def test_facts_that_are_set_aside_come_last_in_a_search_too(world, tmp_path):  # noqa: F811
    """Or the vectors would be those of another sample."""
    the_spec = single_round(edits=3)
    first = searches.read_edits(world / "data" / "edits.jsonl")[0]
    data = shutil.copytree(world / "data", tmp_path / "data")
    manifest = data / "manifest.json"
    content = read_json(manifest) if manifest.exists() else {}
    write_json(manifest, {**content, "reserved": [first.identifier]})
    made = searches.search_targets(search_of(the_spec), 0, world / "model", data, tmp_path / "targets")
    files = RunFiles(world / "model", data, targets=made.parent, statistics=world / "statistics")
    out = execute(the_spec, 0, files, tmp_path / "run")
    assert read_json(out)["targets"].startswith("searched once")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"edits": None, "settings": None}, "lacks edits, settings"),
        ({"edits": None}, "lacks edits"),
        ({"edits": "x"}, "'edits' is 'x'; expected a whole number above 0"),
        ({"edits": 0}, "'edits' is 0; expected"),
        ({"edits": True}, "'edits' is True; expected"),
        ({"edits": 2.0}, "'edits' is 2.0; expected"),
        ({"settings": [1]}, r"'settings' is \[1\]; expected names with values"),
        ({"options": "file_order"}, "'options' is 'file_order'; expected names with values"),
        ({"options": {"dtipe": 1}}, "no setting 'dtipe'"),
        ({"settings": {"lair": 1}}, "no setting 'lair'"),
        ({"edit": 3}, r"has no key 'edit' \(did you mean 'edits'\?\)"),
        ({"settings": {"context_lengths": [[5, 0]]}}, "a group has at least one token and one text"),
    ],
)
def test_a_wrong_specification_is_refused_before_anything_is_read(tmp_path, capsys, change, words):
    content = {"edits": 2, "settings": {"layers": [1], "steps": 2}, **change}
    text = json.dumps({name: value for name, value in content.items() if value is not None})
    where = [flag for name in ("model", "dataset", "out") for flag in (f"--{name}", str(tmp_path / name))]
    assert main(["targets", "--spec", text, "--seed", "0", *where]) == 1
    assert re.search(words, capsys.readouterr().err) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"layers": [9]}, "layer 9 does not exist"),
        ({"layers": [1], "loss_layer": 9}, "loss_layer is 9"),
        ({"layers": [1], "context_lengths": [[64, 1]]}, "texts of 64 tokens, but .* reads 64"),
    ],
)
def test_what_the_model_does_not_have_is_refused(world, tmp_path, settings, words):  # noqa: F811
    the_spec = {**search_of(single_round()), "settings": settings}
    with pytest.raises(PalimpsestError, match=words):
        searches.search_targets(the_spec, 0, world / "model", world / "data", tmp_path / "targets")
    assert not (tmp_path / "targets").exists()


def test_an_edit_that_cannot_be_made_ends_no_search(world, tmp_path):  # noqa: F811
    """It is a failed edit of the runs, with vectors searched beforehand or not."""
    data = tmp_path / "data"
    edits = searches.read_edits(world / "data" / "edits.jsonl")
    nameless = Edit("The city is", edits[0].target, identifier="no-subject")
    write_edits(data / "edits.jsonl", [nameless, *edits[:3]])
    the_spec = single_round("memit", batch_size=2, options={"sample": "file_order"})
    made = searches.search_targets(search_of(the_spec), 0, world / "model", data, tmp_path / "targets").parent
    found = []
    for name, more in (("own", {}), ("shared", {"targets": made})):
        out = tmp_path / name
        files = RunFiles(world / "model", data, statistics=world / "statistics", **more)
        execute(the_spec, 0, files, out)
        found.append(read_json(out / "run.json")["edits_failed"])
    assert found[0] == found[1] and {one["edit"] for one in found[0]} == {"no-subject"}
    write_edits(data / "edits.jsonl", [nameless])
    with pytest.raises(PalimpsestError, match="not one of 1 edits can be made"):
        searches.search_targets(
            {**search_of(the_spec), "edits": 1}, 0, world / "model", data, tmp_path / "none"
        )


def test_one_search_serves_methods_lambdas_and_batch_sizes():
    """What differs only in those has the same search; steps or the sample do not."""
    spec_of = search_of(single_round("comeba_hk"))
    assert spec_of == search_of(single_round("memit", batch_size=4))
    assert spec_of == search_of(single_round("comeba_hk", settings={"lam": 3.0}))
    assert spec_of == search_of(
        single_round("comeba_hk", settings={"layers": [1]})
    )  # z is searched at the last
    assert spec_of != search_of(single_round("comeba_hk", settings={"steps": 4}))
    assert spec_of != search_of(single_round("comeba_hk", settings={"layers": [0]}))
    assert spec_of != search_of(single_round("comeba_hk", edits=3))


def test_a_killed_search_goes_on(world, tmp_path, monkeypatch):  # noqa: F811
    the_spec = search_of(single_round())
    the_spec["options"] = {**the_spec["options"], "checkpoint_every_batch": True}
    where = (0, world / "model", world / "data")
    monkeypatch.setattr(searches, "EDITS_AT_ONCE", 1)
    searches.search_targets(the_spec, *where, tmp_path / "whole")
    dying = breaking_off(searches.SEARCHES["fast"], 3)
    monkeypatch.setitem(searches.SEARCHES, "fast", dying)
    broken = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        searches.search_targets(the_spec, *where, broken)
    assert not (broken / "targets.json").exists() and (broken / "checkpoints").is_dir()
    searches.search_targets(the_spec, *where, broken)
    assert len(dying.calls) == 3 + 2  # two of four were not searched again
    files = [(folder / "targets.safetensors").read_bytes() for folder in (tmp_path / "whole", broken)]
    assert files[0] == files[1] and not (broken / "checkpoints").exists()
    with pytest.raises(PalimpsestError, match="nowhere"):  # a mistyped path costs no finished search
        searches.search_targets(the_spec, 0, world / "nowhere", world / "data", broken)
    assert StoredTargets.load(broken).vectors.losses == StoredTargets.load(tmp_path / "whole").vectors.losses


def test_foreign_or_damaged_target_vectors_are_refused(world, tmp_path):  # noqa: F811
    the_spec, stored = single_round(), tmp_path / "targets"
    search(world, stored, the_spec)

    def refused(words, changed=the_spec, kind=PalimpsestError, **more):
        with pytest.raises(kind, match=words):
            run(world, tmp_path / "run", changed, targets=stored, **more)
        assert not (tmp_path / "run" / "metrics.parquet").exists()

    refused("are of search", single_round(settings={"steps": 2}))
    refused("are of contexts", seed=1)
    refused("lack", single_round(edits=6))
    refused("are for single-round runs", {**the_spec, "protocol": "consecutive"}, SettingsError)
    refused("are for single-round runs", {**spec("ft"), "protocol": "single_round"}, SettingsError)
    rome = single_round("rome", settings={"layers": [1], "context_lengths": [[10, 5]]})
    refused("searches on the model as it edits", rome, SettingsError)
    tensors = stored / "targets.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-8])
    refused("missing or not the one")


def test_the_plan_shares_searches_among_single_round_runs_only():
    plan = experiments.plan(repository_root() / "config" / "smoke.yaml")
    for run_ in plan.runs.values():
        wanted = run_.spec["protocol"] == "single_round" and run_.spec["editor"] in KEY_VALUE
        assert bool(run_.targets) == wanted, run_.name
    users = {
        name: {r.spec["editor"] for r in plan.runs.values() if r.targets == name} for name in plan.searches()
    }
    assert users and set(KEY_VALUE) in users.values()
