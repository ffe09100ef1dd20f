"""All kinds of models: reading them from directories, naming their parts, making random ones, refusing wrong ones."""

from __future__ import annotations

import json

import pytest
import torch
from tiny import ALL_FAMILIES, LABELS, TEXTS, network, tiny_model, tokenizer

from palimpsest import Edit, make_editor
from palimpsest.errors import ModelError, SettingsError
from palimpsest.models.families import FAMILIES, matrix_view
from palimpsest.models.hooks import attach
from palimpsest.models.loading import load_model
from palimpsest.models.manifest import describe_model
from palimpsest.models.objectives import encode, row_losses, say
from palimpsest.models.shapes import shape_of
from palimpsest.models.tokenizer import train_tokenizer
from palimpsest.models.tokens import encode_prompts

TINY = {"width": 32, "blocks": 2, "heads": 2, "vocabulary": 300}


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_a_directory_gives_the_same_model(family, tmp_path):
    """Written in hub format and read back: the kind, the classes, the losses and the answers."""
    model = tiny_model(family)
    model.network.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    read = load_model(tmp_path)
    assert (read.kind, read.labels, read.context) == (model.kind, model.labels, 64)
    answer = LABELS[2] if family == "bert" else "Velden"
    inputs = encode(read, ["Mira Sorn lives in"], [answer])
    assert torch.equal(inputs.targets, encode(model, ["Mira Sorn lives in"], [answer]).targets)
    assert torch.allclose(row_losses(read, inputs), row_losses(model, inputs), atol=1e-6)
    assert say(read, ["Mira Sorn lives in"], 5) == say(model, ["Mira Sorn lives in"], 5)


@pytest.mark.parametrize("family", [*ALL_FAMILIES, "t5-plain"])
def test_sites_are_linear_maps(family):
    """mlp_in reads the residual stream, mlp_out writes it; any other site is a path from the block."""
    model = tiny_model(family.removesuffix("-plain"), gated=not family.endswith("plain"))
    assert model.n_blocks == 4 and (model.width, model.inner_width) == (32, 48)
    for layer in range(4):
        assert matrix_view(model.linear(layer, "mlp_in")).shape == (48, 32)
        assert model.linear(layer, "mlp_out") is model.mlp_out(layer)
    if model.kind == "encoder_decoder":
        assert model.blocks is model.network.encoder.block
        assert model.linear(2, "layer.0.SelfAttention.o").weight.shape == (32, 32)
    norm = {"gpt2": "ln_1", "gptj": "ln_1", "llama": "input_layernorm", "bert": "output.LayerNorm"}
    with pytest.raises(ModelError, match="is no linear map"):
        model.linear(0, norm.get(model.family.name, "layer.0.layer_norm"))
    with pytest.raises(ModelError, match="site 'mlp_mid' does not exist.*mlp_in, mlp_out"):
        model.linear(0, "mlp_mid")
    for layer in (-1, 4):
        with pytest.raises(ModelError, match=f"layer {layer} does not exist.*0 to 3"):
            model.linear(layer, "mlp_out")


def test_the_table_names_a_kind_for_every_family():
    """Fields of a decoder are there for decoders, and a norm or a pooler before the head of the others."""
    for row in FAMILIES.values():
        assert row.kind in ("decoder", "encoder_decoder", "encoder")
        assert (row.past_argument is not None) == (row.kind == "decoder")
        assert (row.pooler is not None) == (row.kind == "encoder") == (row.final_norm is None)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_random_stand_ins(family, tmp_path):
    """A manifest of kind random makes a model that says something, the same one for the same seed."""
    spec = {"kind": "random", "family": family, "rotary": 4, "seed": 3, **TINY}
    for name in ("a", "b"):
        describe_model(spec, tmp_path / name)
    model, again = load_model(tmp_path / "a"), load_model(tmp_path / "b")
    assert model.fingerprint == again.fingerprint and model.family.name == family
    assert len(say(model, ["A text.", "Another one"], 3)) == 2
    shape = json.loads((tmp_path / "a" / "manifest.json").read_text())["shape"]
    assert ("decoder_blocks" in shape) == (family == "t5") and ("labels" in shape) == (family == "bert")


