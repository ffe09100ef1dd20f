"""Whole runs on a tiny model: the files, the refusals, going on after a crash, and the same rows every
time."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from tiny import TEXTS, breaking_off, random_statistics, saved_world, some_edits, tiny_model

from palimpsest import results
from palimpsest.edits import write_edits
from palimpsest.errors import DataError, PalimpsestError, SettingsError, StatisticsError
from palimpsest.files import write_json
from palimpsest.metrics import evaluation
from palimpsest.runs.inputs import Options, RunFiles
from palimpsest.runs.run import execute, peak_memory


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folders of a model, its statistics, a data set, a text and a gate, as the workflow lays them out."""
    folder = tmp_path_factory.mktemp("world")
    model = saved_world(folder)
    random_statistics(model, (0, 1)).save(folder / "statistics")
    random_statistics(tiny_model("gpt2", seed=3), (0, 1)).save(folder / "foreign")
    (folder / "text.txt").write_text("\n".join(TEXTS))
    write_json(folder / "pass.json", {"verdict": "pass", "reasons": []})
    write_json(folder / "fail.json", {"verdict": "fail", "reasons": ["state swap 0.01 is below 0.25"]})
    write_json(folder / "known.json", {"known": [f"edit-{i}" for i in range(4)], "checked": 6})
    return folder


def spec(editor="comeba_hk", **changes):
    settings = {"comeba_hk": {"layers": [0, 1], "steps": 3}, "ft": {"layer": 0, "steps": 2}}[editor]
    base = {
        "run": f"toy-{editor}",
        "protocol": "consecutive",
        "dataset": "toy",
        "model": "tiny",
        "editor": editor,
    }
    sizes = {"settings": settings, "edits": 4, "batch_size": 2, "snapshot_every": 2}
    options = {"conflicts": "keep", **changes.pop("options", {})}
    return {**base, **sizes, "options": options, **changes}


def run(world, out, the_spec, seed=0, **files):
    files = {"statistics": world / "statistics", "text": world / "text.txt", **files}
    return execute(the_spec, seed, RunFiles(world / "model", world / "data", **files), out)


def test_a_run_writes_its_four_files(world, tmp_path):
    path = run(world, tmp_path, spec(options={"inspect": True}))
    assert path == tmp_path / "run.json"
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "inspection.parquet",
        "metrics.parquet",
        "records.parquet",
        "run.json",
    ]
    metrics, content = results.read_metrics(tmp_path), results.read_run(tmp_path)
    assert set(metrics.run) == {"toy-comeba_hk"} and sorted(set(metrics.step)) == [0, 1, 2]
    assert {"reliability", "swap_rate", "alpha", "perplexity", "state_bytes", "editing_bytes"} <= set(
        metrics.metric
    )
    assert content["status"] == "complete" and content["edits_requested"] == content["edits_applied"] == 4
    assert content["model"]["name"] == "tiny" and len(content["history"]["alpha"]["0"]) == 2
    assert content["spec"]["settings"]["layers"] == [0, 1] and content["gate"] == {"mode": "off"}
    assert content["peak_rss_bytes"] > 1e7 and content["threads"] >= 1
    assert content["gpu_peak_bytes"] is None  # on the CPU
    assert set(content["seconds"]) == {"edit", "evaluate", "total"}
    inspection = results.read_inspection(tmp_path)
    assert set(inspection.split) >= {"edit", "rephrase", "locality"} and set(inspection.layer) == {0, 1}


