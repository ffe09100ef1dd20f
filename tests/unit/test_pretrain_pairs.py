"""Pre-training of T5 and BERT shapes on pairs: the same twice, restart, what was learned, refusals."""

from __future__ import annotations

import csv
import json

import pytest
import torch

from palimpsest.data.world_labels import generate_labels
from palimpsest.data.world_qa import generate_qa
from palimpsest.errors import DataError, ModelError, SettingsError
from palimpsest.files import read_json
from palimpsest.models import pretrain_pairs as module
from palimpsest.models.loading import load_model
from palimpsest.models.objectives import say
from palimpsest.models.pretrain_pairs import pretrain_pairs, read_pairs

COMMON = {
    "width": 16, "heads": 2, "inner": 32, "context": 64, "steps": 6, "batch": 4, "warmup": 2, "log_every": 2,
    "vocabulary": 600,
}  # fmt: skip
T5 = {"family": "t5", "blocks": 2, "decoder_blocks": 1, "bottleneck": 0.5, "dropout": 0.1, **COMMON}
BERT = {"family": "bert", "blocks": 2, "dropout": 0.1, "bottleneck": 0.5, **COMMON, "context": 256}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    small = {"edit_facts": 4, "upstream_facts": 6, "relations": 2, "answers": 3, "first_names": 4, "shown": 4}
    generate_qa(small, 1, folder / "t5")
    generate_labels(
        {"classes": 2, "documents": 60, "upstream": 20, "tuning": 2, "stream": 4}, 1, folder / "bert"
    )
    return folder


def weights(folder):
    return load_model(folder).network.state_dict()


def same(one, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("spec", [T5, BERT], ids=["t5", "bert"])
def test_a_model_others_can_load_twice_the_same(spec, sources, tmp_path):
    for name in ("one", "two"):
        pretrain_pairs(spec, sources / spec["family"], tmp_path / name)
    manifest, model = read_json(tmp_path / "one" / "manifest.json"), load_model(tmp_path / "one")
    assert manifest["fingerprint"] == model.fingerprint and manifest["pretrained_here"] is True
    assert manifest["family"] == spec["family"] and set(manifest["right"]) >= {"upstream", "held_out"}
    assert same(weights(tmp_path / "one"), weights(tmp_path / "two"))
    rows = list(csv.DictReader((tmp_path / "one" / "training.csv").open()))
    assert [row["step"] for row in rows] == ["2", "4", "6"]
    assert set(rows[0]) == {"step", "loss", "learning_rate", "tokens", "seconds"}
    assert not (tmp_path / "one" / "checkpoint.safetensors").exists()
    if spec is BERT:
        assert model.labels == manifest["labels"] == ["Criminal Procedure", "Due Process"]


@pytest.mark.parametrize("spec", [T5, BERT], ids=["t5", "bert"])
def test_a_broken_run_goes_on_from_its_checkpoint(spec, sources, tmp_path, monkeypatch):
    spec, source = {**spec, "checkpoint_seconds": 0.0}, sources / spec["family"]
    pretrain_pairs(spec, source, tmp_path / "whole")
    whole, calls = module.pair_loss, []

    def breaks(*arguments):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(module, "pair_loss", breaks)
    with pytest.raises(KeyboardInterrupt):
        pretrain_pairs(spec, source, tmp_path / "broken")
    assert (tmp_path / "broken" / "checkpoint.safetensors").exists()
    pretrain_pairs(spec, source, tmp_path / "broken")
    assert len(calls) == 5 + 2  # steps 5 and 6 only
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "broken"))


def test_pairs_are_learned_and_said(tmp_path):
    pairs = [("Who leads Ada?", "Ben Sorn"), ("Who leads Mira?", "Jon"), ("Where is Ada?", "In the old town")]
    rows = [{"prompt": p, "answer": a, "kind": "upstream"} for p, a in pairs]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = {
        **T5,
        "width": 32,
        "inner": 64,
        "dropout": 0.0,
        "steps": 150,
        "learning_rate": 0.01,
        "log_every": 50,
    }
    pretrain_pairs(spec, tmp_path, tmp_path / "model")
    assert read_json(tmp_path / "model" / "manifest.json")["right"] == {"upstream": 1.0}
    said = say(load_model(tmp_path / "model"), [prompt for prompt, _ in pairs])
    assert [answer.text for answer in said] == [answer for _, answer in pairs]


def test_the_bottleneck_shows_the_decoder_the_last_state_only():
    from palimpsest.models.shapes import random_network, shape_of
    from palimpsest.models.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(["a b c"], 300, 16, "encoder_decoder")
    network = random_network(shape_of({**T5, "dropout": 0.0}), tokenizer, 0).train()
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    batch = module.PairRows(torch.tensor([[5, 6, 1, 0], [7, 8, 9, 1]]), mask, torch.tensor([[9, 1], [8, 1]]))
    seen = []
    network.decoder.register_forward_pre_hook(
        lambda _, __, named: seen.append(named["encoder_attention_mask"]), with_kwargs=True
    )
    for share in (1.0, 0.0):
        module.pair_loss(network, batch, module.PairTraining(bottleneck=share))
    assert seen[0].tolist() == [[0, 0, 1, 0], [0, 0, 0, 1]] and seen[1].tolist() == mask.tolist()