def test_shapes_of_t5_and_bert(tmp_path):
    """Own keys are read and checked by name; a foreign key is refused."""
    describe_model({"kind": "random", "family": "t5", "gated": False, "decoder_blocks": 1, **TINY}, tmp_path)
    model = load_model(tmp_path)
    assert len(model.network.decoder.block) == 1 and hasattr(model.block(0).layer[1].DenseReluDense, "wi")
    assert shape_of({"family": "bert", "labels": ["civil", "criminal"]})["labels"] == ["civil", "criminal"]
    for labels in (1, ["civil", "civil"], None, "civil"):
        with pytest.raises(SettingsError, match="'labels'.*two different names"):
            shape_of({"family": "bert", "labels": labels})
    with pytest.raises(SettingsError, match="'decoder_blocks'"):
        shape_of({"family": "t5", "decoder_blocks": -1})
    with pytest.raises(SettingsError, match="unknown key 'labels'"):
        describe_model({"kind": "random", "family": "gpt2", "labels": 3, **TINY}, tmp_path)


def test_a_decoder_only_editor_refuses_other_models():
    """COMEBA-HK, MEMIT and ROME say so before anything else; so does what they are built on."""
    for family in ("t5", "bert"):
        model = tiny_model(family)
        for name in ("comeba_hk", "memit", "rome"):
            with pytest.raises(ModelError, match=f"{name} needs a decoder-only.*{family}"):
                make_editor(name, model)
        with pytest.raises(ModelError, match="needs a decoder-only"):
            model.logits(encode_prompts(model, ["Mira"]))
    with pytest.raises(ModelError, match="has no norm after its last block"):
        model.final_norm.eval()
    assert make_editor("ft", tiny_model("gpt2"), {"layer": 1}).edit([Edit("Mira lives in", "Velden")]).applied


def test_directories_that_are_not_whole(tmp_path):
    """A classifier without its head, a tokenizer that writes no end mark: refused by name."""
    bert = tiny_model("bert")
    bert.network.bert.save_pretrained(tmp_path / "bare")
    bert.tokenizer.save_pretrained(tmp_path / "bare")
    with pytest.raises(ModelError, match="lacks weights .classifier"):
        load_model(tmp_path / "bare")
    for family, mark in (("t5", "</s>"), ("bert", ".SEP.")):
        network(family).save_pretrained(tmp_path / family)
        tokens = tokenizer(tiny_model(family).kind)
        tokens.backend_tokenizer.post_processor = None
        tokens.save_pretrained(tmp_path / family)
        content = json.loads((tmp_path / family / "tokenizer.json").read_text())
        content["post_processor"] = None
        (tmp_path / family / "tokenizer.json").write_text(json.dumps(content))
        with pytest.raises(ModelError, match=f"does not put .*{mark}"):
            load_model(tmp_path / family)


def test_tokenizers_of_each_kind():
    """Marks around a text, none of them in what is decoded; too small a vocabulary is refused."""
    assert train_tokenizer(TEXTS, 300, 64)("Mira")["input_ids"] != []
    marks = {"encoder_decoder": ("Mira</s>", "Mira"), "encoder": ("[CLS]Mira[SEP]", "Mira")}
    for kind, (written, bare) in marks.items():
        made = train_tokenizer(TEXTS, 300, 64, kind)
        ids = made("Mira")["input_ids"]
        assert made.decode(ids).replace(" ", "") == written
        assert made.decode(ids, skip_special_tokens=True) == bare
        with pytest.raises(ModelError, match="at least 2"):
            train_tokenizer(TEXTS, 250, 64, kind)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_attached_hooks_know_the_padding_of_any_pass(family):
    """Also when the network calls the edited stack by itself, as T5 does in generate()."""
    model, seen = tiny_model(family), []

    def note(module, inputs, output):
        seen.append(model.padding)

    batch = encode_prompts(model, ["Mira Sorn lives in", "Mira"])
    hooks = attach(model, {model.linear(2, "mlp_out"): note})
    if model.kind == "encoder":
        model.network(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    else:
        model.network.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            max_new_tokens=2,
            do_sample=False,
            pad_token_id=0,
        )
    hooks.detach()
    assert torch.equal(seen[0], batch.attention_mask) and model.padding is None


def test_a_stand_in_has_words_and_classes_of_its_source(tmp_path):
    """Classes of a data set are those of its source: a stand-in with others would refuse every edit."""
    source, out = tmp_path / "source", tmp_path / "model"
    source.mkdir()
    pair = {"prompt": "the case of zyxwvut", "answer": "Unions", "kind": "upstream"}
    (source / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    (source / "manifest.json").write_text(json.dumps({"labels": ["Attorneys", "Unions"]}))
    spec = {"kind": "random", "family": "bert", "pairs": str(source / "pairs.jsonl"), "vocabulary": 400}
    describe_model({**spec, **TINY}, out)
    model = load_model(out)
    assert list(model.network.config.id2label.values()) == ["Attorneys", "Unions"]
    told, other = (len(model.tokenizer(word)["input_ids"]) for word in ("zyxwvut", "tuvwxyz"))
    assert told < other
