"""MEND's networks and factors: the identity at the start, normalisation, sharing, and gradients as outer products."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CITIES, LABELS, PEOPLE, configuration, tiny_model, tokenizer
from transformers import T5ForConditionalGeneration

from palimpsest.editors.shared.gradient_factors import (
    Factors,
    LowRank,
    descent_cosine,
    gradient_factors,
    joined,
    laid_over,
    loss_scale,
)
from palimpsest.editors.shared.mend_edit import (
    changes,
    chosen_matrices,
    edit_inputs,
    lowest_block,
    order_in_network,
    row_weights,
    with_padding_targets,
)
from palimpsest.editors.shared.mend_learner import divergence
from palimpsest.editors.shared.mend_network import Block, MendNetwork, RunningNorm
from palimpsest.errors import ModelError, SettingsError
from palimpsest.models.families import as_stored, family_of, matrix_view
from palimpsest.models.loading import LanguageModel
from palimpsest.models.objectives import NONE, judge, row_losses
from palimpsest.models.upper import Upper

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = ("gpt2", "gptj", "llama", "t5", "bert")
DECODER_PATHS = ("decoder.block.0.layer.2.DenseReluDense.wi_0", "decoder.block.1.layer.2.DenseReluDense.wo")


ATTENTION = {  # Table 9
    "gpt2": ("attn.c_attn", "attn.c_proj"),
    "gptj": ("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.out_proj"),
    "t5": ("layer.0.SelfAttention.q", "layer.0.SelfAttention.o"),
    "bert": ("attention.self.query", "attention.self.value", "attention.output.dense"),
}


def matrices_of(model, sites=("mlp_in", "mlp_out")):
    paths = DECODER_PATHS if model.kind == "encoder_decoder" else ()
    return chosen_matrices(model, (1, 3), sites, paths)


def inputs_of(model, n=3):
    answers = LABELS if model.kind == "encoder" else CITIES
    prompts = [f"Where does {person} live{', I say' * i}?" for i, person in enumerate(PEOPLE[:n])]
    return edit_inputs(model, prompts, [answers[i % 4] for i in range(n)], end_token=False)


def random_factors(n, m, tokens=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Factors(torch.randn(tokens, n, generator=generator), torch.randn(tokens, m, generator=generator))


@pytest.mark.parametrize(
    ("family", "reduction", "attention"),
    [(family, reduction, False) for family in FAMILIES for reduction in ("sum_over_edits", "mean")]
    + [(family, "sum_over_edits", True) for family in ATTENTION],
)
def test_factors_multiply_to_the_gradient(family, reduction, attention):
    """sum_t delta_t u_t^T is what autograd gives, for every matrix at once, and padding is no token."""
    model = tiny_model(family)
    matrices = matrices_of(model, ATTENTION[family]) if attention else matrices_of(model)
    inputs = inputs_of(model)
    weights = row_weights(inputs, reduction)
    rows = Upper(model, inputs, lowest_block(model, matrices))
    (factors,), judged = gradient_factors(rows, [one.module for one in matrices], weights)
    parameters = [one.module.weight for one in matrices]
    for parameter in parameters:
        parameter.requires_grad_(True)
    losses = row_losses(model, inputs)
    gradients = torch.autograd.grad((losses * weights).sum(), parameters)
    if reduction == "mean":  # of all tokens: what the released code takes
        counts = (inputs.targets != NONE).sum(dim=1)
        total = sum(float(losses[i].detach() * counts[i]) for i in range(3)) / int(counts.sum())
        assert float((losses * weights).sum().detach()) == pytest.approx(total, rel=1e-5)
    for matrix, one, gradient in zip(matrices, factors, gradients, strict=True):
        found = as_stored(matrix.module, one.gradient())
        torch.testing.assert_close(found, gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()))
        assert 0 < len(one.u) <= int(inputs.padding.sum())
    torch.testing.assert_close(judged.losses, losses.detach(), rtol=1e-4, atol=1e-5)


def test_small_gradients_survive_half_precision():
    """Losses are scaled on their way through a float16 network: without it most of these gradients would vanish."""
    found = []
    for dtype in (torch.float16, torch.float32):
        model = tiny_model("gpt2", dtype)
        matrices, inputs = chosen_matrices(model, (3,), ("mlp_in", "mlp_out"), ()), inputs_of(model)
        rows = Upper(model, inputs, lowest_block(model, matrices))
        weights = torch.full((3,), 1e-6)
        (factors,), _ = gradient_factors(rows, [one.module for one in matrices], weights)
        found.append([one.gradient() for one in factors])
    for half, whole in zip(*found, strict=True):
        torch.testing.assert_close(half, whole, rtol=0.1, atol=0.05 * float(whole.abs().max()))
    assert loss_scale(torch.bfloat16) == loss_scale(torch.float32) == 1.0  # as wide as it needs to be


@pytest.mark.parametrize("family", FAMILIES)
def test_a_change_laid_over_answers_as_a_change_written(family):
    model = tiny_model(family)
    matrices, inputs = matrices_of(model), inputs_of(model)
    modules = [one.module for one in matrices]
    generator = torch.Generator().manual_seed(1)
    found = [
        LowRank(0.3 * torch.randn(4, m, generator=generator), torch.randn(4, n, generator=generator))
        for n, m in (one.shape for one in matrices)
    ]
    rows = Upper(model, inputs, lowest_block(model, matrices))
    before = judge(model, inputs).losses
    with laid_over(modules, found):
        over = rows.judge().losses
    assert torch.allclose(rows.judge().losses, before, rtol=1e-4) and not torch.allclose(over, before)
    for module, change in zip(modules, found, strict=True):
        matrix_view(module).add_(change.dense())
    torch.testing.assert_close(over, judge(model, inputs).losses, rtol=1e-3, atol=1e-3)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), parts=st.lists(st.integers(0, 6), min_size=2, max_size=5))
def test_running_statistics_are_those_of_all_tokens(seed, parts):
    """Merged group by group, in whatever sizes they come."""
    generator = torch.Generator().manual_seed(seed)
    rows = [3 + 2 * torch.randn(size, 4, generator=generator) for size in (*parts, 2)]
    norm, whole = RunningNorm(4), torch.cat(rows).double()
    for part in rows:
        norm.update(part)
    expected = (whole - whole.mean(dim=0)) / (whole.std(dim=0) + 1e-7)
    torch.testing.assert_close(norm(torch.cat(rows)), expected.float(), rtol=1e-4, atol=1e-5)
    again = RunningNorm(4)
    again.load_state_dict(norm.state_dict())  # Q5: a loaded editor goes on with the same statistics
    more = torch.randn(3, 4, generator=generator)
    norm.update(more)
    again.update(more)
    assert torch.equal(norm(more), again(more)) and int(again.count) == len(whole) + 3


def test_statistics_are_frozen_outside_training():
    network = MendNetwork([(4, 3)], rank=2)
    network.train()
    network(0, random_factors(4, 3))
    kept = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.eval()
    network(0, random_factors(4, 3, seed=1))
    assert all(torch.equal(tensor, kept[name]) for name, tensor in network.state_dict().items())
    assert int(kept["editors.4x3.norm_u.count"]) == 5


def test_the_identity_at_the_start_gives_normalised_factors():
    """Q4: not the raw ones, so step 0 is not fine-tuning; without normalisation it is."""
    factors = random_factors(6, 4)
    for norm in (True, False):
        network = MendNetwork([(6, 4)], norm=norm, rank=3)
        network.train()
        mapped = network(0, factors)
        for found, given_ in ((mapped.u, factors.u), (mapped.delta, factors.delta)):
            expected = (given_ - given_.mean(dim=0)) / given_.std(dim=0) if norm else given_
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    other = MendNetwork([(6, 4)], norm=False, rank=3, init="xavier")
    assert not torch.allclose(other(0, factors).u, factors.u)


def test_the_clamp_lets_the_zero_matrix_move():
    """At the start its argument is exactly 0, where clamp has gradient 1 and relu 0."""
    block = Block(6, 3, 1, "identity", torch.Generator().manual_seed(0))
    rows = torch.randn(5, 6)
    block(rows, 0).sum().backward()
    expected = (rows @ block.down.detach().T).sum(dim=0).expand(6, 3)
    torch.testing.assert_close(block.up.grad, expected)
    assert torch.equal(block.bias.grad, torch.full((6,), 5.0))


def test_a_block_is_its_formula():
    block = Block(4, 2, 3, "xavier_residual", torch.Generator().manual_seed(0))
    rows = torch.randn(5, 4)
    with torch.no_grad():
        for parameter in (block.bias, block.scale, block.shift):
            parameter.copy_(torch.randn(parameter.shape))
        inner = torch.stack([block.up @ (block.down @ row) + block.bias for row in rows])
        expected = rows + torch.maximum(block.scale[1] * inner + block.shift[1], torch.zeros(()))
        torch.testing.assert_close(block(rows, 1), expected)


def test_without_the_identity_there_is_no_residual_as_released():
    """Table 6: the released blocks then give clamp(...) alone; with the residual it is what the paper's words say."""
    rows = torch.randn(5, 6)
    released, residual = (
        Block(6, 4, 0, init, torch.Generator().manual_seed(0)) for init in ("xavier", "xavier_residual")
    )
    assert torch.equal(released.up, residual.up)
    # Glorot's bound, times the gain of a relu for U: sqrt(2) sqrt(6 / (in + out)).
    bound = (6 / 10) ** 0.5
    down, up = (float(matrix.detach().abs().max()) for matrix in (released.down, released.up))
    assert down <= bound < up <= 2**0.5 * bound
    with torch.no_grad():
        found = released(rows, 0)
        assert float(found.min()) == 0.0 and found.any()
        torch.testing.assert_close(residual(rows, 0) - rows, found)


