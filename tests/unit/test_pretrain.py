"""Tokenizer, rows, the subject bottleneck, training with restart, and manifests of models."""

from __future__ import annotations

import csv
import json

import pytest
import torch

from palimpsest.data.world import generate
from palimpsest.errors import DataError, ModelError, SettingsError
from palimpsest.files import read_json
from palimpsest.models import pretrain as module
from palimpsest.models.loading import load_model
from palimpsest.models.manifest import describe_model
from palimpsest.models.pretrain import TextTraining, learning_rate, pretrain
from palimpsest.models.pretrain_masks import bottleneck_mask, masked_below
from palimpsest.models.pretrain_rows import Packer, fact_sentence, read_facts
from palimpsest.models.shapes import random_network, shape_of
from palimpsest.models.tokenizer import END_OF_TEXT, single_token_share, train_tokenizer

TINY = {
    "family": "gpt2",
    "width": 16,
    "blocks": 2,
    "heads": 2,
    "inner": 32,
    "context": 48,
    "steps": 6,
    "batch": 2,
    "length": 32,
    "warmup": 2,
    "vocabulary": 900,
    "log_every": 2,
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    generate(
        {
            "counterfact": 12,
            "zsre": 12,
            "probes": 4,
            "unrelated": 4,
            "relations": 2,
            "answers": 3,
            "first_names": 6,
            "facts_per_subject": 1,
            "text_lines": 20,
        },
        1,
        folder,
    )
    return folder


def weights(folder):
    return load_model(folder).network.state_dict()


def same(one, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize(
    "extra",
    [{}, {"family": "gptj", "rotary": 4, "subject_bottleneck": 0.9, "closed_blocks": 1, "dropout": 0.1}],
)
def test_pretraining_writes_a_model_others_can_load_twice_the_same(source, tmp_path, extra):
    pretrain({**TINY, **extra}, source, tmp_path / "one")
    pretrain({**TINY, **extra}, source, tmp_path / "two")
    manifest = read_json(tmp_path / "one" / "manifest.json")
    model = load_model(tmp_path / "one")
    assert manifest["fingerprint"] == model.fingerprint and manifest["pretrained_here"] is True
    assert manifest["family"] == TINY["family"] if not extra else "gptj"
    assert same(weights(tmp_path / "one"), weights(tmp_path / "two"))
    rows = list(csv.DictReader((tmp_path / "one" / "training.csv").open()))
    assert [row["step"] for row in rows] == ["2", "4", "6"]
    assert set(rows[0]) == {"step", "loss", "learning_rate", "tokens", "seconds"}
    assert not (tmp_path / "one" / "checkpoint.safetensors").exists()


def test_a_broken_run_goes_on_from_its_checkpoint(source, tmp_path, monkeypatch):
    spec = {**TINY, "dropout": 0.1, "subject_bottleneck": 0.5, "checkpoint_seconds": 0.0}
    pretrain(spec, source, tmp_path / "whole")
    whole, calls = module._loss, []

    def breaks(*arguments):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(module, "_loss", breaks)
    with pytest.raises(KeyboardInterrupt):
        pretrain(spec, source, tmp_path / "broken")
    assert (tmp_path / "broken" / "checkpoint.safetensors").exists()
    assert not (tmp_path / "broken" / "manifest.json").exists()
    pretrain(spec, source, tmp_path / "broken")
    assert len(calls) == 5 + 2  # steps 5 and 6 only
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "broken"))


