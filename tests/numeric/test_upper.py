"""Running only what an edit can change equals running everything, for all kinds of models and every block."""

from __future__ import annotations

import pytest
import torch
from tiny import ALL_FAMILIES, LABELS, tiny_model

from palimpsest.errors import ModelError
from palimpsest.models.objectives import encode, encode_prompts_only, judge, row_losses, say
from palimpsest.models.upper import Upper

PROMPTS = [
    "Ada Tolvek lives in the city of",
    "Mira Sorn",
    "The mother of Jon Karel was born in",
    "Ben Tolvek lives in Marrin and",
]
ANSWERS = ["Velden", "Port Velden Bay", "Marrin", "so"]
CASES = [(family, layer) for family in ALL_FAMILIES for layer in range(4)]


@pytest.fixture(scope="module")
def models():
    """One tiny model of each family (T5 also with the plain feed-forward), in float64 so that rounding is small."""
    made = {family: tiny_model(family, torch.float64) for family in ALL_FAMILIES}
    plain = tiny_model("t5", torch.float64, gated=False)
    plain.network.config.scale_decoder_outputs = False  # as in version 1.1
    return made | {"t5-plain": plain}


def answers(model) -> list[str]:
    """What is asked for, as the kind of model can say it."""
    return [LABELS[1], LABELS[3], LABELS[0], LABELS[2]] if model.kind == "encoder" else ANSWERS


class Adapter:
    """Adds a vector to a linear map's output at the tokens up to the query, once for each sequence.

    As gated adapters do: a cached step (the sequence in the pass is shorter than the padding) is left alone.
    """

    def __init__(self, model, layer: int, site: str, vector):
        self.model, self.vector, self.seen = model, vector, []
        self.handle = model.linear(layer, site).register_forward_hook(self)

    def __call__(self, module, inputs, output):
        padding, query = self.model.padding, self.model.query
        if padding is None or padding.shape[1] != inputs[0].shape[1]:
            return None
        self.seen.append((inputs[0].detach(), padding, query))
        place = torch.arange(output.shape[1])[None] <= query[:, None]
        return output + self.vector * place[..., None].to(output.dtype)


@pytest.mark.parametrize(("family", "layer"), [*CASES, ("t5-plain", 2)])
def test_upper_equals_the_whole_pass(models, family, layer):
    """Losses, verdicts and answers of a padded batch and of some of its rows, from every block."""
    model = models[family]
    inputs = encode(model, PROMPTS, answers(model))
    plain, upper = judge(model, inputs), Upper(model, inputs, layer)
    assert torch.allclose(upper.row_losses(), plain.losses, atol=1e-10)
    assert torch.equal(upper.judge().right, plain.right)
    said = say(model, PROMPTS, 8)
    assert upper.say(8) == said
    some = Upper(model, inputs, layer).rows([3, 1])
    assert len(some) == 2
    assert torch.allclose(some.row_losses(), plain.losses[[3, 1]], atol=1e-10)
    assert some.say(8) == [said[3], said[1]]
    assert upper.rows([1]).say(8) == [said[1]]  # after an answer: kept keys and values go along
    prompts = Upper(model, encode_prompts_only(model, PROMPTS), layer)
    assert prompts.say(8) == said and prompts.say(3) == say(model, PROMPTS, 3)
    assert prompts.rows([2, 0]).say(8) == [said[2], said[0]]
    assert model.padding is None and model.query is None


