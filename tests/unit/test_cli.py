"""The command line: what it prints, what it refuses, and that it stays light."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys

import pytest

from palimpsest import cli
from palimpsest.command_line import commands, listing, spec_help
from palimpsest.command_line.spec_words import EXAMPLES, PARTS

COMMANDS = (
    "world", "source", "dataset", "pretrain", "convert", "model", "gate", "statistics", "train-editor", "targets", "run",
    "figure", "toy", "claims", "gallery", "list", "edit", "schema",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "100")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_teaches(command: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert f"palimpsest {command}" in text
    assert len(text.splitlines()) > 5 and f"\nExample: palimpsest {command} " in text


def test_every_command_has_an_example_that_could_be_pasted():
    """It is in the help, is parsed, and its SPEC is JSON with keys that the help lists; what must be given is given."""
    assert set(EXAMPLES) == set(COMMANDS)
    for command, example in EXAMPLES.items():
        options = cli._parser().parse_args([command, *shlex.split(example.replace("\\\n", " "))])
        assert max(map(len, f"Example: palimpsest {command} {example}".splitlines())) <= spec_help.WIDTH
        if command in PARTS:
            spec = commands.read_spec(options.spec)
            assert set(spec) <= {key for part in PARTS[command] for key in spec_help.keys(part)}, command
            assert any(spec_help.required(part) <= set(spec) for part in PARTS[command]), command


def test_help_names_every_command(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = capsys.readouterr().out
    shown = re.findall(r"^    ([a-z-]+)\s", text, re.MULTILINE)
    assert sorted(shown) == sorted(COMMANDS)


def test_without_a_command_help_is_shown(capsys: pytest.CaptureFixture):
    assert cli.main([]) == 2
    assert "snakemake" in capsys.readouterr().out


def listed(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    assert cli.main(["list", *arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("kind", listing.KINDS)
def test_lists_are_json_objects_with_a_name(kind: str, capsys: pytest.CaptureFixture, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    entries = json.loads(listed(capsys, kind, "--json"))
    assert entries
    assert all(entry["name"] for entry in entries)
    lines = listed(capsys, kind).splitlines()
    assert "name" in lines[0].split() and set(lines[1]) == {"-", " "}
    rows = {line.split()[1 if kind == "claims" else 0] for line in lines[2:] if not line.startswith(" ")}
    assert rows == {entry["name"] for entry in entries}


@pytest.mark.parametrize("kind", ["editors", "claims", "experiments"])
@pytest.mark.parametrize("width", [100, 160])
def test_tables_fit_the_terminal_and_cut_no_word(kind: str, width: int, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    text = listed(capsys, kind)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    starts = [at for at, sign in enumerate(lines[1]) if sign == "-" and lines[1][at - 1 : at] != "-"]
    for line in lines[2:]:  # columns start below each other
        assert all(line[at - 2 : at].strip() == "" for at in starts[1:])
    shown = ("text", "title", "variants")
    words = " ".join(
        str(value) for entry in json.loads(listed(capsys, kind, "--json")) for key, value in entry.items() if key in shown
    )  # fmt: skip
    assert set(words.translate(str.maketrans("", "", "[]',")).split()) <= set(
        text.translate(str.maketrans("", "", "[]',")).split()
    )


def test_what_an_editor_needs_is_said_in_words(capsys: pytest.CaptureFixture):
    lines = listed(capsys, "editors").splitlines()
    assert lines[0].endswith("needs statistics  learns")
    needs = {line.split()[0]: line.split()[-2:] for line in lines[2:] if not line.startswith(" ")}
    assert needs["memit"] == ["yes", "no"] and needs["mend"] == ["no", "yes"] and needs["ft"] == ["no", "no"]
    entries = {entry["name"]: entry for entry in json.loads(listed(capsys, "editors", "--json"))}
    assert entries["serac"]["learns"] is True and entries["rome"]["learns"] is False


def test_claims_are_led_by_their_paper(capsys: pytest.CaptureFixture):
    text = listed(capsys, "claims")
    papers = [line.split()[0] for line in text.splitlines()[2:] if not line.startswith(" ")]
    assert list(dict.fromkeys(papers)) == ["comeba_hk", "grace", "mend", "serac"]
    assert papers == sorted(papers) and "{" not in text and "statistic" not in text.splitlines()[0]
    entries = json.loads(listed(capsys, "claims", "--json"))
    assert len(entries) == len(papers) and all(
        entry["parts"] and entry["paper"] in papers for entry in entries
    )


@pytest.mark.parametrize("kind", listing.KINDS)
def test_a_scale_that_means_nothing_is_said_to(kind: str, capsys: pytest.CaptureFixture):
    assert cli.main(["list", kind, "--scale", "smoke"]) == 0
    assert ("--scale is not used" in capsys.readouterr().err) is (kind in ("editors", "claims"))


def test_long_cells_are_wrapped_and_checksums_shortened(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    entries = [
        {"name": "first", "title": "eight words " * 8, "sha256": "0123456789abcdef" * 4, "bad_records": None},
        {"name": "second", "title": "short", "deduplicate": True},
    ]
    lines = listing.table("datasets", entries).splitlines()
    assert lines[0].split() == ["name", "title", "more"] and max(map(len, lines)) <= 60
    assert sum(line.count("eight") for line in lines) == 8 and len(lines) > 5
    text = " ".join(lines)
    assert "0123456789ab…" in text and "deduplicate: yes" in text and "bad_records" not in text
    assert listing.table("models", []) == "There are no models at this scale."


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
        (["world", "--settings", "{", "--out", "x"], "--settings is not valid JSON"),
        (["world", "--settings", "[]", "--out", "x"], "--settings must be a JSON object"),
        (["world", "--settings", "@nowhere.json", "--out", "x"], "--settings @nowhere.json"),
        (["toy", "--spec", "{", "--out", "x"], "--spec is not valid JSON"),
        (["model", "--spec", '{"shape": 3}', "--out", "x"], "key 'shape': expected an object"),
        (
            ["model", "--spec", '{"width": 8, "shape": {"width": 8}}', "--out", "x"],
            "key 'width' is given twice",
        ),
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