def test_matrices_of_one_shape_share_a_network():
    shapes = [(6, 4), (4, 6), (6, 4)]
    shared, apart = MendNetwork(shapes, rank=99), MendNetwork(shapes, rank=99, share=False)
    assert list(shared.editors) == ["6x4", "4x6"] and len(apart.editors) == 3
    names = set(shared.state_dict())
    assert shared.state_dict()["editors.6x4.both.blocks.0.scale"].shape == (2, 10)
    assert shared.state_dict()["editors.6x4.both.blocks.1.down"].shape == (
        10,
        10,
    )  # the rank is at most n + m
    assert not any(name.endswith(("scale", "shift")) for name in apart.state_dict())
    base = set(tiny_model("gpt2").network.state_dict())
    assert names and not names & base and all(name.startswith(("alpha", "editors.")) for name in names)
    with torch.no_grad():
        shared.editors["6x4"].both.blocks[0].shift[1] += 1.0
    factors = random_factors(6, 4)
    assert not torch.allclose(shared(0, factors).u, shared(2, factors).u)
    assert shared.alpha.shape == (3,)


@pytest.mark.parametrize(
    ("transform", "shape", "mapped"),
    [
        ("x_only", (6, 4), "u"),
        ("delta_only", (6, 4), "delta"),
        ("one_sided", (6, 4), "delta"),
        ("one_sided", (4, 6), "u"),
        ("separate", (6, 4), "u delta"),
    ],
)
def test_ablations_map_what_their_names_say(transform, shape, mapped):
    network = MendNetwork([shape], transform=transform, norm=False, init="xavier", rank=3)
    factors = random_factors(*shape)
    found = network(0, factors)
    for name in ("u", "delta"):
        assert torch.equal(getattr(found, name), getattr(factors, name)) == (name not in mapped.split())