def test_the_same_seed_gives_the_same_rows_and_another_does_not(world, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(world, tmp_path / name, spec("ft"), seed=seed)
    for table in ("metrics", "records"):
        assert (tmp_path / "a" / f"{table}.parquet").read_bytes() == (
            tmp_path / "b" / f"{table}.parquet"
        ).read_bytes()
    first, other = results.read_records(tmp_path / "a"), results.read_records(tmp_path / "c")
    assert first.edit.tolist() != other.edit.tolist()


@pytest.mark.parametrize("editor", ["ft", "comeba_hk"])
@pytest.mark.parametrize("name", ["consecutive", "single_round"])
def test_a_killed_run_goes_on_to_the_same_rows(world, tmp_path, monkeypatch, editor, name):
    from palimpsest.editors import editor_class

    the_spec = spec(editor, protocol=name, batch_size=1, options={"checkpoint_every_batch": True})
    run(world, tmp_path / "whole", the_spec)
    kind = editor_class(editor)
    dying = breaking_off(kind.apply, 3)
    monkeypatch.setattr(kind, "apply", dying)
    broken = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        run(world, broken, the_spec)
    assert not (broken / "run.json").exists() and (broken / "checkpoints").is_dir()
    run(world, broken, the_spec)
    assert len(dying.calls) == 3 + 2  # two of four batches were not made again
    assert not (broken / "checkpoints").exists()
    for read in (results.read_metrics, results.read_records):
        pd.testing.assert_frame_equal(read(broken), read(tmp_path / "whole"), check_exact=True)
    histories = [results.read_run(tmp_path / name)["history"] for name in ("whole", "broken")]
    assert histories[0] == histories[1]


def test_runs_share_the_unedited_models_answers_and_nothing_else(world, tmp_path, monkeypatch, caplog):
    """The same rows, asked once; other questions or another way of asking are asked; a damaged file is no loss."""
    asked, plain = [], evaluation.predict_answers
    monkeypatch.setattr(
        evaluation, "predict_answers", lambda *arguments: asked.append(len(arguments[1])) or plain(*arguments)
    )

    def looks(name, the_spec, seed=0, **files):
        asked.clear()
        run(world, tmp_path / name, the_spec, seed, **files)
        return len(asked)

    kept = {"answers": tmp_path / "answers"}
    alone = looks("alone", spec())
    assert looks("first", spec(), **kept) == alone
    assert looks("second", spec(), **kept) == alone - 1
    assert looks("ft", spec("ft"), **kept) == alone - 1  # another editor of the same model asks the same
    for read in (results.read_metrics, results.read_records):
        for name in ("first", "second"):
            pd.testing.assert_frame_equal(read(tmp_path / name), read(tmp_path / "alone"), check_exact=True)
    assert len(list((tmp_path / "answers").iterdir())) == 1
    assert looks("other", spec(), seed=1, **kept) == alone
    assert looks("apart", spec(options={"batch_tokens": 30}), **kept) == alone
    assert len(list((tmp_path / "answers").iterdir())) == 3
    for damage in (
        "{",
        "{}",
        '{"predicted": [], "wanted": [], "generated": []}',
        '{"predicted": 1, "wanted": 1, "generated": 1}',
    ):
        for file in (tmp_path / "answers").iterdir():
            file.write_text(damage)
        assert looks("third", spec(), **kept) == alone and "the model is asked again" in caplog.text
    pd.testing.assert_frame_equal(
        results.read_metrics(tmp_path / "third"), results.read_metrics(tmp_path / "alone")
    )


def test_checkpoints_of_another_seed_are_not_used(world, tmp_path, monkeypatch):
    from palimpsest.editors import editor_class

    kind = editor_class("ft")
    monkeypatch.setattr(kind, "apply", breaking_off(kind.apply, 2))
    with pytest.raises(KeyboardInterrupt):
        run(world, tmp_path / "a", spec("ft"))
    run(world, tmp_path / "a", spec("ft"), seed=1)
    run(world, tmp_path / "b", spec("ft"), seed=1)
    assert (tmp_path / "a" / "metrics.parquet").read_bytes() == (
        tmp_path / "b" / "metrics.parquet"
    ).read_bytes()


def test_the_gate(world, tmp_path, caplog):
    with pytest.raises(PalimpsestError, match=r"failed the gate .*state swap 0\.01 .*subject's last token"):
        run(world, tmp_path, spec(options={"gate": "refuse"}), gate=world / "fail.json")
    assert not list(tmp_path.iterdir())
    with pytest.raises(SettingsError, match="--gate FILE"):
        run(world, tmp_path, spec(options={"gate": "refuse"}))
    run(world, tmp_path, spec("ft", options={"gate": "refuse"}), gate=world / "fail.json")  # needs no subject
    run(world, tmp_path, spec("ft", options={"gate": "warn"}), gate=world / "fail.json")
    assert "failed the gate" in caplog.text
    assert results.read_run(tmp_path)["gate"] == {
        "mode": "warn",
        "verdict": "fail",
        "reasons": ["state swap 0.01 is below 0.25"],
        "needed": False,
    }
    run(world, tmp_path, spec("ft", options={"gate": "refuse"}), gate=world / "pass.json")


def test_only_known_facts(world, tmp_path):
    known = {"known_only": True}
    run(world, tmp_path, spec("ft", options=known), known=world / "known.json")
    assert set(results.read_records(tmp_path).edit) == {f"edit-{i}" for i in range(4)}
    with pytest.raises(
        DataError, match=r"5 edits are requested, but only 4 of the 6 in toy .*2 dropped because"
    ):
        run(world, tmp_path, spec("ft", options=known, edits=5), known=world / "known.json")
    with pytest.raises(SettingsError, match="--known FILE"):
        run(world, tmp_path, spec("ft", options=known))
    with pytest.raises(PalimpsestError, match="nowhere"):
        execute(
            spec("ft", options=known),
            0,
            RunFiles(world / "nowhere", world / "data", known=world / "known.json"),
            tmp_path,
        )
    # An attempt that is refused before it begins (a mistyped path) costs no finished run.
    assert results.read_run(tmp_path)["edits_requested"] == 4


def test_bad_input_stops_before_anything_is_written(world, tmp_path):
    with pytest.raises(StatisticsError, match="belong to model"):
        run(world, tmp_path, spec(), statistics=world / "foreign")
    with pytest.raises(SettingsError, match="lacks editor"):
        run(world, tmp_path, {**spec(), "editor": None})
    with pytest.raises(SettingsError, match="'batch_size' is 0"):
        run(world, tmp_path, spec(batch_size=0))
    with pytest.raises(SettingsError, match="no editor 'magic'"):
        run(world, tmp_path, {**spec(), "editor": "magic"})
    with pytest.raises(SettingsError, match="no protocol"):
        run(world, tmp_path, spec(protocol="magic"))
    with pytest.raises(SettingsError, match="has no setting .inspekt. .did you mean .inspect."):
        run(world, tmp_path, spec(options={"inspekt": True}))
    with pytest.raises(SettingsError, match="'gate' is"):
        Options.from_dict({"gate": "maybe"})
    with pytest.raises(DataError, match=r"edits\.jsonl.*does not exist"):
        execute(spec(), 0, RunFiles(world / "model", tmp_path / "absent"), tmp_path / "out")
    assert not list(tmp_path.rglob("*.parquet"))


def test_texts_longer_than_the_context_are_left_out(world, tmp_path):
    edits = some_edits(4)
    long = json.loads(json.dumps(edits[0].to_dict()))
    long["prompt"] = "The city of Velden, " * 40 + long["prompt"]
    write_edits(tmp_path / "data" / "edits.jsonl", [type(edits[0]).from_dict(long), *edits[1:]])
    execute(spec("ft", edits=3), 0, RunFiles(world / "model", tmp_path / "data"), tmp_path / "out")
    assert results.read_run(tmp_path / "out")["edits_available"] == 4
    with pytest.raises(DataError, match="1 dropped because a text is longer than the model's context"):
        execute(spec("ft", edits=4), 0, RunFiles(world / "model", tmp_path / "data"), tmp_path / "out")


def test_memory_is_told():
    assert peak_memory() is None or peak_memory() > 1_000_000
