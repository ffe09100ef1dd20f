"""`--help` lists the keys of every SPEC; what it says is held to the code that reads them."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from importlib import import_module
from pathlib import Path

import pytest

from palimpsest import cli
from palimpsest.command_line import commands, spec_help
from palimpsest.command_line.spec_words import CLAIM, FIGURE, PARTS, WORDS, Part
from palimpsest.errors import PalimpsestError, SettingsError

SOURCE = Path(cli.__file__).parent
ALL = [
    pytest.param(part, id=f"{command}: {part.title}") for command, parts in PARTS.items() for part in parts
]


def help_of(command: str, capsys: pytest.CaptureFixture) -> str:
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    return capsys.readouterr().out


def test_every_command_with_a_spec_is_told_about(capsys: pytest.CaptureFixture):
    text = (SOURCE / "cli.py").read_text(encoding="utf-8")
    assert len(re.findall(r"^    add_spec\(", text, re.MULTILINE)) == len(PARTS)
    for command, parts in PARTS.items():
        shown = help_of(command, capsys)
        assert f"keys of {'--settings' if command == 'world' else '--spec'} (" in shown
        for part in parts:
            for name in spec_help.keys(part):
                assert re.search(rf"^    {name}\*?( |$)", shown, re.MULTILINE), (command, name)
    assert "keys of" not in help_of("edit", capsys)
    assert spec_help.text("edit") == ""


@pytest.mark.parametrize("part", ALL)
def test_every_key_has_words_and_none_is_explained_in_vain(part: Part):
    words = spec_help.words(part)
    assert words and all(words.values())
    assert not any("prepare.load_edits" in said or "`Search`" in said for said in words.values())
    assert spec_help.required(part) <= set(words)
    assert set(part.must) <= set(words)


@pytest.mark.parametrize("part", ALL)
def test_keys_and_defaults_are_those_of_the_code(part: Part):
    for place in part.read:
        module, _, name = place.partition(":")
        found = getattr(import_module(f"palimpsest.{module}"), name)
        told = spec_help.keys(dataclasses.replace(part, read=(place,), further=(), without=()))
        if not dataclasses.is_dataclass(found):
            assert set(told) == set(found)
            continue
        fields = {entry.name: entry for entry in dataclasses.fields(found)}
        assert list(told) == list(fields)
        for key, default in told.items():
            entry = fields[key]
            if entry.default is not dataclasses.MISSING:
                assert default == entry.default, key
            elif entry.default_factory is not dataclasses.MISSING:
                assert default == entry.default_factory(), key
            else:
                assert default is spec_help.NOTHING and (
                    key in part.without or key in spec_help.required(part)
                )


def test_worlds_are_those_that_can_be_made(capsys: pytest.CaptureFixture):
    assert [part.title for part in PARTS["world"]] == [f"--kind {kind}" for kind in commands.WORLDS]
    shown = help_of("world", capsys)
    assert all(f"\n  {kind} " in shown for kind in commands.WORLDS)


def test_what_must_be_given_is_marked(capsys: pytest.CaptureFixture):
    shown = help_of("run", capsys)
    assert all(
        f"    {name}* " in shown for name in ("run", "protocol", "dataset", "model", "editor", "edits")
    )
    assert "settings* " not in shown
    assert "layers* " in help_of("statistics", capsys) and "drawer* " in help_of("figure", capsys)


def test_figures_and_claims_are_told_no_key_that_is_not_listed():
    tree = ast.parse((SOURCE / "experiments" / "figure_specs.py").read_text(encoding="utf-8"))
    made = next(node for node in tree.body if getattr(node, "name", "") == "figure_spec")
    told = next(node.value for node in ast.walk(made) if isinstance(node, ast.Return))
    assert {key.value for key in told.keys} <= set(FIGURE)
    for folder, known in (("figures", FIGURE), ("claims", CLAIM)):
        text = "".join(file.read_text(encoding="utf-8") for file in (SOURCE / folder).glob("*.py"))
        of_runs = {"batch_size", "edits", "settings", "variant"}  # of run.json
        read = set(re.findall(r'[^.\w]spec\.get\("(\w+)"', text)) - of_runs
        assert read and read <= set(known)


def test_a_stand_in_has_the_keys_that_its_refusal_names(tmp_path):
    from palimpsest.models.manifest import describe_model

    known = set[str]()
    for family in ("gpt2", "t5", "bert"):
        with pytest.raises(SettingsError) as refusal:
            describe_model({"kind": "random", "family": family, "nonsense": 1}, tmp_path)
        known |= set(str(refusal.value).rpartition("known are ")[2].split(", "))
    unused = {"name", "title", "layers", "gate", "dtype"}
    assert set(spec_help.keys(PARTS["model"][1])) == known - unused


def test_a_group_of_keys_may_stand_apart_as_in_a_scale(tmp_path, monkeypatch):
    """As config/README.md has them: `shape`, `training`, `lifelong`."""
    seen = []
    monkeypatch.setattr("palimpsest.models.manifest.describe_model", lambda spec, out: seen.append(spec))
    monkeypatch.setattr("palimpsest.models.pretrain.pretrain", lambda spec, *rest, **named: seen.append(spec))
    monkeypatch.setattr("palimpsest.data.lifelong.build_lifelong", lambda spec, *rest: seen.append(spec))
    nested = {"kind": "random", "shape": {"width": 8, "heads": 2}}
    commands.run_model(nested, tmp_path / "a")
    commands.run_pretrain(
        {"seed": 1, "shape": {"width": 8}, "training": {"steps": 2}}, tmp_path, tmp_path / "b", 1
    )
    commands.run_dataset({"task": "qa", "lifelong": {"skip": 3}}, None, tmp_path / "c")
    assert seen == [{"kind": "random", "width": 8, "heads": 2}, {"seed": 1, "width": 8, "steps": 2},
                    {"task": "qa", "skip": 3}]  # fmt: skip
    assert nested["shape"] == {"width": 8, "heads": 2}


def test_a_place_that_is_gone_is_named():
    for place in ("data.nowhere:X", "toy:Nothing"):
        with pytest.raises(PalimpsestError, match="Correct spec_words.py"):
            spec_help.keys(Part("x", (place,)))


def test_defaults_are_written_as_json(capsys: pytest.CaptureFixture):
    shown = help_of("source", capsys)
    assert json.dumps(["major_inaccurate", "minor_inaccurate"]) in shown and "None" not in shown
    assert WORDS["hub"] in shown
