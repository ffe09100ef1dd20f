"""What a model's own loss is and what it says, in one place for all kinds of models.

    decoder           loss on the target's tokens and the end token (GRACE spec quirk Q1); says tokens, greedily
    encoder_decoder   loss on the target's tokens and `</s>`; says tokens, greedily
    encoder           cross entropy over the classes; says a class

Rows are padded on the right. Every pass tells hook layers which tokens are real (`model.padding`) and which position
asks a codebook (`model.query`): the last prompt token of a decoder, the last real token (`</s>`, `[SEP]`) otherwise.
`models/upper.py` gives the same numbers without running what an edit cannot change.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from palimpsest.errors import DataError
from palimpsest.models.batching import Batching
from palimpsest.models.greedy import (
    AnswerDecoder,
    CachedRows,
    Said,
    WholeRows,
    choose,
    continue_greedily,
    spoken,
)
from palimpsest.models.loading import LanguageModel
from palimpsest.models.tokens import Tokenised, encode_pairs, join, pad, tokenise

NONE = -100  # no target here


@dataclass(frozen=True)
class Inputs:
    """Rows ready to be run.

    Attributes:
        named: what the network takes: input_ids [b, n], attention_mask [b, n]; with targets, an encoder-decoder's
            decoder_input_ids [b, m] as well.
        targets: token that each output position should give, -100 for none. Decoder: [b, n], the token after each
            position; encoder-decoder: [b, m]; classifier: class numbers [b, 1]. Without targets: [b, 0].
        query: position [b] in the edited stack's sequence that asks a codebook.
    """

    named: dict[str, Tensor]
    targets: Int[Tensor, "b m"]
    query: Int[Tensor, " b"]

    def __len__(self) -> int:
        return len(self.query)

    @property
    def padding(self) -> Int[Tensor, "b n"]:
        """1 for real tokens of the edited stack's sequence."""
        return self.named["attention_mask"]

    def rows(self, rows: Sequence[int] | Tensor) -> Inputs:
        """Some of the rows, without the padding that these do not need."""
        index = torch.as_tensor(rows, dtype=torch.long, device=self.query.device)
        longest = int(self.padding[index].sum(dim=1).max())
        named = {name: self.named[name][index, :longest] for name in ("input_ids", "attention_mask")}
        targets = self.targets[index]
        if "decoder_input_ids" in self.named:
            width = int((targets != NONE).sum(dim=1).max())
            named["decoder_input_ids"] = self.named["decoder_input_ids"][index, :width]
            targets = targets[:, :width]
        elif targets.shape[1] > 1:
            targets = targets[:, :longest]
        return Inputs(named, targets, self.query[index])


@dataclass(frozen=True)
class Judged:
    """What a model makes of the targets of each row.

    Attributes:
        losses: mean negative log-probability of the row's target tokens [b], with gradient.
        right: whether every target token is the most probable one at its place [b].
    """

    losses: Float[Tensor, " b"]
    right: Bool[Tensor, " b"]


def encode(model: LanguageModel, prompts: Sequence[str], targets: Sequence[str]) -> Inputs:
    """Prompts with the answers that are asked for; for a classifier these are names of classes.

    Raises DataError: an empty prompt or target, a class that `model.labels` does not have, a text longer than the
    model reads.
    """
    _refuse_blank(prompts, "prompt")
    if model.kind == "encoder":
        classes = [[number_of_class(model, target)] for target in targets]
        return _inputs(model, tokenise(model, prompts), torch.tensor(classes))
    _refuse_blank(targets, "target")
    if model.kind == "encoder_decoder":
        return _with_answers(model, tokenise(model, prompts), tokenise(model, targets))
    texts = [join(prompt, target) for prompt, target in zip(prompts, targets, strict=True)]
    rows = tokenise(model, texts, spare=1)
    batch = pad(model, [[*row.ids, model.end_token] for row in rows])
    wanted = torch.full_like(batch.input_ids, NONE)
    query = []
    for number, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        start = next(i for i, (_, last) in enumerate(row.spans) if last > len(prompt))
        wanted[number, start - 1 : len(row.ids)] = batch.input_ids[number, start : len(row.ids) + 1]
        query.append(start - 1)
    named = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    return Inputs(named, wanted, torch.tensor(query, device=model.device))


