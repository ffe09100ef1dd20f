"""Losses and answers of all kinds of models: padded batches equal one by one, and the network's own functions."""

from __future__ import annotations

import pytest
import torch
from tiny import ALL_FAMILIES, LABELS, tiny_model

from palimpsest.errors import DataError
from palimpsest.models.batching import Batching
from palimpsest.models.objectives import (
    NONE,
    encode,
    encode_prompts_only,
    judge,
    row_losses,
    say,
    say_rows,
    wanted,
)
from palimpsest.models.tokens import cut_to_context

PROMPTS = [
    "Ada Tolvek lives in the city of",
    "Mira Sorn",
    "The mother of Jon Karel was born in",
    "I say so",
    "Ben Tolvek lives in Marrin and",
]
ANSWERS = ["Velden", "Port Velden Bay", "Marrin", "Ostrava", "so"]
NAMES = [LABELS[1], LABELS[3], LABELS[0], LABELS[1], LABELS[2]]


@pytest.fixture(params=ALL_FAMILIES, scope="module")
def model(request):
    """A tiny model of each family; nothing here changes it."""
    return tiny_model(request.param)


def answers(model) -> list[str]:
    """What is asked for, as the kind of model can say it."""
    return NAMES if model.kind == "encoder" else ANSWERS


def generated(model, prompt: str, count: int) -> tuple[int, ...]:
    """Token ids of the network's own `generate`."""
    batch = model.tokenizer([prompt], return_tensors="pt")
    ids = model.network.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=model.tokenizer.pad_token_id,
    )[0].tolist()
    return tuple(ids[1:] if model.kind == "encoder_decoder" else ids[batch["input_ids"].shape[1] :])


def test_losses_are_those_of_the_network(model):
    """One by one, the network's own loss with labels: the prompt masked, the end token trained."""
    for prompt, answer in zip(PROMPTS, answers(model), strict=True):
        inputs = encode(model, [prompt], [answer])
        named = dict(inputs.named)
        if model.kind == "encoder":
            labels = torch.tensor([LABELS.index(answer)])
        elif model.kind == "encoder_decoder":
            labels = model.tokenizer(answer, return_tensors="pt")["input_ids"]
            named.pop("decoder_input_ids")
        else:
            ids = model.tokenizer(f"{prompt} {answer}")["input_ids"] + [model.tokenizer.eos_token_id]
            before = len(model.tokenizer(prompt)["input_ids"])
            assert inputs.named["input_ids"].tolist() == [ids]
            labels = torch.tensor([[NONE] * before + ids[before:]])
            assert inputs.query.tolist() == [before - 1]
        with torch.no_grad():
            theirs = model.network(**named, labels=labels).loss
            assert torch.allclose(row_losses(model, inputs)[0], theirs, atol=1e-5)


def test_a_padded_batch_equals_one_by_one(model):
    """Losses, verdicts and gradients of five rows of different lengths; rows() drops needless padding."""
    inputs = encode(model, PROMPTS, answers(model))
    alone = [encode(model, [p], [a]) for p, a in zip(PROMPTS, answers(model), strict=True)]
    found = judge(model, inputs)
    assert torch.allclose(found.losses, torch.cat([row_losses(model, one) for one in alone]), atol=1e-5)
    weight = model.linear(1, "mlp_out").weight.requires_grad_(True)
    try:
        (together,) = torch.autograd.grad(row_losses(model, inputs).sum(), weight)
        (apart,) = torch.autograd.grad(
            torch.stack([row_losses(model, one)[0] for one in alone]).sum(), weight
        )
    finally:
        weight.requires_grad_(False)
    assert together.abs().max() > 1e-4 and torch.allclose(together, apart, atol=1e-4, rtol=1e-4)
    for number, one in enumerate(alone):
        row = inputs.rows([number])
        assert all(torch.equal(row.named[name], one.named[name]) for name in one.named)
        assert torch.equal(row.targets, one.targets) and torch.equal(row.query, one.query)
    assert len(inputs.rows([3, 1])) == 2


