"""The library as the README shows it: load, edit, ask, look inside, undo, save, load."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from tiny import TEXTS, network, random_statistics, tokenizer

import palimpsest
from palimpsest import (
    Edit,
    collect_covariance,
    load_model,
    load_state,
    make_editor,
    preset_settings,
    save_state,
)
from palimpsest.errors import DataError
from palimpsest.statistics.covariance import CovarianceSettings

SETTINGS = {
    "layers": [1, 2],
    "lam_ratio": 0.5,
    "learning_rate_ratio": 0.05,
    "steps": 5,
    "context_lengths": [[6, 2]],
}
EDIT = Edit(prompt="Ada Tolvek lives in the city of", subject="Ada Tolvek", target="Velden")


def test_the_readme_example(tmp_path):
    """Directory in, statistics from a text, edit with a record, answers, state, removal."""
    network("gpt2").save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    model = load_model(tmp_path / "model", dtype="float32", device="cpu")
    collect_covariance(
        model, TEXTS * 10, CovarianceSettings(layers=(1, 2), tokens=2000), progress=False
    ).save(tmp_path / "s")
    untouched = palimpsest.make_editor("ft", model, {"layer": 1}).generate(EDIT.prompt, max_new_tokens=4)

    editor = make_editor("comeba_hk", model, settings=SETTINGS, statistics=tmp_path / "s")
    report = editor.edit([EDIT], record=True)
    assert report.applied == [EDIT.prompt] and not report.failed and report.seconds > 0
    shown = report.record
    assert shown["z"].shape == (1, 32) and len(shown["losses"][0]) <= 5
    assert set(shown["keys"]) == set(shown["residuals"]) == set(shown["updates"]) == {1, 2}
    assert (
        shown["updates"][1].shape == (32, 48)
        and set(shown["alpha"]) == {1, 2}
        and len(shown["alpha_history"]) == 1
    )
    assert shown["z_scores"][1].shape == shown["swapped"][1].shape
    looked = editor.inspect([EDIT.prompt], [EDIT.subject])
    assert {row["layer"] for row in looked} == {1, 2} and len(looked[0]["z"]) == looked[0]["tokens"]

    after = editor.generate(EDIT.prompt, max_new_tokens=4)
    save_state(editor, tmp_path / "state")
    state = editor.state()
    editor.remove()
    assert editor.generate(EDIT.prompt, max_new_tokens=4) == untouched
    editor.load_state(state)
    assert editor.generate(EDIT.prompt, max_new_tokens=4) == after
    editor.remove()
    load_state(editor, tmp_path / "state")
    assert editor.generate(EDIT.prompt, max_new_tokens=4) == after
    for wrong in (5, [], [""], ["Ada", 5], None):
        with pytest.raises(DataError, match=r"generate\(\) takes texts"):
            editor.generate(wrong)


def test_an_editor_takes_the_settings_of_a_preset(tmp_path):
    """What config/editors/*.yaml says for a model goes into `make_editor`, settings of one's own over it."""
    network("gpt2").save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    model = load_model(tmp_path)
    settings = preset_settings("comeba_hk", "mini-gpt2", {"steps": 3})
    editor = make_editor("comeba_hk", model, settings, random_statistics(model, (0, 1, 2)))
    assert list(editor.settings.layers) == [0, 1, 2] and editor.settings.steps == 3
    assert editor.settings.lam_ratio == 0.5 and editor.settings.lam is None
    assert editor.edit([EDIT]).applied == [EDIT.prompt]


def test_import_stays_light():
    """`import palimpsest` loads neither torch nor pandas; the names come when they are used."""
    code = "import sys, palimpsest; print({'torch', 'transformers', 'pandas'} & set(sys.modules)); palimpsest.Edit"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
    assert "make_editor" in dir(palimpsest)


def test_same_seed_same_edit(tmp_path):
    """All randomness is seeded: two editors on two copies of a model agree to the last bit; another seed differs."""
    network("gpt2").save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    found = []
    for seed in (3, 3, 4):
        model = load_model(tmp_path)
        statistics = collect_covariance(
            model, TEXTS * 10, CovarianceSettings(layers=(1, 2), tokens=2000), progress=False
        )
        editor = make_editor("memit", model, SETTINGS, statistics, seed=seed)
        editor.edit([EDIT])
        found.append(editor.state().tensors["update.2"].clone())
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
