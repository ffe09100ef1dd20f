"""The gated adapter: which positions it overwrites, and that batches, padding, kept states and keys change nothing."""

from __future__ import annotations

import pytest
import torch
from tiny import ALL_FAMILIES, FAMILIES, LABELS, tiny_model

from palimpsest.editors.shared.gated_adapter import REPLACEMENTS, GatedAdapter, Override, Query
from palimpsest.errors import ModelError
from palimpsest.models.batching import Batching
from palimpsest.models.families import matrix_view
from palimpsest.models.objectives import asking, encode, encode_prompts_only, row_losses, say
from palimpsest.models.upper import Upper

PROMPTS = [
    "Ada Tolvek lives in",
    "Mira",
    "The mother of Ben Tolvek was born in the city of",
    "Jon Karel lives",
]


def targets(model) -> list[str]:
    return LABELS if model.kind == "encoder" else ["Velden", "Ostrava", "Port Velden Bay", "Marrin"]


class Rule:
    """Fires on half of the states, with a value that depends on the state; the threshold is set by the prompts."""

    def __init__(self, model, layer=1, site="mlp_out", replacement="prompt_before", **extra):
        self.adapter = GatedAdapter(model, layer, site, self, replacement, **extra)
        inputs = encode_prompts_only(model, PROMPTS)
        states = self.adapter.query(inputs).states
        generator = torch.Generator().manual_seed(0)
        width = (self.adapter.value_width, self.adapter.key_width)
        self.matrix = torch.randn(width, generator=generator) / states.norm(dim=1).mean()
        self.direction = states[0] - states[1]
        scores = states @ self.direction
        self.threshold = float(scores.sort().values[1:3].mean())
        self.fired = (scores > self.threshold).tolist()
        self.share = None
        self.adapter.attach()

    def __call__(self, query: Query) -> Override:
        value = 3 * torch.tanh(query.states @ self.matrix.T)
        fired = query.states @ self.direction > self.threshold
        return Override(fired, value, None if self.share is None else torch.full((len(value),), self.share))


@pytest.mark.parametrize("family", ALL_FAMILIES)
@pytest.mark.parametrize("replacement", REPLACEMENTS)
@pytest.mark.parametrize("site", ["mlp_in", "mlp_out"])
def test_what_is_overwritten_by_hand(family, replacement, site):
    """The map's output at every position, in a padded batch, against the definition."""
    model = tiny_model(family)
    own, seen = [], []
    module = model.linear(1, site)
    first = module.register_forward_hook(lambda _, inputs, output: own.append((inputs[0], output)))
    rule = Rule(model, site=site, replacement=replacement)
    assert sorted(rule.fired) == [False, False, True, True]
    last = module.register_forward_hook(lambda _, __, output: seen.append(output))
    own.clear()
    inputs = encode(model, PROMPTS, targets(model))
    row_losses(model, inputs)
    states, output = own[0]
    for row, (at, fired) in enumerate(zip(inputs.query.tolist(), rule.fired, strict=True)):
        value = 3 * torch.tanh(rule.matrix @ states[row, at])
        n = output.shape[1]
        places = {
            "prompt_before": range(at),
            "last": [at],
            "prompt": range(at + 1),
            "all": range(n),
        }[replacement]
        expected = output[row].clone()
        if fired:
            expected[list(places)] = value
        assert torch.allclose(seen[0][row], expected, atol=1e-5)
    for handle in (first, last):
        handle.remove()