def test_what_is_right_is_what_it_says(model):
    """A target made of what the model says is judged right, with the end token where it was said."""
    inputs = encode(model, PROMPTS, answers(model))
    said = say(model, PROMPTS, max_new_tokens=5)
    if model.kind == "encoder":
        own = encode(model, PROMPTS, [one.text for one in said])
        assert judge(model, own).right.all()
        assert (
            judge(model, inputs).right.tolist()
            == (torch.tensor([one.ids[0] for one in said]) == inputs.targets[:, 0]).tolist()
        )
        return
    for number, one in enumerate(said):
        row = inputs.rows([number])
        row.targets.fill_(NONE)
        ids = torch.tensor(one.ids)
        if model.kind == "encoder_decoder":
            row = encode_prompts_only(model, [PROMPTS[number]])
            start = torch.tensor([[model.network.config.decoder_start_token_id]])
            named = row.named | {"decoder_input_ids": torch.cat([start, ids[None, :-1]], dim=1)}
            row = type(row)(named, ids[None], row.query)
        else:
            prompt = encode_prompts_only(model, [PROMPTS[number]]).named["input_ids"]
            whole = torch.cat([prompt, ids[None]], dim=1)
            targets = torch.full_like(whole, NONE)
            targets[0, prompt.shape[1] - 1 : -1] = ids
            row = type(row)(
                {"input_ids": whole, "attention_mask": torch.ones_like(whole)}, targets, row.query
            )
        assert judge(model, row).right.tolist() == [True]


def test_it_says_what_generate_says(model):
    """In any batches, with and without kept keys and values; a classifier gives its most probable class."""
    said = say(model, PROMPTS, max_new_tokens=9)
    for batching in (Batching(tokens=1), Batching(tokens=25), Batching(equal_length=True)):
        assert say(model, PROMPTS, 9, batching) == said
    assert say(model, PROMPTS, 9, cached=False) == said
    assert say_rows(model, encode(model, PROMPTS, answers(model)), 9) == said
    assert say(model, []) == []
    if model.kind == "encoder":
        for prompt, one in zip(PROMPTS, said, strict=True):
            logits = model.network(**model.tokenizer([prompt], return_tensors="pt")).logits
            assert one.ids == (int(logits.argmax()),) and one.text == LABELS[one.ids[0]]
        return
    assert [one.ids for one in said] == [generated(model, prompt, 9) for prompt in PROMPTS]
    assert len({one.ids for one in said}) == len(said), "these answers do not tell rows apart"


@pytest.mark.parametrize("family", [name for name in ALL_FAMILIES if name != "bert"])
def test_the_end_token_ends_an_answer(family):
    """When the end token is what comes next, it is said, and the row leaves the batch; the others go on."""
    model = tiny_model(family)
    first = say(model, PROMPTS, 6)
    # Name a token that some rows say early the end token: those must stop there.
    end = next(token for one in first for token in one.ids[1:] if token < len(model.tokenizer))
    model.tokenizer.eos_token = model.tokenizer.convert_ids_to_tokens(end)
    assert model.end_token == end
    for before, after in zip(first, say(model, PROMPTS, 6), strict=True):
        stop = before.ids.index(end) + 1 if end in before.ids else 6
        assert after.ids == before.ids[:stop]


def test_the_context_ends_an_answer(model):
    """A decoder-only row that fills the context says no more than fits."""
    if model.kind != "decoder":
        return
    prompt = " ".join(["Mira"] * 61)
    length = len(model.tokenizer(prompt)["input_ids"])
    assert len(say(model, [prompt, "Mira"], 20)[0].ids) <= model.context - length


def test_wanted_is_what_the_loss_trains(model):
    """The answer as it would be said has the tokens of the targets, and its text."""
    inputs = encode(model, PROMPTS, answers(model))
    for row, one, answer in zip(inputs.targets, wanted(model, answers(model)), answers(model), strict=True):
        assert tuple(row[row != NONE].tolist()) == one.ids
        assert one.text == answer