def without_end(inputs: Inputs) -> Inputs:
    """The rows without their last target, the end token: GRACE's released code masks it together with padding (Q1)."""
    targets = inputs.targets.clone()
    places = torch.arange(targets.shape[1], device=inputs.query.device)
    last = (places * (targets != NONE)).max(dim=1).values
    targets[torch.arange(len(targets), device=last.device), last] = NONE
    return replace(inputs, targets=targets)


def encode_prompts_only(model: LanguageModel, prompts: Sequence[str]) -> Inputs:
    """Prompts alone, to ask what the model says. Raises DataError as `encode`."""
    _refuse_blank(prompts, "prompt")
    rows = tokenise(model, prompts)
    return _inputs(model, rows, torch.empty(len(rows), 0, dtype=torch.long))


def _inputs(model: LanguageModel, rows: Sequence[Tokenised], targets: Int[Tensor, "b m"]) -> Inputs:
    batch = pad(model, [row.ids for row in rows])
    named = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    return Inputs(named, targets.to(model.device), batch.lengths - 1)


def _with_answers(model: LanguageModel, rows: Sequence[Tokenised], answers: Sequence[Tokenised]) -> Inputs:
    """The decoder reads its start token and the answer, and should give the answer and `</s>`."""
    start = int(model.network.config.decoder_start_token_id)
    wanted = pad(model, [answer.ids for answer in answers])
    inputs = _inputs(model, rows, wanted.input_ids.masked_fill(wanted.attention_mask == 0, NONE))
    inputs.named["decoder_input_ids"] = pad(
        model, [[start, *answer.ids[:-1]] for answer in answers]
    ).input_ids
    return inputs


def number_of_class(model: LanguageModel, name: str) -> int:
    """Number of a class by its name; raises DataError that names both the class and those there are."""
    if name not in model.labels:
        raise DataError(
            f"the class {name!r} is not one of {model.name}, which has: {', '.join(model.labels)}",
            field="target",
            remedy="Correct the name, or use a model trained with this class",
        )
    return model.labels.index(name)


def _refuse_blank(texts: Sequence[str], field: str) -> None:
    for number, text in enumerate(texts):
        if not text.strip():
            raise DataError(
                f"the {field} is empty", record=number, field=field, remedy="Give at least one word"
            )


@contextlib.contextmanager
def asking(model: LanguageModel, inputs: Inputs) -> Iterator[None]:
    """Padding and query of the rows, for the passes in the block."""
    with model.padding_of(inputs.padding), model.asking_at(inputs.query):
        yield


def row_losses(model: LanguageModel, inputs: Inputs) -> Float[Tensor, " b"]:
    """Mean negative log-probability of each row's target tokens [b], with gradient."""
    return judge(model, inputs).losses


def judge(model: LanguageModel, inputs: Inputs) -> Judged:
    """Losses of the rows, and whether each target is what the model gives with the right tokens before it.

    Raises DataError when the rows were encoded without targets.
    """
    return judged(target_logits(model, inputs), inputs, target_places(inputs))


def target_logits(model: LanguageModel, inputs: Inputs) -> Float[Tensor, "k v"]:
    """Logits from which the targets are predicted [k, v], in the order of `target_places`, with gradient.

    Raises DataError when the rows were encoded without targets.
    """
    places = target_places(inputs)
    with asking(model, inputs):
        if model.kind == "decoder":
            named = {name: inputs.named[name] for name in ("input_ids", "attention_mask")}
            hidden = model.network.base_model(**named, use_cache=False).last_hidden_state
            return model.head(hidden[places])
        if model.kind == "encoder_decoder":
            logits = model.network(**inputs.named, use_cache=False).logits
        else:
            logits = model.network(**inputs.named).logits[:, None]
    return logits[places]


