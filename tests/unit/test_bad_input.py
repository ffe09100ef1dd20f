"""Bad input is refused with a sentence a stranger understands, and nothing half-written is taken for a result."""

from __future__ import annotations

import errno
import json
import os

import pytest
import torch
from tiny import breaking_off, network, random_statistics, some_edits, tiny_model, tokenizer

from palimpsest import Edit, load_model, make_editor
from palimpsest.editors import base
from palimpsest.editors.base import EditorState, load_state, save_state
from palimpsest.edits import read_edits, write_edits
from palimpsest.errors import DataError, ModelError, PalimpsestError, SettingsError, StatisticsError
from palimpsest.files import WriteError, read_json, write_text
from palimpsest.statistics.covariance import CovarianceStatistics

MEMIT = {"layers": [1, 2], "steps": 3, "context_lengths": [[6, 2]]}


@pytest.fixture
def directory(tmp_path):
    """A model directory in hub format."""
    folder = tmp_path / "model"
    network("gpt2").save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def test_prompt_without_its_subject():
    with pytest.raises(DataError, match="'Ada' does not occur in the prompt"):
        Edit(prompt="Mira lives in", target="Velden", subject="Ada")


@pytest.mark.parametrize("field", ["prompt", "target"])
def test_empty_text(field):
    with pytest.raises(DataError, match=f"the {field} is empty"):
        Edit(**({"prompt": "Ada lives in", "target": "Velden"} | {field: "  "}))


@pytest.mark.parametrize("field", ["prompt", "target"])
def test_what_is_no_text(field):
    with pytest.raises(DataError, match=f"field '{field}': the {field} is no text: 5"):
        Edit(**({"prompt": "Ada lives in", "target": "Velden"} | {field: 5}))


@pytest.mark.parametrize("batch", ["Ada", some_edits(1)[0], ["Ada"], [{"prompt": "a", "target": "b"}]])
def test_a_batch_that_is_no_list_of_edits_leaves_the_model_alone(gpt2, batch):
    editor = make_editor("ft", gpt2, {"layer": 1, "steps": 1})
    before = {name: tensor.clone() for name, tensor in gpt2.network.state_dict().items()}
    with pytest.raises(DataError, match=r"ft\.edit\(\) takes a list of Edit, not "):
        editor.edit(batch)
    assert all(torch.equal(tensor, before[name]) for name, tensor in gpt2.network.state_dict().items())


@pytest.mark.parametrize(
    ("prompts", "tokens", "words"),
    [
        ("", 5, "not empty"),
        (["Ada", ""], 5, "not empty"),
        ([], 5, "not empty"),
        ([5], 5, "not empty"),
        ("Ada", 0, "max_new_tokens = 0"),
        ("Ada", "3", "max_new_tokens = '3'"),
    ],
)
def test_what_cannot_be_continued(gpt2, prompts, tokens, words):
    editor = make_editor("ft", gpt2, {"layer": 1, "steps": 1})
    with pytest.raises(PalimpsestError, match=words):
        editor.generate(prompts, max_new_tokens=tokens)


@pytest.mark.parametrize(
    ("device", "there"), [("gpu", "There is: cpu"), ("cuda:99", "There is: cpu"), (7.5, "cpu")]
)
def test_a_device_that_is_not_there(directory, device, there):
    with pytest.raises(ModelError, match=f"device {device!r} cannot be used .*{there}"):
        load_model(directory, device=device)


def test_torchs_own_dtype_is_taken(directory):
    assert load_model(directory, dtype=torch.float64).dtype == torch.float64
    with pytest.raises(ModelError, match="dtype 'int8' is not known"):
        load_model(directory, dtype=torch.int8)


