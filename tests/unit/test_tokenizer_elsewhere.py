"""A model whose own files have no tokenizer that can be read: `tokenizer` names another place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tiny import network, tokenizer, two_tokenizers

from palimpsest import experiments, load_model
from palimpsest.config import ConfigError, read_yaml, repository_root
from palimpsest.errors import ModelError
from palimpsest.models import tokenizer_files
from palimpsest.models.manifest import describe_model

ROOT = repository_root()
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def places(tmp_path) -> tuple[Path, Path, Path]:
    """A model without a tokenizer, and two tokenizers."""
    folders = tmp_path / "model", tmp_path / "own", tmp_path / "other"
    network("gpt2").save_pretrained(folders[0])
    for words, folder in zip(two_tokenizers(), folders[1:], strict=True):
        words.save_pretrained(folder)
    return folders


def test_it_is_read_from_there_and_is_a_part_of_the_model(places):
    model, own, other = places
    with pytest.raises(ModelError, match="Or name a place that has tokenizer.json: `tokenizer`"):
        load_model(model)
    first, second = load_model(model, tokenizer=own), load_model(model, tokenizer=str(other))
    assert first.tokenizer("Ada Tolvek")["input_ids"] != second.tokenizer("Ada Tolvek")["input_ids"]
    assert first.fingerprint == load_model(model, tokenizer=own).fingerprint != second.fingerprint
    assert first.tokenizer.pad_token_id is not None


def test_fingerprints_of_models_with_their_own_tokenizer_are_of_configuration_and_weights(tmp_path):
    """As before the key was there: results and caches name them."""
    network("gpt2").save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    model = load_model(tmp_path)
    with_words = load_model(tmp_path, tokenizer=tmp_path)
    assert model.tokenizer_digest == "" and with_words.fingerprint != model.fingerprint
    with_words.tokenizer_digest = ""
    assert with_words.take_fingerprint() == model.fingerprint


def test_a_manifest_names_it_for_every_job(places, tmp_path, monkeypatch):
    model, own, _ = places
    monkeypatch.chdir(tmp_path)
    describe_model({"kind": "path", "path": "model", "tokenizer": "own"}, tmp_path / "described")
    written = json.loads((tmp_path / "described" / "manifest.json").read_text())
    assert written["tokenizer"] == str(own.resolve())
    monkeypatch.chdir("/")
    assert load_model(tmp_path / "described").fingerprint == written["fingerprint"]
    assert written["fingerprint"] == load_model(model, tokenizer=own).fingerprint


def test_one_with_more_tokens_than_the_model_is_refused(places, tmp_path):
    model, _, other = places
    small = network("gpt2")
    small.resize_token_embeddings(100)
    small.save_pretrained(tmp_path / "small")
    with pytest.raises(ModelError, match="has embeddings of 100: it is another model's"):
        load_model(tmp_path / "small", tokenizer=other)
    assert load_model(model, tokenizer=other)


@pytest.mark.parametrize("where", ["org/name", "org/name@main", "/nowhere"])
def test_a_place_that_is_not_pinned_or_not_there(places, where):
    with pytest.raises(ModelError, match=r"not pinned to a commit|there is no directory"):
        load_model(places[0], tokenizer=where)
    with pytest.raises(ModelError, match=r"not pinned to a commit|there is no directory"):
        describe_model({"kind": "path", "path": str(places[0]), "tokenizer": where}, places[0] / "x")


def test_a_hub_models_own_tokenizer_is_asked_for_at_the_same_commit(monkeypatch, places):
    import transformers

    asked = []

    def tokenizers(place, **options):
        asked.append((place, options["revision"], options["trust_remote_code"]))
        raise OSError("no network")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", tokenizers)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", lambda *_, **__: network("gpt2").config)
    with pytest.raises(ModelError, match="its tokenizer cannot be read from org/name: OSError: no network"):
        load_model("org/name", revision=COMMIT)
    with pytest.raises(ModelError):
        load_model("org/name", revision=COMMIT, tokenizer=f"else/where@{'b' * 40}")
    assert asked == [("org/name", COMMIT, False), ("else/where", "b" * 40, False)]


@pytest.mark.parametrize("absent", [["sentencepiece"], ["protobuf"], ["sentencepiece", "protobuf"]])
def test_what_reads_sentencepiece_files_is_named_where_it_is_missing(tmp_path, monkeypatch, absent):
    """T5's hub repositories have spiece.model alone; transformers then speaks of tiktoken."""
    import transformers

    def without(*_, **__):
        raise ValueError(
            "`tiktoken` is required to read a `tiktoken` file. Install it with `pip install tiktoken`."
        )

    network("t5").save_pretrained(tmp_path)
    (tmp_path / "spiece.model").write_bytes(b"whatever")
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", without)
    monkeypatch.setattr(tokenizer_files, "missing_packages", lambda: absent)
    with pytest.raises(ModelError) as said:
        load_model(tmp_path)
    assert f"is not installed: {' and '.join(absent)}. Install the extra `t5`" in str(said.value)
    assert "all whole" not in str(said.value)
    monkeypatch.setattr(tokenizer_files, "missing_packages", list)
    with pytest.raises(ModelError) as said:
        load_model(tmp_path)
    assert "extra `t5`" not in str(said.value)


def test_missing_packages_are_those_that_cannot_be_imported(monkeypatch):
    monkeypatch.setattr(
        tokenizer_files, "SENTENCEPIECE", {"a": "json", "b": "no_such_package.inside", "c": "no_such"}
    )
    assert tokenizer_files.missing_packages() == ["b", "c"]


def test_a_sentencepiece_tokenizer_is_read_with_the_extra(tmp_path):
    sentencepiece = pytest.importorskip(
        "sentencepiece", reason="the extra `t5` (SentencePiece files) is not installed"
    )
    pytest.importorskip("google.protobuf", reason="the extra `t5` (SentencePiece files) is not installed")
    from tiny import TEXTS

    network("t5").save_pretrained(tmp_path)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_prefix=str(tmp_path / "spiece"), vocab_size=60, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
    )  # fmt: skip
    model = load_model(tmp_path)
    text = "Ada Tolvek lives in the city of Velden."
    assert model.tokenizer.decode(model.tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    model.tokenizer.save_pretrained(tmp_path / "fast")  # what `convert` writes needs the packages no more
    assert (tmp_path / "fast" / "tokenizer.json").is_file()


def test_a_configuration_pins_it_and_refuses_it_where_it_has_no_effect():
    small = yaml.safe_load(yaml.safe_dump(read_yaml(ROOT / "config" / "small.yaml")))
    small["models"]["gpt2"]["tokenizer"] = "someone/words@unpinned"
    found = {one.place: one for one in experiments.plan(small, ROOT).unpinned()}
    assert found["models.gpt2.tokenizer"].users == {("model", "gpt2")}
    small["models"]["gpt2"]["tokenizer"] = "someone/words"
    with pytest.raises(
        ConfigError, match=r"models\.gpt2\.tokenizer: someone/words: a hub id without a commit"
    ):
        experiments.plan(small, ROOT)
    mini = read_yaml(ROOT / "config" / "smoke.yaml")
    mini["models"]["smoke-gpt2"]["tokenizer"] = f"someone/words@{COMMIT}"
    with pytest.raises(
        ConfigError, match=r"models\.smoke-gpt2\.tokenizer: a model of kind '\w+' gets its tokenizer here"
    ):
        experiments.plan(mini, ROOT)
