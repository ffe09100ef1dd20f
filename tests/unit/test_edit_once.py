"""`palimpsest edit`: one edit from the command line, and where its settings come from."""

from __future__ import annotations

import json

import pytest
from tiny import network, random_statistics, tokenizer

from palimpsest import cli, load_model
from palimpsest.command_line import commands
from palimpsest.config import Config, editor_settings, load_config
from palimpsest.editors import editor_class, editor_names
from palimpsest.editors.base import read_settings
from palimpsest.errors import PalimpsestError, SettingsError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model directory in hub format, with four blocks."""
    place = tmp_path_factory.mktemp("model")
    network("gpt2").save_pretrained(place)
    tokenizer().save_pretrained(place)
    return place


def edit(model, editor: str, *more: str) -> int:
    about = ["--prompt", "Ada lives in", "--subject", "Ada", "--target", "Rome", "--tokens", "2", "--json"]
    return cli.main(["edit", "--model", str(model), "--editor", editor, *about, *more])


def test_edit_from_the_command_line(folder, tmp_path, capsys: pytest.CaptureFixture):
    assert edit(folder, "ft", "--settings", '{"steps": 2}', "--save", str(tmp_path / "state")) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["applied"] == ["Ada lives in"]
    assert result["answers"][0]["prompt"] == "Ada lives in"
    assert (tmp_path / "state" / "state.safetensors").exists()


def test_an_edit_in_words_and_one_that_cannot_be_made(folder, capsys: pytest.CaptureFixture):
    """Without --json a reader's text; the exit status tells a script whether the edit was made."""
    command = [
        "edit",
        "--model",
        str(folder),
        "--editor",
        "ft",
        "--prompt",
        "Ada lives in",
        "--settings",
        '{"steps": 2}',
    ]
    assert cli.main([*command, "--target", "Rome", "--ask", "Mira lives in"]) == 0
    said = capsys.readouterr().out
    assert (
        said.startswith("Mira lives in\n  before: ") and "\n  after:  " in said and "not edited" not in said
    )
    assert cli.main([*command, "--target", "Rome " * 80]) == 1
    assert "not edited: prompt and target need" in capsys.readouterr().out
    assert cli.main([*command, "--target", "Rome " * 80, "--json"]) == 1
    assert "reads at most 64" in json.loads(capsys.readouterr().out)["failed"][0]["reason"]


def test_a_preset_lets_memit_edit_a_small_model(folder, tmp_path, capsys: pytest.CaptureFixture):
    random_statistics(load_model(folder), (0, 1, 2)).save(tmp_path)
    statistics = ("--statistics", str(tmp_path))
    assert edit(folder, "memit", *statistics) == 1
    error = capsys.readouterr().err
    assert (
        "memit has layers = [13, 14, 15, 16, 17]" in error
        and "blocks 0 to 3" in error
        and "--preset" in error
    )
    assert edit(folder, "memit", *statistics, "--preset", "mini-gpt2", "--settings", '{"steps": 2}') == 0
    assert json.loads(capsys.readouterr().out)["applied"] == ["Ada lives in"]
    assert edit(folder, "memit", *statistics, "--preset", "mini-gpt2", "--settings", '{"lamda": 2}') == 1
    assert "has no setting 'lamda'" in capsys.readouterr().err
    assert edit(folder, "memit", "--settings", "{") == 1
    assert "--settings is not valid JSON" in capsys.readouterr().err


def test_settings_go_over_those_of_the_preset():
    found = commands.preset_settings("memit", "mini-gpt2")
    assert found["layers"] == [0, 1, 2] and found["lam_ratio"] == 0.5 and found["lam"] is None
    found = commands.preset_settings("memit", "mini-gpt2", {"lam": 7.0, "steps": 3})
    assert found["lam"] == 7.0 and found["lam_ratio"] is None and found["steps"] == 3
    assert commands.preset_settings("grace", "mini-gpt2", {"radius": 1.0})["radius_ratio"] is None


def test_a_preset_is_what_the_workflow_takes():
    config: Config = load_config(commands.repository_root() / "config" / "mini.yaml")
    for editor in ("ft", "memit", "comeba_hk", "rome", "defer", "memory"):
        stated = editor_settings(config, editor, "default", "mini-gpt2", None)
        found = commands.preset_settings(editor, "mini-gpt2")
        assert stated and {name: found[name] for name in stated} == stated


def test_every_preset_is_one_that_its_editor_takes_or_says_what_to_do():
    count = 0
    for editor in editor_names():
        content = commands.read_yaml(commands.repository_root() / "config" / "editors" / f"{editor}.yaml")
        for preset in content.get("models", {}):
            if editor_class(editor).learns:
                with pytest.raises(SettingsError, match="settings of its training .*Leave out the preset"):
                    commands.preset_settings(editor, preset)
                continue
            try:
                found = commands.preset_settings(editor, preset)
            except SettingsError as error:
                assert "Give a radius" in str(error) and editor in ("grace", "lu")
                found = commands.preset_settings(editor, preset, {"radius": 1.0})
            read_settings(editor_class(editor), found)
            count += 1
    assert count > 60


@pytest.mark.parametrize(
    ("editor", "preset", "words"),
    [
        (
            "memit",
            "mini-gpt",
            r"memit.yaml has no preset 'mini-gpt' \(did you mean 'mini-gpt.*It has gpt2-xl, ",
        ),
        ("retrieval", "mini-gpt2", "one set of settings for all; leave out the preset"),
        ("rime", "mini-gpt2", r"there is no editor 'rime' \(did you mean 'rome'\?\)"),
    ],
)
def test_an_unknown_preset_or_editor_is_refused_with_the_known_ones(editor, preset, words):
    with pytest.raises(SettingsError, match=words):
        commands.preset_settings(editor, preset)


def test_without_a_checkout_a_preset_says_what_it_needs(tmp_path, monkeypatch):
    def elsewhere():
        raise PalimpsestError("site-packages has no workflow/ directory")

    for missing in (elsewhere, lambda: tmp_path):
        monkeypatch.setattr(commands, "repository_root", missing)
        with pytest.raises(
            SettingsError, match=r"config/editors/ft.yaml of a checkout.*give the settings themselves"
        ):
            commands.preset_settings("ft", "mini-gpt2")