def test_changes_are_alpha_times_the_outer_products():
    network = MendNetwork([(6, 4), (4, 6)], norm=False, alpha0=0.5)
    factors = [random_factors(6, 4), random_factors(4, 6, seed=1)]
    for sign, direction in (("minus", -0.5), ("plus", 0.5)):  # Q1
        for one, change in zip(factors, changes(network, factors, sign), strict=True):
            torch.testing.assert_close(change.dense(), direction * one.gradient())
    swapped = changes(network, factors, alpha=torch.tensor([0.0, 2.0]))
    assert not swapped[0].dense().any()
    torch.testing.assert_close(swapped[1].dense(), -2 * factors[1].gradient())
    both = joined([factors, factors])
    torch.testing.assert_close(both[1].gradient(), 2 * factors[1].gradient())


def test_the_cosine_with_steepest_descent_is_that_of_the_matrices():
    gradient, other = random_factors(6, 4), random_factors(6, 4, tokens=3, seed=1)
    change = LowRank(other.delta, other.u)
    flat = gradient.gradient().flatten(), change.dense().flatten()
    expected = -float(torch.nn.functional.cosine_similarity(*flat, dim=0))
    assert descent_cosine(gradient, change) == pytest.approx(expected, abs=1e-5)
    assert descent_cosine(gradient, LowRank(-2 * gradient.delta, gradient.u)) == pytest.approx(1.0, abs=1e-5)
    assert descent_cosine(gradient, LowRank(0 * gradient.delta, gradient.u)) == 0.0