@pytest.mark.parametrize("site", ["mlp_in", "mlp_out"])
@pytest.mark.parametrize(("family", "layer"), [*CASES, ("t5-plain", 2)])
def test_hooks_see_the_same(models, family, layer, site):
    """A hook on the edited linear map: the same input, padding and query, the same losses, gradients, answers."""
    model = models[family]
    inputs = encode(model, PROMPTS, answers(model))
    generator = torch.Generator().manual_seed(0)
    width = 48 if site == "mlp_in" else 32
    vector = 3 * torch.randn(width, generator=generator, dtype=torch.float64)
    vector.requires_grad_(True)
    upper = Upper(model, inputs, layer)
    untouched = row_losses(model, inputs).detach()
    adapter = Adapter(model, layer, site, vector)
    try:
        plain, short = row_losses(model, inputs), upper.row_losses()
        assert not torch.allclose(plain, untouched, atol=1e-3)
        assert torch.allclose(plain, short, atol=1e-10)
        (whole,), (part,) = (torch.autograd.grad(loss.sum(), vector) for loss in (plain, short))
        assert whole.abs().max() > 1e-4 and torch.allclose(whole, part, atol=1e-9)
        (first, *full), (second, *kept) = adapter.seen
        assert torch.allclose(first, second, atol=1e-10)
        assert all(torch.equal(a, b) for a, b in zip(full, kept, strict=True))
        adapter.seen.clear()
        said = say(model, PROMPTS, 8)
        assert len(adapter.seen) == 1
        assert upper.say(8) == said and len(adapter.seen) == 2
        assert upper.rows([2]).say(8) == [said[2]] == say(model, [PROMPTS[2]], 8)
        assert Upper(model, encode_prompts_only(model, PROMPTS), layer).say(8) == said
    finally:
        adapter.handle.remove()
    if model.kind != "encoder":
        assert said != say(model, PROMPTS, 8), "the adapter changes nothing that is said"


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_a_hook_below_is_frozen_in(models, family):
    """Edits below the block act when the rows are run to it, and are kept as they were then."""
    model = models[family]
    inputs = encode(model, PROMPTS, answers(model))
    vector = 3 * torch.randn(32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before = row_losses(model, inputs)
    adapter = Adapter(model, 1, "mlp_out", vector)
    try:
        edited, upper = row_losses(model, inputs), Upper(model, inputs, 2)
    finally:
        adapter.handle.remove()
    assert torch.allclose(upper.row_losses(), edited, atol=1e-10)
    assert not torch.allclose(edited, before, atol=1e-3)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_weights_above_may_change(models, family):
    """An update of the block's own matrix: kept states stay right, and its gradient is that of the whole pass."""
    model = models[family]
    inputs = encode(model, PROMPTS, answers(model))
    upper = Upper(model, inputs, 2)
    weight = model.linear(2, "mlp_out").weight
    kept = weight.detach().clone()
    weight.requires_grad_(True)
    try:
        for _ in range(2):
            plain = torch.autograd.grad(row_losses(model, inputs).sum(), weight)[0]
            short = torch.autograd.grad(upper.row_losses().sum(), weight)[0]
            assert torch.allclose(plain, short, atol=1e-9)
            weight.data -= 0.1 * plain
        assert upper.say(5) == say(model, PROMPTS, 5)
    finally:
        weight.requires_grad_(False)
        weight.data.copy_(kept)


def test_blocks_below_run_once(models):
    """Losses and answers run no block below the edited one again, tokens after the prompt excepted."""
    for family in ALL_FAMILIES:
        model, widths = models[family], []
        handle = model.block(0).register_forward_hook(
            lambda _, args, __, seen=widths: seen.append(args[0].shape[1])
        )
        try:
            upper = Upper(model, encode(model, PROMPTS, answers(model)), 3)
            assert len(widths) == 1
            upper.row_losses()
            assert len(widths) == 1
            prompts = Upper(model, encode_prompts_only(model, PROMPTS), 3)
            widths.clear()
            prompts.say(4)
        finally:
            handle.remove()
        assert set(widths) <= {1} and (model.kind == "decoder" or not widths)


def test_a_layer_that_does_not_exist(models):
    """Refused by number before anything is run."""
    for model in models.values():
        inputs = encode_prompts_only(model, PROMPTS)
        with pytest.raises(ModelError, match="layer 4 does not exist"):
            Upper(model, inputs, 4)
