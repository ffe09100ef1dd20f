"""Running part of a model equals running all of it."""

from __future__ import annotations

import torch

from palimpsest.models.partial import (
    KeyValueCache,
    Noted,
    additive,
    causal_mask,
    embed,
    read_out,
    row_positions,
    run_blocks,
)
from palimpsest.models.tokens import (
    encode_pairs,
    encode_prompts,
    last_occurrence,
    subject_index,
    tokenise,
)

TEXTS = ["Ada Tolvek lives in the city of Velden", "Mira Sorn", "The mother of Jon Karel was born in"]


def test_block_by_block_equals_the_network(model):
    """Padded rows, all blocks run by us: the same logits at every real token."""
    batch = encode_prompts(model, TEXTS)
    mask, positions = causal_mask(batch.attention_mask, model.dtype), row_positions(batch)
    with torch.no_grad():
        hidden = run_blocks(model, embed(model, batch), 0, model.n_blocks - 1, mask, positions)
        ours = read_out(model, hidden)
    theirs = model.network(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    real = batch.attention_mask.bool()
    assert torch.allclose(ours[real], theirs[real], atol=1e-5)


def test_tail_with_kept_prefix_equals_the_whole(model):
    """Only the last tokens of each row, with ragged kept prefixes: the same outputs."""
    batch = encode_prompts(model, TEXTS)
    n = batch.input_ids.shape[1]
    mask, positions = causal_mask(batch.attention_mask, model.dtype), row_positions(batch)
    start = torch.tensor([3, 1, 2])
    width = int((batch.lengths - start).max())
    noted: Noted = {}
    with torch.no_grad():
        hidden = embed(model, batch)
        whole = run_blocks(model, hidden, 0, model.n_blocks - 1, mask, positions, KeyValueCache(noted=noted))
        places = (start[:, None] + torch.arange(width)).clamp(max=n - 1)
        tail = hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[2]))
        earlier = (torch.arange(n) < start[:, None])[:, None].expand(-1, width, -1)
        own = torch.ones(width, width, dtype=torch.bool).tril().expand(3, -1, -1)
        allowed = torch.cat([earlier, own], dim=2)[:, None]
        out = run_blocks(
            model, tail, 0, model.n_blocks - 1, additive(allowed, model.dtype), places, KeyValueCache(noted)
        )
    for row in range(3):
        length = int(batch.lengths[row] - start[row])
        assert torch.allclose(out[row, :length], whole[row, start[row] : start[row] + length], atol=1e-5)


def test_pairs_mark_exactly_the_answer(model):
    """Prompt tokens and answer tokens put together are the joint text; the span decodes to the answer."""
    pairs = [("Ada Tolvek lives in the city of", "Port Velden Bay"), ("Mira Sorn", "Velden")]
    batch = encode_pairs(model, pairs)
    for row, (prompt, answer) in enumerate(pairs):
        span = batch.tokens.input_ids[row, batch.answer_start[row] : batch.answer_end[row]]
        before = batch.tokens.input_ids[row, : batch.answer_start[row]]
        assert model.tokenizer.decode(span).strip() == answer
        assert before.tolist() == tokenise(model, [prompt])[0].ids


def test_subject_twice_takes_the_last_occurrence(gpt2):
    """Decision 16, and braces are ordinary text."""
    text = "Ada Sorn {} met Ada Sorn in Velden"
    row = tokenise(gpt2, [text])[0]
    index = subject_index(row, text, "Ada Sorn")
    first, last = row.spans[index]
    assert text.rfind("Sorn") < last <= text.rfind("Sorn") + 4 and first >= text.rfind("Ada")


def test_a_subject_inside_another_word_is_not_the_subject():
    """ "Ann" in "Ann lives in Annville" is the first one; without a whole word the last occurrence is taken."""
    assert last_occurrence("Ann lives in Annville", "Ann") == 0
    assert last_occurrence("Ann met Ann, who", "Ann") == 8
    assert last_occurrence("in Annville", "Ann") == 3
    assert last_occurrence("Bob", "Ann") == -1


def test_fused_activation_is_the_same_function():
    """The kernel put in at loading equals the composed tanh GELU."""
    from transformers.activations import NewGELUActivation

    from palimpsest.models.loading import fuse_activations

    holder = torch.nn.Sequential(NewGELUActivation())
    x = torch.linspace(-8, 8, 1001, dtype=torch.float64)
    before = holder(x)
    assert not isinstance(fuse_activations(holder)[0], NewGELUActivation)
    assert torch.allclose(holder(x), before, atol=1e-12)