def test_parts_of_an_editor_that_are_something_else(gpt2, directory):
    with pytest.raises(SettingsError, match="built on what load_model"):
        make_editor("ft", str(directory))
    with pytest.raises(SettingsError, match="seed is 'a'; expected a whole number from 0"):
        make_editor("ft", gpt2, {"layer": 1}, seed="a")
    with pytest.raises(SettingsError, match="expected CovarianceStatistics or a path, not 5"):
        make_editor("memit", gpt2, MEMIT, 5)


def test_target_longer_than_the_context(gpt2):
    long = Edit(prompt="Ada Tolvek lives in", subject="Ada Tolvek", target="Velden " * 80)
    report = make_editor("memit", gpt2, MEMIT, random_statistics(gpt2, (1, 2))).edit([long, some_edits()[0]])
    assert "reads at most 64" in report.failed[0].reason and report.applied == ["edit-0"]


def test_target_that_an_encoder_decoder_cannot_say_fails_alone():
    """Not the batch it is in, and with its own words."""
    model = tiny_model("t5")
    model.tokenizer.model_max_length = 64
    settings = {"layer": 1, "learning_rate": 1e-2, "epsilon": None, "steps": 2, "loss": "own"}
    editor = make_editor("ft", model, settings)
    report = editor.edit(
        [
            Edit("Ada lives in", "Velden " * 80, identifier="long"),
            Edit("Mira lives in", "Velden", identifier="short"),
        ]
    )
    assert report.applied == ["short"] and report.failed[0].edit == "long"
    assert "the target needs" in report.failed[0].reason and "says at most 64" in report.failed[0].reason


@pytest.mark.parametrize(
    ("search", "layer", "words"), [("fast", 9, "blocks 0 to 3"), ("plain", 2, "at the last one")]
)
def test_a_loss_layer_that_cannot_be_read_is_refused_at_once(gpt2, search, layer, words):
    settings = {**MEMIT, "target_search": search, "loss_layer": layer}
    with pytest.raises(SettingsError, match=f"loss_layer is {layer}.*{words}"):
        make_editor("memit", gpt2, settings, random_statistics(gpt2, (1, 2)))


def test_generation_ends_where_the_context_ends(gpt2):
    editor = make_editor("ft", gpt2, {"layer": 1, "learning_rate": 1e-2, "epsilon": None})
    words, length = "Ada lives in", 0
    while length < 60:
        words = f"Mira and {words}"
        length = len(gpt2.tokenizer(words)["input_ids"])
    said = editor.generate([words], max_new_tokens=20)
    assert len(gpt2.tokenizer(said[0])["input_ids"]) <= 64 - length
    with pytest.raises(DataError, match="reads at most 64"):
        editor.generate([words * 2])


@pytest.mark.parametrize(("name", "prompt", "warned"), [
    ("memit", "Ada Tolvek, says Ada Tolvek, lives in", True),
    ("memit", "Ada in Adaville lives in", False),
    ("ft", "Ada Tolvek, says Ada Tolvek, lives in", False),
])  # fmt: skip
def test_a_subject_that_occurs_twice_is_mentioned_where_it_matters(gpt2, caplog, name, prompt, warned):
    subject = "Ada Tolvek" if "Tolvek" in prompt else "Ada"
    settings = MEMIT if name == "memit" else {"layer": 1, "learning_rate": 1e-2, "epsilon": None, "steps": 1}
    statistics = random_statistics(gpt2, (1, 2)) if name == "memit" else None
    make_editor(name, gpt2, settings, statistics).edit([Edit(prompt, "Velden", subject=subject)])
    assert ("occurs more than once" in caplog.text) is warned


def test_missing_subject_is_a_failed_edit(gpt2):
    report = make_editor("memit", gpt2, MEMIT, random_statistics(gpt2, (1, 2))).edit(
        [Edit("Ada lives in", "Velden")]
    )
    assert "needs to know the subject" in report.failed[0].reason


def test_unknown_layer(gpt2):
    with pytest.raises(ModelError, match="layer 9 does not exist: tiny-gpt2 has blocks 0 to 3"):
        make_editor("memit", gpt2, {"layers": [9]}, random_statistics(gpt2, (1, 2)))


