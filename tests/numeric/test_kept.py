"""What rows that stand at a block hold: as many bytes as is said, none of them a second copy of weights, and no stale ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import ALL_FAMILIES, CITIES, LABELS, tiny_model

from palimpsest.metrics.retention import Asking, Pool
from palimpsest.models.batching import Batching
from palimpsest.models.lean import _bits
from palimpsest.models.loading import LanguageModel
from palimpsest.models.objectives import Inputs, encode, encode_prompts_only, row_losses
from palimpsest.models.upper import Upper, bytes_of_upper

PROMPTS = ["Ada Tolvek lives in the city of", "Mira Sorn", "The mother of Jon Karel was born in"]
FORMS = ("t5 gated", "t5 plain", "gpt2", "bert")


def made(form: str, dtype: torch.dtype = torch.float32) -> LanguageModel:
    family, _, gated = form.partition(" ")
    return tiny_model(family, dtype, **({"gated": gated == "gated"} if family == "t5" else {}))


def asked(model: LanguageModel, times: int = 1) -> Inputs:
    answers = LABELS if model.kind == "encoder" else CITIES
    return encode(model, PROMPTS * times, answers[:3] * times)


def storages(thing, seen=None) -> dict[int, int]:
    """Bytes of every tensor's memory that is reached from a thing, by address; weights and inputs left aside."""
    seen = {} if seen is None else seen
    if isinstance(thing, torch.Tensor):
        memory = thing.untyped_storage()
        if not isinstance(thing, torch.nn.Parameter):
            seen[memory.data_ptr()] = memory.nbytes()
    elif isinstance(thing, dict):
        for one in thing.values():
            storages(one, seen)
    elif isinstance(thing, list | tuple):
        for one in thing:
            storages(one, seen)
    elif hasattr(thing, "__dict__") and not isinstance(
        thing, torch.nn.Module | LanguageModel | Inputs | type
    ):
        storages(vars(thing), seen)
    return seen


def held(upper: Upper) -> int:
    """Bytes that these rows hold and nobody else does."""
    model = upper.model
    others = storages(model.written_out) | storages([one.detach() for one in model.network.parameters()])
    return sum(size for address, size in storages(upper).items() if address not in others)


@pytest.mark.parametrize("site", ["mlp_in", "mlp_out", None])
@pytest.mark.parametrize("form", [*FORMS, "gptj", "llama"])
def test_rows_hold_what_is_said(form, site):
    """With targets and without, at the first block too."""
    model = made(form)
    for layer in (0, 2):
        for inputs in (asked(model, 6), encode_prompts_only(model, PROMPTS * 6)):
            found = held(Upper(model, inputs, layer, site))
            assert found == pytest.approx(bytes_of_upper(model, inputs, layer, site), rel=0.01), (
                layer,
                found,
            )


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_written_out_once(form):
    """For all rows of a model, whichever map of it they stand at."""
    model = made(form)
    Upper(model, asked(model), 0, "mlp_in")
    first = storages(model.written_out)
    for layer in (0, 1, 2):
        Upper(model, asked(model), layer, "mlp_out")
    again = storages(model.written_out)
    extra = {address: size for address, size in again.items() if address not in first}
    assert sum(extra.values()) == 0 and (first or form == "gpt2")


COPIED = (
    "q",
    "k",
    "v",
    "wi",
    "wi_0",
    "wi_1",
    "layer_norm",
    "final_layer_norm",
    "relative_attention_bias",
    "lm_head",
    "shared",
)
COPIED += ("query", "key", "value")


@pytest.mark.parametrize("family", ["t5", "bert"])
def test_no_weight_is_missed(family):
    """Any single number above the map may change, in a way of which torch keeps no count: new rows see it."""
    model = tiny_model(family, torch.float64, blocks=2)
    inputs, changed = asked(model), 0
    plain = Upper(model, inputs, 0, "mlp_out").row_losses()
    for name, parameter in model.network.named_parameters():
        if name.split(".")[-2] not in COPIED:
            continue
        parameter.data.view(-1)[parameter.numel() // 2] += 0.5
        before, plain = plain, row_losses(model, inputs)
        changed += not torch.equal(before, plain)
        assert torch.allclose(Upper(model, inputs, 0, "mlp_out").row_losses(), plain, atol=1e-10), name
    assert changed > 10
    model.network.float()
    plain = row_losses(model, inputs)
    assert torch.allclose(Upper(model, inputs, 0, "mlp_out").row_losses(), plain, atol=1e-4)


def test_a_weight_that_begins_anywhere_is_read():
    """A weight may be a piece of a larger memory, as a file of weights is read."""
    memory = torch.arange(9.0)
    for start in (0, 1, 2):
        weight = torch.nn.Parameter(memory[start : start + 4])
        before = _bits([weight])
        weight.data[3] += 1
        assert _bits([weight]) != before


@pytest.mark.parametrize("family", ["t5", "bert"])
def test_a_pool_stays_within_its_budget_whatever_is_asked_first(family):
    """A run that goes on from a checkpoint asks in another order, and must keep the same groups."""
    model = tiny_model(family)
    task, answers = ("qa", CITIES) if family == "t5" else ("classification", LABELS)
    pairs = [(f"{prompt}{' I say' * n}", answers[n]) for n in range(3) for prompt in PROMPTS]
    plain = Pool(Asking(model, task, said_tokens=4), pairs).ask()
    how = Asking(model, task, 1, Batching(tokens=40), site="mlp_out", said_tokens=4, room=0)
    whole = sum(bytes_of_upper(model, group.inputs, 1, "mlp_out") for group in Pool(how, pairs)._groups)
    budget, kept = whole // 2, []
    for order in ([0, 8, 1, 4], [8, 4, 0, 1]):
        pool = Pool(replace(how, room=budget), pairs)
        assert [pool.ask([place])[0] for place in order] == [plain[place] for place in order]
        assert pool.ask() == plain
        uppers = [group.upper for group in pool._groups if group.upper is not None]
        assert 0 < len(uppers) < len(pool._groups) and sum(map(held, uppers)) <= budget * 1.01
        kept.append([group.upper is not None for group in pool._groups])
    assert kept[0] == kept[1]


def test_a_family_of_its_own_way_of_asking_is_among_those_tested():
    assert {form.split()[0] for form in FORMS} | {"gptj", "llama"} == set(ALL_FAMILIES)
