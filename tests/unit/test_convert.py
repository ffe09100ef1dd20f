"""`palimpsest convert`: weights in PyTorch's form become safetensors; nothing but tensors is taken, and nothing is run."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from test_security import Evil
from tiny import network, tokenizer, two_tokenizers
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from palimpsest import cli, load_model
from palimpsest.errors import ModelError
from palimpsest.models import convert as module
from palimpsest.models.convert import convert, read_tensors
from palimpsest.models.families import family_of


def old_form(folder, family: str = "gpt2", legacy: bool = False, parts: int = 1):
    """A directory as hub repositories had it: config.json, pytorch_model.bin (or parts), a tokenizer."""
    model = network(family)
    model.config.save_pretrained(folder)
    tokenizer(family_of(family).kind).save_pretrained(folder)
    state = dict(model.state_dict())
    options = {"_use_new_zipfile_serialization": not legacy}
    if parts == 1:
        torch.save(state, folder / "pytorch_model.bin", **options)
        return model
    names = {name: f"pytorch_model-{number % parts + 1:05d}.bin" for number, name in enumerate(state)}
    for file in set(names.values()):
        torch.save({name: state[name] for name in state if names[name] == file}, folder / file, **options)
    (folder / module.INDEX).write_text(json.dumps({"weight_map": names}))
    return model


@pytest.mark.parametrize(
    ("family", "legacy", "parts"), [("gpt2", False, 1), ("t5", True, 1), ("t5", False, 3), ("bert", False, 1)]
)
def test_the_same_model_comes_out(tmp_path, family, legacy, parts):
    """Also of the form before zip files, of parts with an index, and with tied weights."""
    (tmp_path / "old").mkdir()
    made = old_form(tmp_path / "old", family, legacy, parts)
    record = convert(str(tmp_path / "old"), tmp_path / "new")
    assert set(record["sha256"]) == {path.name for path in (tmp_path / "old").glob("*.bin")}
    assert record == json.loads((tmp_path / "new" / "converted.json").read_text())
    read = load_model(tmp_path / "new")
    assert read.fingerprint == record["fingerprint"]
    for name, tensor in made.state_dict().items():
        assert torch.equal(read.network.state_dict()[name], tensor), name
    assert not list((tmp_path / "new").glob("*.bin"))


def test_the_command_shows_what_it_made(tmp_path, capsys):
    (tmp_path / "old").mkdir()
    old_form(tmp_path / "old")
    assert cli.main(["convert", str(tmp_path / "old"), "--out", str(tmp_path / "new")]) == 0
    shown = capsys.readouterr()
    assert f"fingerprint {load_model(tmp_path / 'new').fingerprint}" in shown.out
    assert "converting" in shown.err


def test_precision_and_names_are_kept(tmp_path):
    (tmp_path / "old").mkdir()
    state = {name: tensor.half() for name, tensor in old_form(tmp_path / "old").state_dict().items()}
    torch.save(state, tmp_path / "old" / "pytorch_model.bin")
    convert(str(tmp_path / "old"), tmp_path / "new")
    from safetensors.torch import load_file

    written = load_file(tmp_path / "new" / "model.safetensors")
    assert set(written) == set(state)
    assert all(torch.equal(written[name], tensor) for name, tensor in state.items())


def test_a_tokenizer_from_elsewhere(tmp_path):
    (tmp_path / "old").mkdir()
    old_form(tmp_path / "old")
    own, other = two_tokenizers()
    for file in (tmp_path / "old").glob("*token*"):
        file.unlink()
    with pytest.raises(ModelError, match="Or name a place that has tokenizer.json"):
        convert(str(tmp_path / "old"), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    other.save_pretrained(tmp_path / "words")
    convert(str(tmp_path / "old"), tmp_path / "new", str(tmp_path / "words"))
    read = load_model(tmp_path / "new").tokenizer
    assert (
        read("Ada Tolvek")["input_ids"] == other("Ada Tolvek")["input_ids"] != own("Ada Tolvek")["input_ids"]
    )


def test_a_pickle_that_would_run_something_is_refused_and_not_run(tmp_path):
    """As a bare pickle, as torch writes it, among good weights, and in the older form."""
    import pickle

    (tmp_path / "old").mkdir()
    good = dict(old_form(tmp_path / "old").state_dict())
    place = tmp_path / "old" / "pytorch_model.bin"
    proof = tmp_path / "proof"
    for write in (
        lambda: place.write_bytes(pickle.dumps(Evil(proof))),
        lambda: torch.save({"weight": Evil(proof)}, place),
        lambda: torch.save({**good, "extra": Evil(proof)}, place),
        lambda: torch.save({**good, "extra": Evil(proof)}, place, _use_new_zipfile_serialization=False),
    ):
        write()
        with pytest.raises(
            ModelError, match=r"pytorch_model\.bin: the weights cannot be read as tensors alone"
        ):
            convert(str(tmp_path / "old"), tmp_path / "new")
        assert not (tmp_path / "new" / "config.json").exists()
        assert not proof.exists(), "a pickle was run"
    torch.load(place, weights_only=False)["extra"].close()  # our own, to show that it bites
    assert proof.exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([torch.zeros(2)], "expected named tensors, found list"),
        ({}, "expected named tensors"),
        ({"step": 3}, "field 'step': expected a dense tensor, found int"),
        ({"model": {"weight": torch.zeros(2)}}, "field 'model': expected a dense tensor, found dict"),
        ({"weight": torch.zeros(2, 2).to_sparse()}, "field 'weight': expected a dense tensor"),
        ({0: torch.zeros(2)}, "field 0: expected a dense tensor"),
    ],
)
def test_what_is_no_tensor_is_refused(tmp_path, content, said):
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=said):
        read_tensors(tmp_path / "pytorch_model.bin")


@pytest.mark.parametrize("version", ["2.4.1", "2.9.1+cu128"])
def test_releases_of_torch_with_holes_in_that_reader_are_refused(tmp_path, monkeypatch, version):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    assert read_tensors(tmp_path / "pytorch_model.bin")
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(ModelError, match=r"needs torch 2\.10 or newer"):
        read_tensors(tmp_path / "pytorch_model.bin")


def test_what_cannot_be_converted(tmp_path):
    (tmp_path / "old").mkdir()
    old_form(tmp_path / "old")
    with pytest.raises(ModelError, match="Give another one as --out"):
        convert(str(tmp_path / "old"), tmp_path / "old")
    with pytest.raises(ModelError, match="not pinned to a commit"):
        convert("org/name", tmp_path / "new")
    (tmp_path / "old" / module.INDEX).write_text(json.dumps({"weight_map": {"a": "../evil.bin"}}))
    with pytest.raises(ModelError, match="expected names of .bin files beside it"):
        convert(str(tmp_path / "old"), tmp_path / "new")
    (tmp_path / "old" / module.INDEX).unlink()
    state = torch.load(tmp_path / "old" / "pytorch_model.bin", weights_only=True)
    torch.save({name: state[name] for name in list(state)[:3]}, tmp_path / "old" / "pytorch_model.bin")
    with pytest.raises(ModelError, match="lacks weights"):
        convert(str(tmp_path / "old"), tmp_path / "new")
    assert not (tmp_path / "new" / "config.json").exists()  # nothing takes it for a model
    (tmp_path / "old" / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match=r"has no pytorch_model\.bin"):
        convert(str(tmp_path / "old"), tmp_path / "new")


def test_a_second_conversion_leaves_nothing_of_the_first(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    old_form(tmp_path / "a"), old_form(tmp_path / "b", "t5", parts=2)
    convert(str(tmp_path / "a"), tmp_path / "new")
    convert(str(tmp_path / "b"), tmp_path / "new")
    assert load_model(tmp_path / "new").family.name == "t5"


@pytest.mark.parametrize("damage", ["pytorch_model-00002.bin", "config.json"])
def test_a_conversion_that_fails_leaves_the_earlier_one(tmp_path, damage):
    """In the second of two parts, and at the end, where the files do not make a model."""
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    old_form(tmp_path / "a"), old_form(tmp_path / "b", "t5", parts=2)
    made = convert(str(tmp_path / "a"), tmp_path / "new")
    before = {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    if damage.endswith(".bin"):
        (tmp_path / "b" / damage).write_bytes(b"no weights")
    else:
        config = json.loads((tmp_path / "b" / damage).read_text())
        (tmp_path / "b" / damage).write_text(json.dumps(config | {"num_layers": config["num_layers"] + 1}))
    with pytest.raises(ModelError) as refused:
        convert(str(tmp_path / "b"), tmp_path / "new")
    assert str(tmp_path / "b") in str(refused.value) and ".part" not in str(refused.value)
    assert {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()} == before
    assert load_model(tmp_path / "new").fingerprint == made["fingerprint"]


def test_a_hub_model_is_downloaded_at_its_commit_and_only_the_files_that_are_read(tmp_path, monkeypatch):
    import huggingface_hub

    (tmp_path / "hub").mkdir()
    old_form(tmp_path / "hub")
    asked = {}

    def snapshot(name, **options):
        asked.update(options, name=name)
        return str(tmp_path / "hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    record = convert(f"org/name@{'a' * 40}", tmp_path / "new")
    assert (asked["name"], asked["revision"], record["source"]) == (
        "org/name",
        "a" * 40,
        f"org/name@{'a' * 40}",
    )
    assert not any(
        pattern.endswith((".py", ".msgpack", "*"))
        for pattern in asked["allow_patterns"]
        if pattern != "vocab.*"
    )


@pytest.mark.parametrize(("family", "kind"), [("gpt2", AutoModelForCausalLM), ("t5", AutoModelForSeq2SeqLM)])
def test_other_readers_of_hub_directories_open_it(tmp_path, family, kind):
    (tmp_path / "old").mkdir()
    made = old_form(tmp_path / "old", family)
    convert(str(tmp_path / "old"), tmp_path / "new")
    shutil.rmtree(tmp_path / "old")
    read = kind.from_pretrained(tmp_path / "new")
    assert all(torch.equal(read.state_dict()[name], tensor) for name, tensor in made.state_dict().items())