def test_layer_without_statistics(gpt2):
    with pytest.raises(SettingsError, match=r"statistics hold layers \[1, 2\]"):
        make_editor("memit", gpt2, {"layers": [2, 3]}, random_statistics(gpt2, (1, 2)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lamda": 3}, "has no setting 'lamda'"),
        ({"learning_rate_ratio": -1.0}, "learning_rate_ratio"),
        ({"stop_loss": float("nan")}, "stop_loss"),
        ({"loss_layer": 0, "layers": [1, 2]}, "at the last edited layer or above"),
        ({"layers": []}, "at least one layer"),
        ({"layers": [2, 1]}, "must rise"),
        ({"clamp": -1.0}, "must be positive"),
        ({"alpha_z": float("nan")}, "alpha_z"),
        ({"accumulate": "released"}, "hooks: false"),
        ({"padding": "left"}, "masked or official"),
        ({"steps": "3"}, "setting steps = '3' is not allowed: expected a whole number"),
        ({"steps": 2.5}, "setting steps = 2.5 is not allowed: expected a whole number"),
        ({"layers": [0.5]}, "setting layers = .* expected a list of"),
        ({"context_texts": []}, "the first group must be"),
        ({"context_texts": {}}, "setting context_texts = {} is not allowed"),
    ],
)
def test_wrong_settings_name_themselves(gpt2, settings, words):
    with pytest.raises(SettingsError, match=words):
        make_editor("comeba_hk", gpt2, settings, random_statistics(gpt2, (1, 2)))


def test_unknown_editor(gpt2):
    with pytest.raises(SettingsError, match="there is no editor 'rime' .*rome"):
        make_editor("rime", gpt2)


def test_missing_statistics(gpt2):
    with pytest.raises(SettingsError, match="needs covariance statistics"):
        make_editor("memit", gpt2, MEMIT)


def test_statistics_of_another_model(gpt2):
    with pytest.raises(StatisticsError, match="belong to model"):
        make_editor("memit", gpt2, MEMIT, random_statistics(tiny_model("gpt2", seed=5), (1, 2)))


def test_non_finite_statistics():
    with pytest.raises(StatisticsError, match="non-finite"):
        CovarianceStatistics({1: torch.full((3, 3), float("nan"))}, 10)


def test_truncated_statistics(gpt2, tmp_path):
    random_statistics(gpt2, (1, 2)).save(tmp_path)
    file = tmp_path / "covariance.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(StatisticsError, match="covariance.safetensors"):
        make_editor("memit", gpt2, MEMIT, tmp_path)


def test_truncated_weights(directory):
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot load the model"):
        load_model(directory)


def test_missing_tokenizer(directory):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).unlink()
    with pytest.raises(ModelError, match="tokenizer"):
        load_model(directory)


def test_no_model_directory(tmp_path):
    with pytest.raises(ModelError, match="is not a model directory"):
        load_model(tmp_path / "nowhere")


def test_wrong_family(directory):
    with pytest.raises(ModelError, match="is a gpt2 model, not gptj"):
        load_model(directory, family="gptj")


def test_unknown_family(directory):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"model_type": "bloom"}))
    with pytest.raises(ModelError, match="model family 'bloom' is not known"):
        load_model(directory)


def test_pickled_weights_are_not_read(directory):
    """Only safetensors: a pickle in the directory is never opened."""
    (directory / "model.safetensors").rename(directory / "hidden")
    torch.save({"lm_head.weight": torch.zeros(2, 2)}, directory / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot load the model"):
        load_model(directory)


def test_weights_that_are_not_finite(directory):
    model = network("gpt2")
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight[0, 0] = float("inf")
    model.save_pretrained(directory)
    with pytest.raises(ModelError, match="not finite"):
        load_model(directory)


def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    """Write beside, flush, rename: an error in between changes nothing and leaves no litter."""
    target = tmp_path / "rows.json"
    write_text(target, "old")

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match="No space left.*Free some space"):
        write_text(target, "new")
    assert target.read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["rows.json"]


