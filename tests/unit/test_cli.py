"""The command line: what it prints, what it refuses, and that it stays light."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from palimpsest import cli, commands

COMMANDS = (
    "world", "source", "dataset", "pretrain", "model", "gate", "statistics", "train-editor", "run", "figure", "claims",
    "gallery", "list", "edit", "schema",
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_teaches(command: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert f"palimpsest {command}" in text
    assert len(text.splitlines()) > 5


def test_help_names_every_command(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)


def test_without_a_command_help_is_shown(capsys: pytest.CaptureFixture):
    assert cli.main([]) == 2
    assert "snakemake" in capsys.readouterr().out


@pytest.mark.parametrize("kind", commands.KINDS)
def test_lists_are_json_objects_with_a_name(kind: str, capsys: pytest.CaptureFixture):
    assert cli.main(["list", kind, "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert entries
    assert all(entry["name"] for entry in entries)
    assert cli.main(["list", kind]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(entries)


def test_lists_name_what_exists(capsys: pytest.CaptureFixture):
    cli.main(["list", "editors", "--json"])
    assert {"ft", "rome", "memit", "comeba_hk"} <= {
        entry["name"] for entry in json.loads(capsys.readouterr().out)
    }
    cli.main(["list", "figures", "--json"])
    assert {"comeba_table1", "comeba_fig4"} <= {
        entry["name"] for entry in json.loads(capsys.readouterr().out)
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["world", "--settings", "{", "--out", "x"], "not valid JSON"),
        (["world", "--settings", "[]", "--out", "x"], "must be a JSON object"),
        (["world", "--settings", "@nowhere.json", "--out", "x"], "nowhere.json"),
        (["world", "--settings", '{"size": 3}', "--out", "x"], "size"),
        (["list", "models", "--scale", "huge"], "huge"),
        (
            ["statistics", "--spec", "{}", "--model", "m", "--corpus", "no-such-corpus", "--out", "x"],
            "no-such-corpus",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_status_one(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err
    assert "palimpsest: " in error
    assert words in error
    assert "Traceback" not in error
    assert not (tmp_path / "x").exists()


def test_world_and_dataset_from_the_command_line(tmp_path):
    settings = {"counterfact": 6, "zsre": 6, "probes": 4, "unrelated": 4, "relations": 2, "answers": 3, "facts_per_subject": 1,
                "first_names": 5, "subjects_per_last_name": 2, "text_lines": 12}  # fmt: skip
    assert (
        cli.main(
            ["world", "--settings", json.dumps(settings), "--seed", "3", "--out", str(tmp_path / "world")]
        )
        == 0
    )
    spec = json.dumps({"reader": "counterfact", "source": "world"})
    assert (
        cli.main(
            ["dataset", "--spec", spec, "--source", str(tmp_path / "world"), "--out", str(tmp_path / "edits")]
        )
        == 0
    )
    assert len((tmp_path / "edits" / "edits.jsonl").read_text().splitlines()) == 6


@pytest.mark.parametrize(
    "module",
    ["palimpsest", "palimpsest.cli", "palimpsest.experiments", "palimpsest.provenance", "palimpsest.figures"],
)
def test_imports_stay_light(module: str):
    heavy = ("torch", "transformers", "pandas", "matplotlib", "numpy")
    code = f"import {module}, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_edit_from_the_command_line(tmp_path, capsys: pytest.CaptureFixture):
    from tiny import tiny_model

    model = tiny_model("gpt2")
    model.network.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")
    arguments = [
        "edit",
        "--model",
        str(tmp_path / "model"),
        "--editor",
        "ft",
        "--prompt",
        "Ada lives in",
        "--target",
        "Rome",
        "--json",
    ]
    assert (
        cli.main(
            [*arguments, "--settings", '{"steps": 2}', "--tokens", "2", "--save", str(tmp_path / "state")]
        )
        == 0
    )
    result = json.loads(capsys.readouterr().out)
    assert result["applied"] == ["Ada lives in"]
    assert result["answers"][0]["prompt"] == "Ada lives in"
    assert (tmp_path / "state" / "state.safetensors").exists()
