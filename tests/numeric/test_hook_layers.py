"""Hook layers: the z-score gate, its ceiling, its alpha, and what padding must not change."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_writers import editor
from tiny import CITIES, PEOPLE, some_edits

from palimpsest.editors.shared.hook_layers import TEMPORARY, HookLayers, ceiling, z_scores
from palimpsest.edits import Edit
from palimpsest.models.tokens import encode_prompts

numbers = st.lists(st.floats(0, 1e3, allow_nan=False, width=32), min_size=2, max_size=24)


@given(numbers)
@settings(max_examples=200, deadline=None)
def test_no_z_score_passes_the_ceiling(values):
    """(n - 1) / sqrt(n) bounds every z-score of n numbers (spec 2.2)."""
    z = z_scores(torch.tensor([values], dtype=torch.float64), torch.ones(1, len(values), dtype=torch.bool))
    finite = z[torch.isfinite(z)]
    assert (finite <= ceiling(len(values)) + 1e-6).all()


@pytest.mark.parametrize(("n", "value"), [(3, 1.155), (6, 2.041), (7, 2.268), (10, 2.846), (20, 4.249)])
def test_ceiling_is_reached_by_one_outlier(n, value):
    """The spec's table, from the definition of the z-score."""
    norms = torch.zeros(1, n, dtype=torch.float64)
    norms[0, 2] = 1
    assert float(z_scores(norms, torch.ones(1, n, dtype=torch.bool)).max()) == pytest.approx(value, abs=1e-3)
    assert ceiling(n) == pytest.approx(value, abs=1e-3)
    assert math.isnan(ceiling(1))


@given(numbers, st.integers(1, 8))
@settings(max_examples=100, deadline=None)
def test_padding_does_not_change_z(values, pads):
    """Masked statistics of a padded row are those of the row alone, and agree with torch's own mean and std."""
    row = torch.tensor([values], dtype=torch.float64)
    padded = torch.cat([row, torch.full((1, pads), 7.0, dtype=torch.float64)], dim=1)
    real = torch.arange(padded.shape[1])[None] < len(values)
    z = z_scores(padded, real)
    expected = (row - row.mean()) / row.std()
    assert (
        torch.allclose(z[:, : len(values)], expected, equal_nan=True, atol=1e-6, rtol=1e-6)
        or float(row.std()) < 1e-6
    )
    assert (z[:, len(values) :] == -torch.inf).all()


def test_one_token_or_equal_norms_are_never_swapped():
    """0/0 compares false."""
    assert not (z_scores(torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool)) >= -100).any()
    assert not (z_scores(torch.ones(1, 5), torch.ones(1, 5, dtype=torch.bool)) >= -100).any()


def edited(model, **extra):
    """A COMEBA-HK editor after two batches."""
    used = editor(model, "comeba_hk", **extra)
    used.edit(some_edits(6)[:3])
    used.edit(some_edits(6)[3:])
    return used


@pytest.mark.parametrize(("padding", "same"), [("masked", True), ("official", False)])
def test_batch_equals_one_by_one_unless_padding_counts(gpt2, padding, same):
    """Quirk 3: with masked statistics a z-score does not depend on what the prompt is batched with."""
    used = edited(gpt2, padding=padding, target_search="plain")
    prompts = [some_edits()[0].prompt, "Mira Sorn lives in", "Velden"]
    with used.hooked.noting() as together:
        logits = gpt2.logits(encode_prompts(gpt2, prompts))
        noted = dict(together)
    agree = []
    for row, prompt in enumerate(prompts):
        with used.hooked.noting() as alone:
            single = gpt2.logits(encode_prompts(gpt2, [prompt]))[0]
            z = alone[1].z[0]
        agree.append(torch.allclose(noted[1].z[row, : len(z)], z, atol=1e-3, equal_nan=True))
        if same:
            assert torch.allclose(logits[row, : len(single)], single, atol=1e-4)
    assert all(agree) is same