def target_places(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """(row, column) of every target token. Raises DataError when there is none."""
    if inputs.targets.shape[1] == 0:
        raise DataError("these rows have no targets", remedy="Encode prompts and targets together")
    rows, columns = torch.nonzero(inputs.targets != NONE, as_tuple=True)
    return rows, columns


def judged(logits: Float[Tensor, "k v"], inputs: Inputs, places: tuple[Tensor, Tensor]) -> Judged:
    """Logits at the places [k, v] as one loss and one verdict for each row, in at least float32."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    wanted, rows = inputs.targets[places], places[0]
    each = torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
    counts = torch.bincount(rows, minlength=len(inputs)).to(each.dtype)
    losses = torch.zeros_like(counts).index_add(0, rows, each) / counts
    wrong = torch.zeros_like(counts).index_add(0, rows, (logits.argmax(dim=1) != wanted).to(each.dtype))
    return Judged(losses, wrong == 0)


@torch.no_grad()
def say(
    model: LanguageModel,
    prompts: Sequence[str],
    max_new_tokens: int = 20,
    batching: Batching | None = None,
    cached: bool = True,
) -> list[Said]:
    """What the model answers to each prompt, greedily; batches give what one by one gives.

    Args:
        max_new_tokens: of a language model, the end token included.
        cached: keep keys and values of a decoder-only model between tokens. False runs the whole row again for
            each token: for methods that decide over the whole sequence (COMEBA-HK).

    Raises:
        DataError: as `encode`.
    """
    if not prompts:
        return []
    inputs = encode_prompts_only(model, prompts)
    answers: list[Said | None] = [None] * len(prompts)
    for group in (batching or Batching()).groups(inputs.padding.sum(dim=1).tolist()):
        for row, said in zip(group, say_rows(model, inputs.rows(group), max_new_tokens, cached), strict=True):
            answers[row] = said
    return [answer for answer in answers if answer is not None]


@torch.no_grad()
def say_rows(
    model: LanguageModel, inputs: Inputs, max_new_tokens: int = 20, cached: bool = True
) -> list[Said]:
    """The same for rows that are encoded (without targets, or with: they are not looked at), in one batch."""
    inputs = prompts_of(model, inputs)
    if model.kind == "encoder":
        with asking(model, inputs):
            return choose(model, model.network(**inputs.named).logits)
    if model.kind == "encoder_decoder":
        with asking(model, inputs):
            states = model.stack(**inputs.named).last_hidden_state
        decoder = AnswerDecoder(model, states, inputs.padding)
        return spoken(model, continue_greedily(model, decoder.first(), decoder, max_new_tokens))
    if not cached:
        whole = WholeRows(model, inputs.named["input_ids"], inputs.padding, inputs.query)
        return spoken(model, continue_greedily(model, whole.first(), whole, max_new_tokens))
    with asking(model, inputs):
        output = model.network.base_model(**inputs.named, use_cache=True)
    last = output.last_hidden_state[torch.arange(len(inputs), device=inputs.query.device), inputs.query]
    rows = CachedRows(model, output.past_key_values, inputs.padding)
    return spoken(model, continue_greedily(model, model.head(last), rows, max_new_tokens))


def prompts_of(model: LanguageModel, inputs: Inputs) -> Inputs:
    """The rows without their targets."""
    empty = inputs.targets[:, :0]
    ids, mask = inputs.named["input_ids"], inputs.padding
    if model.kind == "decoder" and inputs.targets.shape[1]:
        n = int(inputs.query.max()) + 1
        before = torch.arange(n, device=mask.device)[None] <= inputs.query[:, None]
        padding = int(model.tokenizer.pad_token_id)
        ids, mask = ids[:, :n].masked_fill(~before, padding), before.to(mask.dtype)
    return Inputs({"input_ids": ids, "attention_mask": mask}, empty, inputs.query)


def wanted(model: LanguageModel, targets: Sequence[str]) -> list[Said]:
    """The answers as the model would say them: with the end token; for a classifier the class.

    Raises DataError as `encode`.
    """
    if model.kind == "encoder":
        return [Said((number_of_class(model, target),), target) for target in targets]
    _refuse_blank(targets, "target")
    if model.kind == "encoder_decoder":
        return spoken(model, [tuple(row.ids) for row in tokenise(model, targets)])
    # An answer's tokens depend on what stands before it (a blank); any prompt shows them.
    pairs = encode_pairs(model, [("a", target) for target in targets])
    ids = pairs.tokens.input_ids.tolist()
    spans = zip(ids, pairs.answer_start.tolist(), pairs.answer_end.tolist(), strict=True)
    return spoken(model, [(*row[start:end], model.end_token) for row, start, end in spans])