@pytest.mark.parametrize("family", ALL_FAMILIES)
@pytest.mark.parametrize("replacement", REPLACEMENTS)
def test_padded_batches_give_what_one_by_one_gives(family, replacement):
    """Q9: every row has its own asking position and its own decision; kept lower blocks change nothing."""
    model = tiny_model(family)
    untouched = row_losses(model, encode(model, PROMPTS, targets(model)))
    Rule(model, replacement=replacement)
    inputs = encode(model, PROMPTS, targets(model))
    together = row_losses(model, inputs)
    alone = [row_losses(model, encode(model, [p], [t])) for p, t in zip(PROMPTS, targets(model), strict=True)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-4)
    assert (together - untouched).abs().max() > 1e-2
    assert torch.allclose(Upper(model, inputs, 1).row_losses(), together, atol=1e-4)
    said = say(model, PROMPTS, 6)
    assert said == say(model, PROMPTS, 6, Batching(tokens=1))
    assert said == Upper(model, encode_prompts_only(model, PROMPTS), 1).say(6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("replacement", REPLACEMENTS)
def test_kept_keys_and_values_give_what_whole_rows_give(family, replacement):
    """Q2: the prompt's pass decides, later steps keep to it, also when some rows have ended before others."""
    model = tiny_model(family)
    Rule(model, replacement=replacement)
    whole = say(model, PROMPTS, 6, cached=False)
    assert whole == say(model, PROMPTS, 6)
    ends = next(token for said in whole for token in said.ids if any(token not in row.ids for row in whole))
    model.tokenizer.eos_token = model.tokenizer.convert_ids_to_tokens(ends)  # some rows now end before others
    shorter = say(model, PROMPTS, 6, cached=False)
    assert len({len(said.ids) for said in shorter}) > 1
    assert shorter == say(model, PROMPTS, 6)


@pytest.mark.parametrize("family", [*FAMILIES, "t5"])
@pytest.mark.parametrize("replacement", REPLACEMENTS)
def test_the_network_s_own_generate(family, replacement):
    """transformers' generate, with its cache and padding on the left, says what the project's own loop says."""
    model = tiny_model(family)
    Rule(model, replacement=replacement)
    side = "left" if model.kind == "decoder" else "right"
    model.tokenizer.padding_side = side
    batch = model.tokenizer(PROMPTS, return_tensors="pt", padding=True)
    out = model.network.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        max_new_tokens=5,
        do_sample=False,
    )
    start = batch["input_ids"].shape[1] if model.kind == "decoder" else 1
    end, said = model.end_token, say(model, PROMPTS, 5)
    for row, expected in zip(out[:, start:].tolist(), said, strict=True):
        cut = row[: row.index(end) + 1] if end in row else row
        assert tuple(cut) == expected.ids


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_nothing_decided_is_nothing_changed(family):
    """Bit for bit; and after `detach`, whatever the rule does, even fail."""
    model = tiny_model(family)
    inputs = encode(model, PROMPTS, targets(model))
    before = row_losses(model, inputs)
    adapter = GatedAdapter(model, 1, "mlp_out", lambda asked: None)
    adapter.attach()
    assert torch.equal(row_losses(model, inputs), before)

    def fails(asked):
        raise RuntimeError("disk on fire")

    adapter.rule = fails
    with pytest.raises(RuntimeError, match="disk on fire"):
        row_losses(model, inputs)
    assert model.padding is None and model.query is None
    adapter.detach()
    adapter.detach()
    assert torch.equal(row_losses(model, inputs), before)


def test_soft_decisions_mix(gpt2):
    """Share 0 is the own output, share 1 the value; gradients reach both."""
    inputs = encode(gpt2, PROMPTS, targets(gpt2))
    before = row_losses(gpt2, inputs)
    rule = Rule(gpt2, replacement="all")
    hard = row_losses(gpt2, inputs)
    for share, expected in ((0.0, before), (1.0, hard)):
        rule.share = share
        assert torch.allclose(row_losses(gpt2, inputs), expected, atol=1e-5)
    value = torch.zeros(rule.adapter.value_width, requires_grad=True)
    gate = torch.full((4,), 0.5, requires_grad=True)
    every = torch.ones(4, dtype=torch.bool)
    rule.adapter.rule = lambda asked: Override(every, value.expand(4, -1), gate)
    gradients = torch.autograd.grad(Upper(gpt2, inputs, 1).row_losses().sum(), [value, gate])
    assert all(float(gradient.abs().max()) > 0 for gradient in gradients)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_a_query_sees_the_layer_s_own_output(family):
    """Also when an adapter hangs there already (initial values "warm" must not read another edit's value)."""
    model = tiny_model(family)
    inputs = encode_prompts_only(model, PROMPTS)
    module = model.linear(1, "mlp_out")

    before = GatedAdapter(model, 1, "mlp_out", lambda _: None).query(inputs)
    after = Rule(model, replacement="all").adapter.query(inputs)
    assert torch.equal(before.states, after.states) and torch.equal(before.outputs, after.outputs)
    own = before.states @ matrix_view(module).T + (0 if module.bias is None else module.bias)
    assert torch.allclose(own, before.outputs, atol=1e-5)


def test_without_a_given_position_the_last_real_token_asks(gpt2):
    """A plain call of the network; the same as giving the positions."""
    rule = Rule(gpt2, replacement="prompt")
    inputs = encode_prompts_only(gpt2, PROMPTS)
    with asking(gpt2, inputs):
        given = gpt2.network(**inputs.named).logits
    assert rule.adapter.latest.fired.tolist() == rule.fired
    plain = gpt2.network(**inputs.named).logits
    real = inputs.padding.bool()
    assert torch.equal(plain[real], given[real])
    with gpt2.asking_at(torch.tensor([1, 2])), pytest.raises(ModelError, match="4 rows, but 2 positions"):
        gpt2.network(**inputs.named)


def test_places_that_are_no_linear_map(gpt2):
    for layer, site, message in (
        (9, "mlp_out", "layer 9 does not exist"),
        (1, "mlp_up", "site 'mlp_up' does not exist"),
        (1, "ln_1", "LayerNorm is no linear map"),
    ):
        with pytest.raises(ModelError, match=message):
            GatedAdapter(gpt2, layer, site, lambda asked: None)