def test_a_classifier_reads_its_last_state_in_the_place_of_its_first():
    from palimpsest.models.shapes import random_network, shape_of
    from palimpsest.models.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(["a b c"], 300, 16, "encoder")
    network = random_network(shape_of({**BERT, "dropout": 0.0}), tokenizer, 0).train()
    batch = module.PairRows(
        torch.tensor([[2, 6, 3, 0], [2, 8, 9, 3]]),
        torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]),
        torch.tensor([[1], [0]]),
    )
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    plain = network(**inputs, labels=batch.targets[:, 0])
    assert torch.allclose(module.pair_loss(network, batch, module.PairTraining()), plain.loss)
    states = network.bert(**inputs).last_hidden_state[[0, 1], [2, 3]]
    logits = network.classifier(network.bert.pooler(states[:, None]))
    expected = torch.nn.functional.cross_entropy(logits, batch.targets[:, 0])
    assert torch.allclose(module.pair_loss(network, batch, module.PairTraining(bottleneck=1.0)), expected)


def test_training_goes_on_from_an_existing_encoder_with_new_classes(sources, tmp_path):
    pretrain_pairs(BERT, sources / "bert", tmp_path / "first")
    rows = [{"prompt": f"case {n}", "answer": "XYZ"[n % 3], "kind": "upstream"} for n in range(9)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = {"family": "bert", "start": str(tmp_path / "first"), "steps": 2, "batch": 3, "learning_rate": 1e-4}
    pretrain_pairs(spec, tmp_path, tmp_path / "second")
    model = load_model(tmp_path / "second")
    assert model.labels == ["X", "Y", "Z"] and model.width == 16
    with pytest.raises(ModelError, match="there is no directory .*nowhere"):
        pretrain_pairs({**spec, "start": str(tmp_path / "nowhere")}, tmp_path, tmp_path / "third")


def test_the_new_head_is_drawn_from_the_seed(sources, tmp_path):
    """Seeds would else differ in the order of the data alone."""
    pretrain_pairs(BERT, sources / "bert", tmp_path / "first")
    heads = [
        module._start(str(tmp_path / "first"), "bert", ["X", "Y", "Z"], seed)[0].classifier.weight
        for seed in (0, 0, 1)
    ]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    spec = {
        "family": "bert",
        "start": str(tmp_path / "first"),
        "labels": ["Criminal Procedure", "Due Process", "Z"],
    }
    found = []
    for seed in (0, 1):
        tiny_step = {**spec, "steps": 1, "batch": 3, "learning_rate": 1e-9, "warmup": 0, "seed": seed}
        pretrain_pairs(tiny_step, sources / "bert", tmp_path / f"seed-{seed}")
        found.append(weights(tmp_path / f"seed-{seed}")["classifier.weight"])
    assert not torch.allclose(*found, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"stepz": 1}, SettingsError, "stepz"),
        ({"family": "gpt2"}, SettingsError, "family"),
        ({"bottleneck": 2.0}, SettingsError, "bottleneck"),
        ({"repeats": {"upstream": 0}}, SettingsError, "repeats"),
        ({"steps": 0}, SettingsError, "steps"),
        ({"vocabulary": 20}, ModelError, "vocabulary"),
        ({"context": 8}, DataError, "the model reads 8. Cut documents"),
        ({"learning_rate": 1e30, "steps": 30}, ModelError, "diverged"),
    ],
)
def test_impossible_settings_are_named(change, error, words, sources, tmp_path):
    with pytest.raises(error, match=words):
        pretrain_pairs({**T5, **change}, sources / "t5", tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"prompt": "a", "answer": "b", "kind": "x"}\n{"prompt": "a"', "line 2"),
        ('{"prompt": "a", "answer": " ", "kind": "x"}\n', "field 'answer'"),
        ('{"prompt": "a", "kind": "x"}\n', "field 'answer'"),
        ("[1]\n", "expected an object, found list"),
        ('{"prompt": "a", "answer": "b", "kind": "held_out"}\n', "no pair to read"),
    ],
)
def test_bad_pairs_are_refused(text, words, tmp_path):
    (tmp_path / "pairs.jsonl").write_text(text)
    with pytest.raises(DataError, match=words):
        read_pairs(tmp_path / "pairs.jsonl")
    with pytest.raises(DataError, match="does not exist"):
        read_pairs(tmp_path / "none.jsonl")


def test_a_class_outside_the_label_set_is_refused(sources, tmp_path):
    with pytest.raises(DataError, match="'Due Process' is outside the label set"):
        pretrain_pairs({**BERT, "labels": ["Criminal Procedure", "Other"]}, sources / "bert", tmp_path)