def test_padding_that_counts_as_targets():
    """E5, by hand: an answer of 2 tokens beside one of 4 gets two padding tokens before it, in the prompt."""
    model = tiny_model("gpt2")
    inputs = edit_inputs(
        model, ["Ada lives in the", "Mira lives in the"], ["Velden", "Port Velden Bay"], False
    )
    counts = (inputs.targets != NONE).sum(dim=1).tolist()
    assert counts[0] < counts[1]
    spoiled, missing = with_padding_targets(inputs, 7), counts[1] - counts[0]
    start = int(inputs.query[0])
    first = max(0, start - missing)
    assert spoiled.targets[0, first:start].tolist() == [7] * (start - first)
    assert torch.equal(spoiled.targets[0, start:], inputs.targets[0, start:])
    assert torch.equal(spoiled.targets[1], inputs.targets[1])
    assert torch.equal(
        with_padding_targets(inputs, 7, groups=2).targets, inputs.targets
    )  # each its own longest


def test_step_sizes_in_the_order_of_the_network():
    """M2: GPT-2's config names c_proj before c_fc, the network has them the other way round; GPT-J agrees."""
    gpt2, gptj = tiny_model("gpt2"), tiny_model("gptj")
    matrices = chosen_matrices(gpt2, (1, 2), ("mlp_out", "mlp_in"), ())
    assert [one.name for one in matrices] == ["1.mlp_out", "1.mlp_in", "2.mlp_out", "2.mlp_in"]
    assert order_in_network(gpt2, matrices) == [1, 0, 3, 2]
    assert order_in_network(gptj, chosen_matrices(gptj, (1, 2), ("mlp_in", "mlp_out"), ())) == [0, 1, 2, 3]


def test_matrices_that_cannot_be_edited():
    gpt2, t5 = tiny_model("gpt2"), tiny_model("t5")
    for layers, sites, paths, error, words in (
        ((), ("mlp_in",), (), SettingsError, "no matrix is edited"),
        ((1,), ("mlp_in", "mlp.c_fc"), (), SettingsError, "named twice"),
        ((), (), ("lm_head",), SettingsError, "output head"),
        ((), (), ("transformer.h.9.mlp.c_fc",), ModelError, "no part 'transformer.h.9.*`paths`"),
        ((), (), ("transformer.h.1",), ModelError, "no linear map"),
        ((7,), ("mlp_in",), (), ModelError, "layer 7 does not exist"),
    ):
        with pytest.raises(error, match=words):
            chosen_matrices(gpt2, layers, sites, paths)
    assert (
        lowest_block(t5, chosen_matrices(t5, (), (), DECODER_PATHS)) == 3
    )  # above all blocks of the encoder
    paths = ("transformer.h.2.mlp.c_fc",)
    assert lowest_block(gpt2, chosen_matrices(gpt2, (3,), ("mlp_in",), paths)) == 2


@pytest.mark.parametrize(("preset", "blocks", "gated"), [("t5-small", 8, True), ("t5-large", 24, False)])
def test_presets_name_matrices_of_the_published_models(preset, blocks, gated):
    """Spec 2.6: wi_0 of the small T5, wi of the large one, in both halves."""
    content = yaml.safe_load((ROOT / "config" / "editors" / "mend.yaml").read_text(encoding="utf-8"))
    chosen = content["models"][preset]["settings"]
    config = configuration("t5", width=8, blocks=blocks, inner=8, gated=gated)
    config.num_decoder_layers = blocks  # the tiny one has two
    model = LanguageModel(
        T5ForConditionalGeneration(config), tokenizer("encoder_decoder"), family_of("t5"), preset
    )
    paths = [*chosen["paths"], *content["variants"]["attention"]["models"].get(preset, {}).get("paths", ())]
    matrices = chosen_matrices(model, (), (), paths)
    assert {matrix.name.split(".")[2] for matrix in matrices} == {str(blocks - 2), str(blocks - 1)}
    assert len(chosen_matrices(model, chosen["layers"], chosen["sites"], chosen["paths"])) == 8


def test_divergence_is_that_of_the_whole_distribution():
    before, after = torch.randn(5, 7), torch.randn(5, 7)
    expected = torch.nn.functional.kl_div(
        after.log_softmax(dim=1), before.log_softmax(dim=1), log_target=True, reduction="batchmean"
    )
    torch.testing.assert_close(divergence(before, after), expected)
    assert float(divergence(before, before)) == 0