def test_the_query_is_the_last_prompt_token_or_the_end_mark(model):
    """The same position with and without a target; `</s>` and [SEP] of the encoders."""
    inputs, alone = encode(model, PROMPTS, answers(model)), encode_prompts_only(model, PROMPTS)
    assert torch.equal(inputs.query, alone.query)
    ids = alone.named["input_ids"][torch.arange(len(PROMPTS)), alone.query]
    if model.kind == "decoder":
        assert ids.tolist() == [model.tokenizer(prompt)["input_ids"][-1] for prompt in PROMPTS]
    else:
        mark = "</s>" if model.kind == "encoder_decoder" else "[SEP]"
        assert set(ids.tolist()) == {model.tokenizer.convert_tokens_to_ids(mark)}


def test_passes_tell_padding_and_query(model):
    """During every pass hooks see which tokens are real and which position asks; afterwards nothing is left."""
    seen = []
    handle = model.linear(1, "mlp_out").register_forward_hook(
        lambda _, inputs, __: seen.append((inputs[0].shape[1], model.padding, model.query))
    )
    try:
        inputs = encode(model, PROMPTS, answers(model))
        row_losses(model, inputs)
        assert torch.equal(seen[0][1], inputs.padding) and torch.equal(seen[0][2], inputs.query)
        seen.clear()
        say(model, PROMPTS, 3)
    finally:
        handle.remove()
    alone = encode_prompts_only(model, PROMPTS)
    length, padding, query = seen[0]
    assert padding.shape == (5, length) and sorted(query.tolist()) == sorted(alone.query.tolist())
    assert len(seen) == (3 if model.kind == "decoder" else 1)
    for length, padding, query in seen[1:]:
        assert length == 1 and padding.shape[1] > 1 and query is None
    assert model.padding is None and model.query is None


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_refusals(family):
    """Empty prompt, empty target, unknown class, too long: the record or field and a remedy."""
    model = tiny_model(family)
    good = LABELS[0] if family == "bert" else "Velden"
    with pytest.raises(DataError, match="prompt is empty.*one word"):
        encode(model, ["Mira", " "], [good, good])
    with pytest.raises(DataError, match="prompt is empty"):
        encode_prompts_only(model, [""])
    with pytest.raises(DataError, match="reads at most 64"):
        encode(model, ["Mira Sorn lives " * 40], [good])
    with pytest.raises(DataError, match="reads at most 64"):
        say(model, ["Mira Sorn lives " * 40])
    with pytest.raises(DataError, match="no targets"):
        row_losses(model, encode_prompts_only(model, ["Mira"]))
    if family == "bert":
        with pytest.raises(DataError, match="'class 9'.*class 0, class 1, class 2, class 3"):
            encode(model, ["Mira"], ["class 9"])
        with pytest.raises(DataError, match="class ''"):
            wanted(model, [""])
        return
    with pytest.raises(DataError, match="target is empty"):
        encode(model, ["Mira"], [" "])
    with pytest.raises(DataError, match="target is empty"):
        wanted(model, [""])
    if family == "gpt2":  # the end token counts
        fits = " ".join(["Mira"] * 62)
        room = 64 - len(model.tokenizer(fits + " Velden")["input_ids"])
        prompt = fits + " Mira" * room
        with pytest.raises(DataError, match="has 65 tokens"):
            encode(model, [prompt], ["Velden"])


def test_documents_are_cut_to_what_the_model_reads(model):
    """A long text becomes the longest beginning that fits; a short one stays."""
    long, short = "Mira Sorn lives in Velden. " * 40, "Mira Sorn lives in Velden."
    cut, kept = cut_to_context(model, [long, short])
    assert kept == short and long.startswith(cut)
    assert 60 <= len(model.tokenizer(cut)["input_ids"]) <= 64
    encode_prompts_only(model, [cut])