def test_truncated_json_names_the_file(tmp_path):
    (tmp_path / "run.json").write_text('{"spec": ')
    with pytest.raises(PalimpsestError, match="run.json is not valid JSON"):
        read_json(tmp_path / "run.json")


def test_bad_line_of_edits_names_the_line(tmp_path):
    write_edits(tmp_path / "edits.jsonl", some_edits(2))
    with (tmp_path / "edits.jsonl").open("a") as file:
        file.write('{"prompt": "x"}\n')
    with pytest.raises(DataError, match="line 3"):
        read_edits(tmp_path / "edits.jsonl")


def test_edits_go_round_with_strange_characters(tmp_path):
    strange = Edit(prompt="A\u2028b {} \x85 lives", target="Ve\u2029l", subject="A\u2028b", identifier="x")
    write_edits(tmp_path / "e.jsonl", [strange, *some_edits()])
    assert read_edits(tmp_path / "e.jsonl") == [strange, *some_edits()]


def test_state_of_another_editor_or_model(gpt2, tmp_path):
    memit = make_editor("memit", gpt2, MEMIT, random_statistics(gpt2, (1, 2)))
    memit.edit(some_edits(2))
    save_state(memit, tmp_path)
    memit.remove()
    with pytest.raises(PalimpsestError, match="field 'editor'"):
        load_state(make_editor("ft", gpt2, {"layer": 1}), tmp_path)
    with pytest.raises(PalimpsestError, match="field 'model'"):
        other = tiny_model("gpt2", seed=3)
        load_state(make_editor("memit", other, MEMIT, random_statistics(other, (1, 2))), tmp_path)
    (tmp_path / "state.safetensors").write_bytes(b"short")
    with pytest.raises(PalimpsestError, match="missing or damaged"):
        load_state(memit, tmp_path)
    with pytest.raises(
        PalimpsestError, match=r"memit.load_state\(\) takes what state\(\) gave, not 'folder'"
    ):
        memit.load_state("folder")
    with pytest.raises(PalimpsestError, match="to and loaded from a folder"):
        load_state(memit, memit.state())


def test_the_two_files_of_a_state_belong_together(gpt2, tmp_path, monkeypatch):
    """Killed between the two while an older state was replaced: no new tensors under the old description."""
    editor = make_editor("ft", gpt2, {"layer": 1, "steps": 1})
    save_state(editor, tmp_path / "first")
    editor.edit(some_edits(1))
    save_state(editor, tmp_path / "second")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("palimpsest.editors.base.write_json", breaking_off(base.write_json, 1))
        save_state(editor, tmp_path / "first")
    with pytest.raises(PalimpsestError, match=r"state\.json does not exist"):
        load_state(editor, tmp_path / "first")
    editor.remove()
    save_state(editor, tmp_path / "first")
    (tmp_path / "first" / "state.safetensors").replace(tmp_path / "second" / "state.safetensors")
    with pytest.raises(PalimpsestError, match=r"not the one that state\.json was written with"):
        load_state(editor, tmp_path / "second")
    content = json.loads((tmp_path / "second" / "state.json").read_text())
    (tmp_path / "second" / "state.json").write_text(json.dumps({**content, "format": 1}))
    with pytest.raises(PalimpsestError, match=r"field 'format': 1, but this version reads 3"):
        load_state(editor, tmp_path / "second")


def test_tensors_of_a_state_may_share_memory(gpt2, tmp_path, monkeypatch):
    editor, one = make_editor("ft", gpt2, {"layer": 1}), torch.ones(4)
    monkeypatch.setattr(editor, "state", lambda: EditorState({"a": one, "b": one[:2]}, {}))
    save_state(editor, tmp_path)
    assert (tmp_path / "state.json").is_file()