def test_the_bottleneck_hides_a_subject_but_its_last_token():
    hidden = torch.tensor([[False, True, True, False, False, True, False]])  # subjects: tokens 1-3 and 5-6
    seen = bottleneck_mask(hidden)[0, 0] == 0
    assert seen[3].tolist() == [True, True, True, True, False, False, False]
    assert seen[4].tolist() == [True, False, False, True, True, False, False]
    assert seen[6].tolist() == [True, False, False, True, True, True, True]
    assert seen.diagonal().all() and not seen.triu(1).any()
    shut = bottleneck_mask(hidden, closed=True)[0, 0] == 0
    assert shut[3].tolist() == seen[3].tolist() and shut[4].tolist() == [
        True,
        False,
        False,
        False,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("family", ["gpt2", "gptj"])
def test_closed_blocks_let_later_tokens_read_only_what_was_written_at_the_subject(family):
    shape = shape_of(
        {
            "family": family,
            "width": 16,
            "blocks": 3,
            "heads": 2,
            "rotary": 4,
            "context": 16,
            "initial_range": 0.3,
        }
    )
    network = random_network(shape, train_tokenizer(["a b c"], 300, 16), 0).eval()
    hidden = torch.tensor([[False, True, False, False, False]])
    closed, opened = bottleneck_mask(hidden, closed=True), bottleneck_mask(hidden)

    def after_two_blocks(subject):
        ids = torch.tensor([[5, subject, subject + 1, 8, 9]])
        with masked_below(network, 2, closed):
            return network(input_ids=ids, attention_mask=opened, output_hidden_states=True).hidden_states

    one, other = after_two_blocks(20), after_two_blocks(30)
    assert torch.equal(one[2][0, 3:], other[2][0, 3:]) and not torch.equal(one[2][0, 2], other[2][0, 2])
    assert not torch.allclose(one[3][0, 3:], other[3][0, 3:])  # the third block is open


def test_training_learns_and_the_rate_rises_and_falls(source, tmp_path):
    pretrain({**TINY, "steps": 60, "batch": 4, "learning_rate": 0.01, "log_every": 10}, source, tmp_path)
    losses = [float(row["loss"]) for row in csv.DictReader((tmp_path / "training.csv").open())]
    assert losses[-1] < losses[0] - 0.5
    training = TextTraining(steps=100, warmup=10, learning_rate=1.0, final_share=0.1)
    rates = [learning_rate(step, training) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == 1.0 and rates[-1] == pytest.approx(0.1, abs=0.01)


def test_answers_after_a_blank_are_single_tokens():
    texts = ["The city of Ada Tolvek is Tolburg.", "The city of Ono Tolvek is Rimburg."] * 3
    tokenizer = train_tokenizer(texts, 600, 32)
    assert single_token_share(tokenizer, ["Tolburg", "Rimburg"]) == 1.0
    assert single_token_share(tokenizer, ["Tolburg", "Unheard-of"]) == 0.5
    assert (
        tokenizer.decode(tokenizer(texts[0])["input_ids"]) == texts[0] and tokenizer.eos_token == END_OF_TEXT
    )
    with pytest.raises(ModelError, match="257"):
        train_tokenizer(texts, 100, 32)


def test_sentences_carry_weights_and_rows_are_full():
    text = "The city of Ada Tolvek is Tolburg"
    tokenizer = train_tokenizer([text + "."] * 3, 600, 32)
    fact = {"text": text, "subject": [12, 22], "answer": [26, 33]}
    sentence = fact_sentence(tokenizer, fact, 1.0, 0.25)
    for form in (0, 1):
        tokens = tokenizer.convert_ids_to_tokens(sentence.ids[form])
        assert [t for t, w in zip(tokens, sentence.weights[form], strict=True) if w == 1.0] == ["ĠTolburg"]
        assert [t for t, h in zip(tokens, sentence.hidden[form], strict=True) if h] == ["ĠAda"]
    packer = Packer([sentence], [1], [], tokenizer.eos_token_id, 20, 3, 0.0, 0.5, 7)
    batch, again = next(packer.batches()), next(packer.batches())
    assert batch.tokens.shape == batch.weights.shape == batch.hidden.shape == (3, 20)
    assert (batch.tokens == again.tokens).all()
    assert batch.tokens[0, 0] == sentence.ids[0][0]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"stepz": 1}, SettingsError, "stepz"),
        ({"length": 999}, SettingsError, "context"),
        ({"heads": 3}, SettingsError, "heads"),
        ({"family": "rnn"}, ModelError, "rnn"),
        ({"steps": 0}, SettingsError, "steps"),
        ({"text_share": 1.0}, SettingsError, "text_share"),
        ({"vocabulary": 300, "require_single_tokens": True}, ModelError, "vocabulary"),
        ({"learning_rate": 1e30}, ModelError, "diverged"),
    ],
)
def test_bad_specs_are_refused_by_name(source, tmp_path, change, error, words):
    with pytest.raises(error, match=words):
        pretrain({**TINY, **change}, source, tmp_path)
    assert not (tmp_path / "manifest.json").exists()


def test_damaged_facts_are_refused_with_file_line_and_field(tmp_path):
    with pytest.raises(DataError, match=r"facts\.jsonl"):
        pretrain(TINY, tmp_path, tmp_path / "out")
    (tmp_path / "facts.jsonl").write_text(
        json.dumps({"text": "A b", "subject": None, "answer": [2, 9], "kind": "prompt"}) + "\n"
    )
    with pytest.raises(DataError, match=r"line 1.*answer"):
        pretrain(TINY, tmp_path, tmp_path / "out")
    good = {"text": "A b", "subject": None, "answer": [2, 3], "kind": "prompt"}
    for field, value in (("answer", None), ("answer", ...), ("subject", ...), ("subject", [1])):
        fact = {name: entry for name, entry in (good | {field: value}).items() if entry is not ...}
        (tmp_path / "facts.jsonl").write_text(json.dumps(fact) + "\n")
        with pytest.raises(DataError, match=rf"line 1, field '{field}': the span"):
            read_facts(tmp_path / "facts.jsonl")
    (tmp_path / "facts.jsonl").write_text(json.dumps(good) + "\n")
    assert read_facts(tmp_path / "facts.jsonl") == [good]
    (tmp_path / "facts.jsonl").write_text('{"text": "A b", "subj')
    with pytest.raises(DataError, match="line 1"):
        pretrain(TINY, tmp_path, tmp_path / "out")


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama"])
def test_random_stand_ins_of_every_family(family, tmp_path):
    spec = {
        "kind": "random",
        "family": family,
        "width": 16,
        "blocks": 2,
        "heads": 2,
        "inner": 24,
        "rotary": 4,
        "context": 32,
        "vocabulary": 300,
        "seed": 5,
    }
    describe_model(spec, tmp_path / "model")
    model = load_model(tmp_path / "model")
    assert (model.family.name, model.width, model.inner_width, model.n_blocks) == (family, 16, 24, 2)
    describe_model({"kind": "path", "path": str(tmp_path / "model")}, tmp_path / "described")
    manifest = read_json(tmp_path / "described" / "manifest.json")
    assert manifest["fingerprint"] == model.fingerprint == load_model(tmp_path / "described").fingerprint


def test_unknown_models_are_refused(tmp_path):
    with pytest.raises(SettingsError, match="kind 'magic'"):
        describe_model({"kind": "magic"}, tmp_path)
    with pytest.raises(ModelError, match="nowhere"):
        describe_model({"kind": "path", "path": str(tmp_path / "nowhere")}, tmp_path)
    with pytest.raises(SettingsError, match="'id'"):
        describe_model({"kind": "hub"}, tmp_path)