def test_gate_is_eq_17_computed_by_hand(gpt2):
    """Swapped tokens get W_h k + b, the others W_0 k + b, to the last block."""
    used = edited(gpt2, alpha_z=0.8, layers=[1])
    layer, prompt = 1, some_edits()[0].prompt
    batch = encode_prompts(gpt2, [prompt])
    module, seen = gpt2.mlp_out(layer), {}
    handle = module.register_forward_hook(
        lambda _, inputs, output: seen.update(k=inputs[0][0], out=output[0])
    )
    gpt2.hidden(batch)
    handle.remove()
    w_0, w_h = gpt2.mlp_weight(layer), gpt2.mlp_weight(layer) + used.hooked.difference[layer]
    p, o = seen["k"] @ w_0.T + module.bias, seen["k"] @ w_h.T + module.bias
    m = (o - p).norm(dim=1)
    z = (m - m.mean()) / m.std()
    swapped = z >= used.alpha[layer]
    assert swapped.any() and not swapped.all()
    assert torch.allclose(seen["out"], torch.where(swapped[:, None], o, p), atol=1e-5)
    shown = used.inspect([prompt], [some_edits()[0].subject])
    assert shown[0]["swapped"] == swapped.tolist() and shown[0]["z"] == pytest.approx(z.tolist(), abs=1e-4)


def test_edited_prompts_are_swapped_in_whatever_batch_they_are_read(model):
    """Alpha is the z-score of an edited token, to the last digit of one batch: rounding must not shut that prompt out."""
    used = editor(model, "comeba_hk", layers=[1], kl_weight=0.0)
    edits = [
        Edit(prompt=f"{'I say ' * (i % 4)}{person} {words}", target=CITIES[i % 4], subject=person)
        for i, (person, words) in enumerate(
            (person, words)
            for words in ("lives in the city of", "was born in", "is from", "likes")
            for person in PEOPLE
        )
    ]
    for start in range(0, len(edits), 4):
        batch = edits[start : start + 4]
        used.edit(batch)
        prompts = [edit.prompt for edit in edits[: start + 4]]
        together = [row["swapped"] for row in used.inspect(prompts)]
        alone = [used.inspect(prompt)[0]["swapped"] for prompt in prompts]
        assert alone == together
        assert all(
            any(swapped) for swapped in alone[start:]
        )  # later batches move the z-scores of earlier ones
    used.remove()


def test_alpha_never_rises_and_fixed_alpha_stays(gpt2):
    """Eq. 18."""
    used = editor(gpt2, "comeba_hk")
    for edit in some_edits(6):
        used.edit([edit])
    for layer in (1, 2):
        history = [alpha[layer] for alpha in used.alpha_history]
        assert all(later <= earlier for earlier, later in zip([2.2, *history], history, strict=False))
        assert history[-1] < 2.2
    used.remove()
    assert used.alpha == {1: 2.2, 2: 2.2}
    fixed = edited(gpt2, fixed_alpha=True, alpha_z=3.0)
    assert fixed.alpha == {1: 3.0, 2: 3.0}


def test_no_swap_where_the_ceiling_is_below_alpha(gpt2):
    """Prompts of six tokens or fewer cannot reach 2.2: the model answers as if unedited."""
    short, long = "Ada Tolvek", some_edits()[1].prompt
    before = gpt2.logits(encode_prompts(gpt2, [short]))
    used = edited(gpt2, fixed_alpha=True, alpha_z=1.9)
    below = [row["ceiling"] < row["alpha"] for row in used.inspect([short, long])]
    assert below == [True, True, False, False]  # two hook layers each
    assert torch.equal(gpt2.logits(encode_prompts(gpt2, [short])), before)
    assert any(any(row["swapped"]) for row in used.inspect(long))


def test_temporary_hook_without_update_is_the_identity(gpt2):
    """W_h = W_0 changes nothing, bit for bit."""
    batch = encode_prompts(gpt2, [edit.prompt for edit in some_edits()])
    before = gpt2.logits(batch)
    hooked = HookLayers(gpt2, (1, 2), 2.2)
    with hooked.modes(TEMPORARY):
        assert torch.equal(gpt2.logits(batch), before)
    hooked.detach()


