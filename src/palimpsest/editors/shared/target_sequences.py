"""The sequences on which a target vector is searched: rewriting rows and one row that guards the subject's meaning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from palimpsest.editors.shared.contexts import put_before
from palimpsest.edits import Edit
from palimpsest.models.loading import LanguageModel
from palimpsest.models.tokens import TokenBatch, join, pad, subject_index, tokenise

KL_PROMPT = "{} is a"


@dataclass(frozen=True)
class TargetSequences:
    """R = b * (c + 1) right-padded rows: for each of b edits c rewriting rows, then its KL row.

    Attributes:
        tokens: the rows; a rewriting row is context + prompt + target without its last token.
        subject: index of the subject's last token in each row [R].
        edit: number of the edit each row belongs to [R].
        context: which of its edit's rows it is, 0..c [R]; rows of one number begin with the same context.
        bare: row of each edit's bare prompt [b].
        kl: each edit's KL row [b].
        read_row, read_column, read_token: the m places where a target token is predicted, and which token [m].
        read_weight: 1 / (c * number of target tokens) [m], so that sums over places are the loss of Eq. (4) of ROME.
    """

    tokens: TokenBatch
    subject: Int[Tensor, " R"]
    edit: Int[Tensor, " R"]
    context: Int[Tensor, " R"]
    bare: Int[Tensor, " b"]
    kl: Int[Tensor, " b"]
    read_row: Int[Tensor, " m"]
    read_column: Int[Tensor, " m"]
    read_token: Int[Tensor, " m"]
    read_weight: Float[Tensor, " m"]

    @property
    def n_edits(self) -> int:
        """b."""
        return len(self.bare)


def build_sequences(model: LanguageModel, edits: Sequence[Edit], contexts: Sequence[str]) -> TargetSequences:
    """Tokenise everything the search of a batch needs. The first context must be the bare one ("")."""
    prompts = [[put_before(context, edit.prompt) for context in contexts] for edit in edits]
    flat = [join(prompt, edit.target) for edit, row in zip(edits, prompts, strict=True) for prompt in row]
    guards = [KL_PROMPT.format(edit.subject) for edit in edits]
    rewriting, guarding = iter(tokenise(model, flat)), iter(tokenise(model, guards))

    rows: list[list[int]] = []
    subject, owner, bare, kl = [], [], [], []
    reads: list[tuple[int, int, int, float]] = []
    for number, (edit, texts) in enumerate(zip(edits, prompts, strict=True)):
        bare.append(len(rows))
        for prompt in texts:
            row = next(rewriting)
            start = next(i for i, (_, last) in enumerate(row.spans) if last > len(prompt))
            answer = row.ids[start:]
            weight = 1.0 / (len(texts) * len(answer))
            reads += [(len(rows), start - 1 + t, token, weight) for t, token in enumerate(answer)]
            subject.append(subject_index(row, prompt, str(edit.subject)))
            owner.append(number)
            rows.append(row.ids[:-1])
        kl.append(len(rows))
        guard = next(guarding)
        subject.append(subject_index(guard, guards[number], str(edit.subject)))
        owner.append(number)
        rows.append(guard.ids)

    device = model.device
    columns = [torch.tensor(column, device=device) for column in zip(*reads, strict=True)]
    return TargetSequences(
        tokens=pad(model, rows),
        subject=torch.tensor(subject, device=device),
        edit=torch.tensor(owner, device=device),
        context=torch.arange(len(rows), device=device) % (len(contexts) + 1),
        bare=torch.tensor(bare, device=device),
        kl=torch.tensor(kl, device=device),
        read_row=columns[0],
        read_column=columns[1],
        read_token=columns[2],
        read_weight=columns[3],
    )
