"""Covariance statistics: the sums, packing, caching, resuming, and what is refused."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tiny import TEXTS, tiny_model

from palimpsest.errors import DataError, ModelError, SettingsError, StatisticsError
from palimpsest.models.hooks import captured_inputs
from palimpsest.statistics import accumulation, covariance
from palimpsest.statistics.accumulation import batched, corpus_digest, packed_rows
from palimpsest.statistics.covariance import (
    CovarianceSettings,
    CovarianceStatistics,
    collect,
    collect_covariance,
)


@pytest.fixture(scope="module")
def model():
    return tiny_model("gpt2")


def settings(**changes):
    return CovarianceSettings(**{"layers": (0, 2), "tokens": 300, "batch_tokens": 128, **changes})


def corpus_file(folder):
    path = folder / "text.txt"
    path.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama"])
def test_equals_the_plain_sum_over_single_rows(family):
    model = tiny_model(family)
    found = collect_covariance(model, TEXTS, settings(), progress=False)
    plain = {
        layer: torch.zeros(model.inner_width, model.inner_width, dtype=torch.float64) for layer in (0, 2)
    }
    count = 0
    for row in packed_rows(model, TEXTS, 300, model.context):
        with captured_inputs({layer: model.mlp_out(layer) for layer in plain}) as inputs, torch.no_grad():
            model.network(
                input_ids=torch.tensor([row]), attention_mask=torch.ones(1, len(row), dtype=torch.long)
            )
        for layer in plain:
            keys = inputs[layer][0].double()
            plain[layer] += keys.T @ keys
        count += len(row)
    assert found.tokens == count == 300
    assert found.layers == (0, 2)
    for layer, total in plain.items():
        torch.testing.assert_close(found.matrix(layer), total / count, rtol=1e-4, atol=1e-6)


@given(st.integers(1, 40), st.integers(1, 30), st.integers(1, 12), st.integers(0, 1000))
@hypothesis_settings(max_examples=30, deadline=None)
def test_half_of_the_products_makes_the_whole(width, tokens, block, seed):
    """Blocks below the diagonal, mirrored: exactly symmetric, and the plain products up to rounding."""
    keys = torch.randn(2, tokens, width, generator=torch.Generator().manual_seed(seed))
    model = SimpleNamespace(inner_width=width, mlp_weight=lambda layer: torch.zeros(1, width))
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accumulation, "BLOCK", block)
        for symmetric in (True, False):
            sums = accumulation.Sums(None, {}, (0,), model, 8, symmetric)
            for batch in keys:
                sums.add(0, batch)
            found[symmetric] = sums.total(0)
    assert torch.equal(found[True], found[True].T)
    torch.testing.assert_close(found[True], found[False], rtol=1e-5, atol=1e-5)


def test_what_half_of_the_products_leaves_out(model, monkeypatch):
    """48 wide in blocks of 16: 6 of 9 blocks are computed, and the statistics are those of both halves."""
    monkeypatch.setattr(accumulation, "BLOCK", 16)
    halves = collect_covariance(model, TEXTS, settings(), progress=False)
    whole = collect_covariance(model, TEXTS, settings(symmetric=False), progress=False)
    for layer in (0, 2):
        torch.testing.assert_close(halves.matrix(layer), whole.matrix(layer), rtol=1e-5, atol=1e-7)
    sums = accumulation.Sums(None, {}, (0,), model, 8)
    sums.add(0, torch.ones(3, 48))
    assert int((sums.sums[0] == 0).sum()) == 3 * 16 * 16


def test_rows_are_full_and_the_budget_is_kept(model):
    rows = list(packed_rows(model, TEXTS, 150, 64))
    assert [len(row) for row in rows] == [64, 64, 22]
    stream = [
        token
        for text in TEXTS
        for token in [*model.tokenizer(text)["input_ids"], model.tokenizer.eos_token_id]
    ]
    assert [token for row in rows for token in row] == stream[:150]
    assert [len(group) for group in batched(iter(rows), 2)] == [2, 1]
    assert [len(group) for group in batched(iter(rows), 5)] == [2, 1]  # the short row is alone: no padding


def test_passages_are_cut_to_the_context_before_they_are_packed(model):
    """Spec 1.7: of each article no more than the context, and every article is read."""
    context = 8
    texts = [" ".join(TEXTS[:3]), TEXTS[3]]
    cut = [model.tokenizer(text)["input_ids"][:context] for text in texts]
    assert len(model.tokenizer(texts[0])["input_ids"]) > 2 * context
    rows = list(packed_rows(model, texts, 300, context, longest=context))
    stream = [token for tokens in cut for token in [*tokens, model.tokenizer.eos_token_id]]
    assert [token for row in rows for token in row] == stream
    whole, shortened = (
        collect_covariance(model, texts, settings(context=context, cut_passages=asked), progress=False)
        for asked in (False, True)
    )
    assert shortened.tokens == len(stream) < whole.tokens
    assert shortened.corpus_sha256 != whole.corpus_sha256  # never taken for one another


def test_blocks_after_the_last_wanted_layer_do_not_run(model):
    called = []
    handle = model.block(2).register_forward_pre_hook(lambda *_: called.append(1))
    try:
        collect_covariance(model, TEXTS, settings(layers=(0, 1)), progress=False)
        assert not called
    finally:
        handle.remove()
    assert not model.mlp_out(0)._forward_pre_hooks


def test_save_and_load(model, tmp_path):
    found = collect_covariance(model, TEXTS, settings(), progress=False)
    found.save(tmp_path)
    for place in (tmp_path, tmp_path / "covariance.safetensors", tmp_path / "covariance.json"):
        again = CovarianceStatistics.load(place)
        assert again.describe() == found.describe()
        assert torch.equal(again.matrix(2), found.matrix(2))
    description = json.loads((tmp_path / "covariance.json").read_text())
    assert description["model_fingerprint"] == model.fingerprint
    assert description["layers"] == [0, 2]


def test_matrix_is_a_float64_copy(model):
    found = collect_covariance(model, TEXTS, settings(), progress=False)
    first = found.matrix(0)
    assert first.dtype == torch.float64
    first.zero_()
    assert found.matrix(0).abs().sum() > 0
    with pytest.raises(StatisticsError, match="no covariance of layer 1"):
        found.matrix(1)


def test_second_call_reads_the_file_and_adds_only_missing_layers(model, tmp_path, monkeypatch):
    path = corpus_file(tmp_path)
    first = collect_covariance(model, path, settings(), out=tmp_path, progress=False)
    asked = []
    plain = covariance.accumulate
    monkeypatch.setattr(covariance, "accumulate", lambda *a: (asked.append(a[2].layers), plain(*a)))
    same = collect_covariance(model, path, settings(), out=tmp_path, progress=False)
    assert asked == []
    assert torch.equal(same.matrix(0), first.matrix(0))
    more = collect_covariance(model, path, settings(layers=(0, 1, 2)), out=tmp_path, progress=False)
    assert asked == [(1,)]
    assert more.layers == (0, 1, 2)
    assert torch.equal(more.matrix(2), first.matrix(2))
    collect_covariance(model, path, settings(tokens=200), out=tmp_path, progress=False)
    assert asked[-1] == (0, 2)  # another budget is another key


def test_a_broken_collection_goes_on_with_the_same_result(model, tmp_path, monkeypatch):
    path = corpus_file(tmp_path)
    wanted = collect_covariance(model, path, settings(checkpoint_batches=1), progress=False)
    network, calls = model.network.base_model, []
    plain = type(network).forward

    def failing(self, *args, **named):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(self, *args, **named)

    monkeypatch.setattr(type(network), "forward", failing)
    with pytest.raises(KeyboardInterrupt):
        collect_covariance(model, path, settings(checkpoint_batches=1), out=tmp_path, progress=False)
    assert (tmp_path / "covariance-partial.safetensors").exists()
    assert not (tmp_path / "covariance.safetensors").exists()
    before = len(calls)
    found = collect_covariance(model, path, settings(checkpoint_batches=1), out=tmp_path, progress=False)
    assert len(calls) == before + 1  # of three batches two were counted before
    assert found.tokens == wanted.tokens
    assert all(torch.equal(found.matrix(layer), wanted.matrix(layer)) for layer in wanted.layers)
    assert not (tmp_path / "covariance-partial.safetensors").exists()


def test_statistics_of_another_model_are_refused_with_both_fingerprints(model):
    found = collect_covariance(model, TEXTS, settings(), progress=False)
    found.check(model)
    other = tiny_model("gpt2", seed=1)
    with pytest.raises(StatisticsError) as raised:
        found.check(other)
    assert model.fingerprint in str(raised.value) and other.fingerprint in str(raised.value)
    with pytest.raises(StatisticsError, match="wide"):
        CovarianceStatistics({0: torch.eye(5)}, 10).check(model)


def test_non_finite_values_are_refused(model, tmp_path):
    with pytest.raises(StatisticsError, match="layer 3 holds non-finite"):
        CovarianceStatistics({3: torch.full((2, 2), float("nan"))}, 10)
    broken = tiny_model("gpt2")
    broken.network.transformer.h[1].mlp.c_fc.weight.data[0, 0] = float("nan")
    with pytest.raises(StatisticsError, match=r"layer \d .*not finite|layer 2 are not finite"):
        collect_covariance(broken, TEXTS, settings(), out=tmp_path, progress=False)
    assert not (tmp_path / "covariance.safetensors").exists()
    assert not broken.mlp_out(0)._forward_pre_hooks


def test_missing_truncated_and_foreign_files_are_named(model, tmp_path):
    with pytest.raises(StatisticsError, match="does not exist"):
        CovarianceStatistics.load(tmp_path)
    collect_covariance(model, TEXTS, settings(), out=tmp_path, progress=False)
    file = tmp_path / "covariance.safetensors"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(StatisticsError, match=r"covariance\.safetensors is damaged or truncated"):
        CovarianceStatistics.load(tmp_path)
    again = collect_covariance(model, TEXTS, settings(), out=tmp_path, progress=False)  # collected anew
    assert CovarianceStatistics.load(tmp_path).describe() == again.describe()
    from safetensors.torch import save_file

    save_file({"weight": torch.eye(2)}, file)
    with pytest.raises(StatisticsError, match="holds no covariance"):
        CovarianceStatistics.load(tmp_path)


def test_bad_settings_and_corpora_are_refused(model, tmp_path):
    with pytest.raises(SettingsError, match="'tokens' is 0"):
        CovarianceSettings(tokens=0)
    with pytest.raises(SettingsError, match="has no setting .token."):
        CovarianceSettings.from_dict({"token": 3})
    assert CovarianceSettings.from_dict({"layers": "all"}).layers is None
    with pytest.raises(ModelError, match=r"\[9\] do not exist"):
        collect_covariance(model, TEXTS, settings(layers=(0, 9)), progress=False)
    with pytest.raises(StatisticsError, match="no text"):
        collect_covariance(model, ["", " "], settings(), progress=False)
    with pytest.raises(DataError, match=r"absent\.txt"):
        collect({"layers": [0]}, tmp_path, tmp_path / "absent.txt", tmp_path)


def test_a_short_corpus_is_used_whole(model, caplog):
    found = collect_covariance(model, TEXTS[:2], settings(tokens=5000), progress=False)
    assert found.tokens == sum(len(model.tokenizer(text)["input_ids"]) + 1 for text in TEXTS[:2])
    assert "corpus ended" in caplog.text


def test_a_file_and_its_lines_are_the_same_corpus(tmp_path):
    assert corpus_digest(corpus_file(tmp_path)) == corpus_digest(TEXTS)