def test_an_error_inside_leaves_no_hook(gpt2, monkeypatch):
    """A failed batch takes its half-written layers back."""
    used = edited(gpt2)
    batch = encode_prompts(gpt2, [edit.prompt for edit in some_edits()])
    before, alpha = gpt2.logits(batch), used.alpha
    calls = []

    def fails_at_the_second_layer(layer, keys, residuals):
        calls.append(layer)
        if len(calls) == 2:
            raise RuntimeError("disk on fire")
        return torch.ones(32, 48, dtype=torch.float64)

    monkeypatch.setattr(used, "_solve", fails_at_the_second_layer)
    with pytest.raises(RuntimeError, match="disk on fire"):
        used.edit(some_edits(2))
    assert torch.equal(gpt2.logits(batch), before) and used.alpha == alpha


@pytest.mark.parametrize("ending", [RuntimeError, KeyboardInterrupt])
def test_a_batch_that_ends_late_is_forgotten_by_the_history_of_alpha_too(gpt2, ending):
    """Alpha is noted before the last notes are taken: an error or an interrupt in between takes it back."""
    used = edited(gpt2)
    before, alpha, history = used.state(), used.alpha, [dict(entry) for entry in used.alpha_history]

    class Full(dict):
        def __setitem__(self, key, value):
            if key == "z_scores":
                assert len(used.alpha_history) == len(history) + 1
                raise ending
            super().__setitem__(key, value)

    with pytest.raises(ending):
        used.apply(some_edits(2), Full())
    assert used.alpha_history == history and used.alpha == alpha
    after = used.state()
    assert after.plain == before.plain and set(after.tensors) == set(before.tensors)
    assert all(torch.equal(tensor, before.tensors[name]) for name, tensor in after.tensors.items())


def test_state_bytes_are_constant(gpt2):
    """Claim C21: inference state does not grow with edits."""
    used = editor(gpt2, "comeba_hk")
    covariance = sum(used.statistics.stored(layer).nbytes for layer in used.settings.layers)
    assert used.editing_bytes() == covariance >= 2 * 48 * 48 * 4
    sizes, needed = [], []
    for edit in some_edits(4):
        used.edit([edit])
        sizes.append(used.state_bytes())
        needed.append(used.editing_bytes())
    assert len(set(sizes)) == 1 and sizes[0] == 2 * 32 * 48 * 4
    # What further edits need is reported beside it (quirk 19): C_0, and everything remembered that the saved state holds too.
    tensors = used.state().tensors
    past = sum(
        t.numel() * t.element_size() for name, t in tensors.items() if not name.startswith("difference")
    )
    assert needed[-1] == covariance + past and needed == sorted(needed) and past > 0
    used.remove()
    assert used.editing_bytes() == covariance


def test_generation_gates_the_prompt_once(model):
    """With kept keys and values a swap of the prompt survives; padded prompts generate as they do alone."""
    used = edited(model, alpha_z=1.0)
    prompts = [edit.prompt for edit in some_edits(4)]
    together = used.generate(prompts, max_new_tokens=4)
    assert together == [used.generate(prompt, max_new_tokens=4)[0] for prompt in prompts]
    used.remove()


def test_a_one_token_prompt_in_a_padded_batch_leaves_alpha_alone(gpt2):
    """Its z-score is NaN and its padding minus infinity: neither may become alpha (spec quirk 6)."""
    used = edited(gpt2)
    before = used.alpha
    one_token = next(word for word in ("a", "I", "V") if len(gpt2.tokenizer(word)["input_ids"]) == 1)
    used._lower_alpha(used.hooked, [Edit(one_token, "Velden"), Edit(some_edits()[0].prompt, "Velden")], None)
    assert all(0 < used.alpha[layer] <= before[layer] for layer in before)
