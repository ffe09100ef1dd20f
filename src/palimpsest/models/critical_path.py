"""Does a model keep a fact at the subject's last token? Two probes, for each block.

The *target-vector ceiling* asks whether any vector put there can make the model say something else: the
upper bound of every editor that writes at the subject. The *state swap* asks whether another subject's
state, put there, brings that subject's answer along. A model may recall every fact and fail both (mini_world
1): then its facts are looked up elsewhere, and an editor's failure would say nothing about the editor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from palimpsest.models.loading import LanguageModel
from palimpsest.models.partial import causal_mask, embed, read_out, row_positions, run_blocks
from palimpsest.models.tokens import TokenBatch, encode_pairs, join, subject_index, tokenise


@dataclass(frozen=True)
class TracedQuestion:
    """A prompt, its subject, and the answer that is asked for after it."""

    prompt: str
    subject: str
    answer: str


@dataclass
class TracedRows:
    """Questions as rows of tokens, with each block's output.

    Attributes:
        batch: prompt + answer, right-padded [b, n]; subject: token index of the subject's last token [b].
        inside: [b, n] positions whose next token belongs to the answer; wanted: that token.
        outputs: output [b, n, d] of each block.
    """

    batch: TokenBatch
    subject: Tensor
    inside: Tensor
    wanted: Tensor
    outputs: list[Tensor]

    def only(self, keep: Tensor) -> TracedRows:
        """Some of the rows; block outputs are left behind."""
        batch = TokenBatch(self.batch.input_ids[keep], self.batch.attention_mask[keep])
        return TracedRows(batch, self.subject[keep], self.inside[keep], self.wanted[keep], [])


@torch.no_grad()
def prepare(model: LanguageModel, questions: Sequence[TracedQuestion]) -> TracedRows:
    """Run the questions once, keeping every block's output."""
    texts = [join(q.prompt, q.answer) for q in questions]
    pairs = encode_pairs(model, [(q.prompt, q.answer) for q in questions])
    subject = torch.tensor(
        [
            subject_index(row, q.prompt, q.subject)
            for row, q in zip(tokenise(model, texts), questions, strict=True)
        ],
        device=model.device,
    )
    ids = pairs.tokens.input_ids
    position = torch.arange(ids.shape[1], device=ids.device)[None]
    start, end = pairs.answer_start.to(ids.device)[:, None], pairs.answer_end.to(ids.device)[:, None]
    inside = (position >= start - 1) & (position < end - 1)
    mask = causal_mask(pairs.tokens.attention_mask, model.dtype)
    hidden, outputs = embed(model, pairs.tokens), []
    for layer in range(model.n_blocks):
        hidden = run_blocks(model, hidden, layer, layer, mask, row_positions(pairs.tokens))
        outputs.append(hidden)
    return TracedRows(pairs.tokens, subject, inside, ids.roll(-1, dims=1), outputs)


def answers_right(
    model: LanguageModel, rows: TracedRows, hidden: Tensor, layer: int
) -> tuple[Tensor, Tensor]:
    """From block `layer`'s output [b, n, d]: (mean -log p of the answer's tokens [b], all of them the top
    one [b])."""
    if layer + 1 < model.n_blocks:
        mask = causal_mask(rows.batch.attention_mask, hidden.dtype)
        hidden = run_blocks(model, hidden, layer + 1, model.n_blocks - 1, mask, row_positions(rows.batch))
    at_row, at_column = torch.nonzero(rows.inside, as_tuple=True)
    logits = read_out(model, hidden[at_row, at_column]).float()
    wanted = rows.wanted[at_row, at_column]
    each = torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
    number = rows.inside.sum(dim=1)
    loss = torch.zeros(len(number), device=each.device).index_add(0, at_row, each) / number
    wrong = torch.zeros(len(number), device=each.device).index_add(
        0, at_row, (logits.argmax(dim=-1) != wanted).float()
    )
    return loss, wrong == 0


def target_vector_ceiling(
    model: LanguageModel,
    rows: TracedRows,
    layer: int,
    clamp: float = 0.75,
    step_ratio: float = 0.025,
    steps: int = 20,
) -> float:
    """Share of rows whose answer becomes the top prediction when the best vector is put at the subject.

    Adam on delta [b, d], added to block `layer`'s output at the subject's last token h_0; its step is
    `step_ratio` x |h_0| and |delta| <= `clamp` x |h_0| after every step. A row that has succeeded leaves the
    search.
    """
    index = torch.arange(len(rows.subject), device=rows.subject.device)
    open_rows, success = index, 0
    start = rows.outputs[layer][index, rows.subject].float()  # the search keeps its precision in half ones
    scale = start.norm(dim=1, keepdim=True)
    delta, first, second = torch.zeros_like(start), torch.zeros_like(start), torch.zeros_like(start)
    for step in range(1, steps + 1):
        mine, hidden = rows.only(open_rows), rows.outputs[layer][open_rows].clone()
        part = delta[open_rows].requires_grad_(True)
        local = torch.arange(len(open_rows), device=index.device)
        with torch.enable_grad():
            loss, right = answers_right(
                model,
                mine,
                hidden.index_put((local, mine.subject), part.to(hidden.dtype), accumulate=True),
                layer,
            )
            (gradient,) = torch.autograd.grad(loss.sum(), part)
        success += int(right.sum())
        open_rows, gradient = open_rows[~right], gradient[~right]
        if len(open_rows) == 0 or step == steps:
            break
        first[open_rows] = 0.9 * first[open_rows] + 0.1 * gradient
        second[open_rows] = 0.999 * second[open_rows] + 0.001 * gradient**2
        moved = (first[open_rows] / (1 - 0.9**step)) / ((second[open_rows] / (1 - 0.999**step)).sqrt() + 1e-8)
        new = delta[open_rows] - step_ratio * scale[open_rows] * moved
        limit = clamp * scale[open_rows] / new.norm(dim=1, keepdim=True).clamp_min(1e-12)
        delta[open_rows] = new * limit.clamp_max(1.0)
    return success / len(index)


@torch.no_grad()
def state_swap(model: LanguageModel, receivers: TracedRows, donors: TracedRows, layer: int) -> float:
    """Share of receivers that give the donor's answer once the donor's state stands at their subject.

    Args:
        receivers: rows of (receiver's prompt, DONOR's answer).
        donors: rows of (donor's prompt, donor's answer), in the same order.
    """
    index = torch.arange(len(receivers.subject), device=receivers.subject.device)
    hidden = receivers.outputs[layer].clone()
    hidden[index, receivers.subject] = donors.outputs[layer][index, donors.subject]
    _, right = answers_right(model, receivers, hidden, layer)
    return float(right.float().mean())
