"""What is written out above one linear map equals the network's own modules; the small Adam equals the library's."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_model

from palimpsest.editors import make_editor
from palimpsest.editors.shared.adam import Adam
from palimpsest.edits import Edit
from palimpsest.errors import DataError, ModelError
from palimpsest.models.objectives import encode, encode_prompts_only, judge, row_losses, say
from palimpsest.models.upper import Upper

PROMPTS = ["Ada Tolvek lives in the city of", "Mira Sorn", "The mother of Jon Karel was born in"]
ANSWERS = ["Velden", "Port Velden Bay", "Marrin"]
SITES = ("mlp_in", "mlp_out")


CLASSES = ["class 2", "class 0", "class 3"]
ASIDE = {"t5": "layer.0.SelfAttention.o", "gpt2": "attn.c_proj", "bert": "attention.output.dense"}


def answers(model):
    """Right answers, of the kind that the model gives."""
    return CLASSES if model.kind == "encoder" else ANSWERS


@pytest.fixture(scope="module", params=["t5 gated", "t5 plain", "t5 unscaled", "gpt2", "bert"])
def model(request):
    """T5 with both kinds of MLP, and with a decoder whose output is not scaled; norms and shifts that are not all the same."""
    family, _, form = request.param.partition(" ")
    made = tiny_model(family, torch.float64, **({"gated": form != "plain"} if family == "t5" else {}))
    if family == "t5":
        made.network.config.scale_decoder_outputs = form != "unscaled"
    generator = torch.Generator().manual_seed(1)
    for name, parameter in made.network.named_parameters():
        if parameter.dim() == 1 and name != "shared.weight":
            parameter.data += 0.3 * torch.rand(parameter.shape, generator=generator, dtype=parameter.dtype)
    return made


def gradient(model, layer, site, losses):
    """With respect to the map's matrix, of a weighted sum of the losses."""
    weight = model.linear(layer, site).weight
    weight.requires_grad_(True)
    try:
        found = losses()
        weights = torch.arange(1, len(found) + 1, dtype=found.dtype)
        return found.detach(), torch.autograd.grad((found * weights).sum(), weight)[0]
    finally:
        weight.requires_grad_(False)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("layer", range(4))
def test_equals_the_network(model, layer, site):
    """Losses, verdicts, gradients and answers of a padded batch, of some of its rows, and of one alone."""
    every = encode(model, PROMPTS, answers(model))
    whole = Upper(model, every, layer, site)
    assert whole._above is not None, "the lean way was not taken"
    for rows in ([0, 1, 2], [2, 0], [1]):
        inputs, upper = every.rows(rows), whole if len(rows) == 3 else whole.rows(rows)
        plain, expected = gradient(model, layer, site, lambda inputs=inputs: row_losses(model, inputs))
        lean, found = gradient(model, layer, site, upper.row_losses)
        assert torch.allclose(lean, plain, atol=1e-10)
        # T5's norms take their variance in float32, which rounds the gradient of the plain way
        largest = float(expected.abs().max())
        assert largest > 1e-4 and float((found - expected).abs().max()) < 3e-5 * largest
        assert torch.equal(upper.judge().right, judge(model, inputs).right)
        assert upper.say(8) == say(model, [PROMPTS[row] for row in rows], 8)
    assert Upper(model, encode_prompts_only(model, PROMPTS), layer, site).say(8) == say(model, PROMPTS, 8)


@pytest.mark.parametrize("site", SITES)
def test_the_map_is_called_as_a_module(model, site):
    """Hooks on it run and see what asks, and a change of its weight is seen at once."""
    inputs = encode(model, PROMPTS, answers(model))
    upper, module = Upper(model, inputs, 2, site), model.linear(2, site)
    untouched = upper.row_losses()
    seen = []

    def hook(_, arguments, output):
        seen.append((model.query, model.padding))
        return 2 * output

    handle = module.register_forward_hook(hook)
    try:
        plain, lean = row_losses(model, inputs), upper.row_losses()
        assert upper.say(6) == say(model, PROMPTS, 6)
    finally:
        handle.remove()
    assert torch.allclose(plain, lean, atol=1e-10) and not torch.allclose(lean, untouched, atol=1e-3)
    assert all(torch.equal(a, b) for a, b in zip(seen[0], seen[1], strict=True))
    kept = module.weight.detach().clone()
    try:
        module.weight.data *= 1.5
        assert torch.allclose(upper.row_losses(), row_losses(model, inputs), atol=1e-10)
    finally:
        module.weight.data.copy_(kept)


def test_where_it_stands_aside(model):
    """Switched off, at a map it does not know, and in half precision; what is refused stays refused."""
    inputs = encode(model, PROMPTS, answers(model))
    assert Upper(model, inputs, 2)._above is None
    assert Upper(model, inputs, 2, ASIDE[model.family.name])._above is None
    model.lean = False
    try:
        assert Upper(model, inputs, 2, "mlp_out")._above is None
    finally:
        model.lean = True
    with pytest.raises(DataError, match="no targets"):
        Upper(model, encode_prompts_only(model, PROMPTS), 2, "mlp_out").judge()
    with pytest.raises(ModelError, match="site 'nowhere'"):
        Upper(model, inputs, 2, "nowhere")


@pytest.mark.parametrize("name", ["grace", "defer", "memory", "ft"])
@pytest.mark.parametrize("family", ["t5", "gpt2", "bert"])
def test_edits_are_the_same(family, name):
    """The losses of an edit's steps: lean and plain, from the same start."""
    more = {"loss": "own", "stop": "argmax", "epsilon": None, "learning_rate": 1e-2} if name == "ft" else {}
    losses = []
    for lean in (True, False):
        model = tiny_model(family, torch.float64)
        model.lean = lean
        editor = make_editor(name, model, {"layer": 2, "site": "mlp_out", "steps": 6, **more}, seed=3)
        try:
            record = editor.edit([Edit(prompt=PROMPTS[1], target=answers(model)[1])], record=True).record
        finally:
            editor.remove()
        losses.append(torch.tensor(record["losses"] if name == "ft" else record["edits"][0]["losses"]))
    assert torch.allclose(losses[0], losses[1], rtol=1e-4), losses
    assert losses[0][-1] < losses[0][0] - 1e-3, "nothing was learned"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adam_is_the_librarys(dtype):
    """Bit for bit over many steps."""
    generator = torch.Generator().manual_seed(0)
    mine = [torch.randn(shape, generator=generator, dtype=dtype) for shape in ((5,), (3, 4))]
    theirs = [tensor.clone() for tensor in mine]
    small, library = Adam(mine, 0.3), torch.optim.Adam(theirs, lr=0.3)
    for _ in range(60):
        gradients = [torch.randn(tensor.shape, generator=generator, dtype=dtype) for tensor in mine]
        small.step(gradients)
        for tensor, one in zip(theirs, gradients, strict=True):
            tensor.grad = one
        library.step()
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
