"""The counterfactual model h([z; x]): reads a stored edit and the input together and answers as if the edit were true.

SERAC (arXiv 2206.06520), section 3: h has the output space of the base model f, so it is of the same kind and has the same
tokens; it sees one edit only, the retrieved one, and its output is used unchanged. The edit's text, then `separator`, stand
before the input's own tokens, behind whatever the tokenizer puts at the front of a text ([CLS], a start token). The input's
tokens are taken as they are in the base's pass, so the logits of each position belong to the same position of the base.
Where both together are longer than h reads, the beginning of the edit goes first. Of an input that alone is longer, which only a
model with a shorter context than the base's can meet, the beginning goes as well: h reads and speaks for its end, without the
edit, and where it cannot read the base speaks (spec Q15).

A classifier made from scratch must find out by itself what BERT has learned from text: that a word of the input stands in the
edit too. The label depends on this alone, not on any word by itself; no gradient leads there from random weights, and the output
becomes the same for all inputs. So it starts attending to likes (`start_with_likes`) and is told by segments which text is the
edit. Models that were trained before are left as they are, with one segment, as published.

The base may read the edit itself (`Reader(base, base)`): SERAC's "retrieve and prompt" baseline, and editors/retrieval.py.
"""

from __future__ import annotations

import logging
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from palimpsest.editors.shared.routed_output import VoiceRow
from palimpsest.errors import ModelError, SettingsError
from palimpsest.models.families import family_of
from palimpsest.models.hub import NO_PICKLE, pinned
from palimpsest.models.loading import AUTO, LanguageModel, load_model
from palimpsest.models.objectives import Inputs, Judged, judged, target_places
from palimpsest.models.packaged import PREFIX, locate
from palimpsest.models.shapes import random_network, shape_of
from palimpsest.models.tokens import pad

log = logging.getLogger(__name__)
SCRATCH, BASE = "scratch", "base"
FAMILY = {"decoder": "gpt2", "encoder_decoder": "t5", "encoder": "bert"}  # of a model made here, by kind
FIELDS = {"prompt", "target"}  # that a template may name
LIKENESS = 6.0  # nats by which a token's attention to its like starts above that to others: e^6 outweighs a whole text
NEAR_PLACES = (
    0.25  # size of the states of places against those of words, so that a word is its like's at other places
)


def counterfactual_model(
    base: LanguageModel, where: str, shape: Mapping[str, Any], seed: int
) -> LanguageModel:
    """h for a base model, in float32 on its device.

    Args:
        where: "base" (the base itself), "scratch" (random, in the given shape, with the base's tokenizer), or a directory in
            hub format, `package:NAME/FOLDER`, or a hub id. A classifier gets a fresh head for the base's classes. That it has a
            shorter context than the base is said in the log.
        shape: keys of `models.shapes` without family, context and labels.

    Raises:
        ModelError: the model cannot be read, is of another kind than the base, or has other tokens.
    """
    if where == BASE:
        return base
    if where == SCRATCH:
        own: dict[str, Any] = {"family": FAMILY[base.kind], "context": 2 * base.context + 2, **shape}
        if base.kind == "encoder":
            own["labels"] = base.labels
        with torch.random.fork_rng(devices=[]):
            network = random_network(shape_of(own), base.tokenizer, seed)
            if base.kind == "encoder":
                start_with_likes(network.bert)
        return LanguageModel(
            network.to(base.device), base.tokenizer, family_of(own["family"]), "counterfactual"
        )
    found = _read(base, where, seed)
    _refuse_other_tokens(base, found)
    if found.context < base.context:
        log.warning(
            "the counterfactual model %s reads at most %d tokens, but %s reads %d: of longer inputs in the scope of an edit it "
            "will read the last %d, without the edit. If there are such inputs, choose a model with a longer context "
            "(setting `counterfactual`), or `scratch`, which has one",
            found.name,
            found.context,
            base.name,
            base.context,
            found.context,
        )
    return found


@torch.no_grad()
def start_with_likes(encoder: Any) -> None:
    """Let a random BERT encoder attend to equal words at once: each head's keys start as its queries, places as small states.

    After Trockman and Kolter (arXiv 2305.09828), who start small transformers with what is alike in trained ones: the product of
    queries' and keys' weights is near a multiple of the identity. It draws from torch's generator.
    """
    embeddings = encoder.embeddings
    for places in (embeddings.position_embeddings, embeddings.token_type_embeddings):
        places.weight.mul_(NEAR_PLACES)
    for block in encoder.encoder.layer:
        own = block.attention.self
        # A normed state has length sqrt(width), so q.k / sqrt(head) of a token with itself is sqrt(head) * std^2 * width.
        spread = (LIKENESS / (own.query.in_features * own.attention_head_size**0.5)) ** 0.5
        torch.nn.init.normal_(own.query.weight, std=spread)
        own.key.weight.copy_(own.query.weight)


def _read(base: LanguageModel, where: str, seed: int) -> LanguageModel:
    device = str(base.device)
    if base.kind != "encoder":
        found = load_model(locate(where) if where.startswith(PREFIX) else where, device=device)
        if found.kind != base.kind:
            raise ModelError(
                f"the counterfactual model {where} is of kind {found.kind!r}, but {base.name} is of kind {base.kind!r}: its "
                "output must be the base's. Change the setting `counterfactual`"
            )
        return found
    import transformers

    place, options = pinned(where)
    named = {"id2label": dict(enumerate(base.labels)), "num_labels": len(base.labels)}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(place, use_fast=True, **options)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # of the new head
            network = getattr(transformers, AUTO["encoder"]).from_pretrained(
                place, ignore_mismatched_sizes=True, **NO_PICKLE, **options, **named
            )
    except Exception as error:  # transformers raises many kinds; the reader needs one sentence
        raise ModelError(
            f"cannot load the counterfactual model {where}: {type(error).__name__}: {str(error).splitlines()[0]}. Give a "
            "directory with config.json, model.safetensors and tokenizer.json, or a hub id"
        ) from error
    row = family_of(network.config.model_type)
    return LanguageModel(network.float().to(device), tokenizer, row, Path(where).name)


def _refuse_other_tokens(base: LanguageModel, found: LanguageModel) -> None:
    few, many = sorted((found.tokenizer.get_vocab(), base.tokenizer.get_vocab()), key=len)
    # One may have some more: GPT-J's tokens are GPT-2's and a few that no text has.
    if any(many.get(token) != number for token, number in few.items()):
        raise ModelError(
            f"the counterfactual model {found.name} has other tokens than {base.name}, but its output takes the place of "
            "the base's. Choose a smaller model of the same family (gpt2 for GPT2-XL, t5-small for T5), or "
            "counterfactual: scratch, which is made with the base's tokenizer"
        )


def check_template(template: str, name: str = "template") -> None:
    """Refuse a template that names anything but {prompt} and {target}, or neither."""
    try:
        named = {field for _, field, _, _ in string.Formatter().parse(template) if field is not None}
    except ValueError as error:
        raise SettingsError(f"setting {name} = {template!r} is not allowed: {error}") from error
    if not named or named - FIELDS:
        raise SettingsError(
            f"setting {name} = {template!r} is not allowed: a text with {{prompt}}, {{target}} or both"
        )


class EditReader:
    """A model that answers rows with an edit put before them: the `Voice` of SERAC and of retrieval.

    Args:
        base: whose rows and positions are spoken for.
        model: which reads; the base itself, or one with its tokens.
        template: text of an edit; {prompt} and {target} are filled in.
        separator: what stands between the edit's text and the input; without effect for tokenizers that write a blank before
            every word anyway.
        segments: tell a classifier that the edit's text is its first segment and the input its second one.
    """

    def __init__(
        self,
        base: LanguageModel,
        model: LanguageModel,
        template: str = "{prompt} {target}",
        separator: str = " ",
        segments: bool = False,
    ):
        check_template(template)
        self.base, self.model, self.template, self.separator = base, model, template, separator
        self.segments = segments
        self.memory: list[tuple[str, str]] = []  # (prompt, target) of the stored edits, by their number
        special = set(base.tokenizer.all_special_ids)
        written = base.tokenizer("a")["input_ids"]
        self.lead = next((place for place, token in enumerate(written) if token not in special), 0)
        self._prefixes: dict[tuple[str, str], tuple[int, ...]] = {}

    @property
    def width(self) -> int:
        """A decoder's states have the reading model's width; the others give logits at once."""
        return self.model.width if self.base.kind == "decoder" else self._outputs

    @property
    def _outputs(self) -> int:
        return len(self.base.labels) if self.base.kind == "encoder" else self.base.vocabulary

    def text(self, prompt: str, target: str) -> str:
        """What is read of an edit."""
        return self.template.format(prompt=prompt, target=target)

    def prefix(self, prompt: str, target: str) -> tuple[int, ...]:
        """Token ids of an edit's text and the separator."""
        key = (prompt, target)
        if key not in self._prefixes:
            text = self.text(prompt, target) + self.separator
            self._prefixes[key] = tuple(self.base.tokenizer(text, add_special_tokens=False)["input_ids"])
        return self._prefixes[key]

    def forget(self) -> None:
        """Drop kept prefixes."""
        self._prefixes.clear()

    def states(
        self, rows: Sequence[VoiceRow], entries: Sequence[int]
    ) -> tuple[Float[Tensor, "g m p"], Bool[Tensor, "g m"]]:
        """For rows of the base's pass and the stored edits that speak for them: see `routed_output.Voice`."""
        return self.read(rows, [self.prefix(*self.memory[entry]) for entry in entries])

    def logits(self, states: Float[Tensor, "k p"]) -> Float[Tensor, "k v"]:
        """Logits as wide as the base's own; tokens that the reading model lacks get minus infinity."""
        found = self.model.head(states.to(self.model.dtype)) if self.base.kind == "decoder" else states
        missing = self._outputs - found.shape[-1]
        return (
            found[..., : self._outputs]
            if missing <= 0
            else torch.nn.functional.pad(found, (0, missing), value=-torch.inf)
        )

    def read(
        self, rows: Sequence[VoiceRow], prefixes: Sequence[Sequence[int]]
    ) -> tuple[Float[Tensor, "g m p"], Bool[Tensor, "g m"]]:
        """One pass over [prefix; row] for each, with gradient; see `routed_output.Voice`.

        It does not speak at a decoder's positions that are too far back to be read. What an encoder-decoder's decoder reads is
        never cut: such models have relative positions.
        """
        spliced = [self._spliced(row.ids, prefix) for row, prefix in zip(rows, prefixes, strict=True)]
        batch = pad(self.model, [ids for ids, _ in spliced])
        named = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        network = self.model.network
        if self.base.kind == "encoder":
            if self.segments:
                edits = [max(0, len(ids) - len(places)) + self.lead for ids, places in spliced]
                own = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device)
                named["token_type_ids"] = (own >= torch.tensor(edits, device=own.device)[:, None]).long()
            found = network(**named).logits[:, None]
            return found, torch.ones(found.shape[:2], dtype=torch.bool, device=found.device)
        if self.base.kind == "encoder_decoder":
            said = pad(self.model, [row.said for row in rows])
            found = network(**named, decoder_input_ids=said.input_ids, use_cache=False).logits
            return self.logits(found.flatten(0, 1)).view(
                *found.shape[:2], self._outputs
            ), said.attention_mask.bool()
        hidden = network.base_model(**named, use_cache=False).last_hidden_state
        return _aligned(hidden, [places for _, places in spliced])

    def _spliced(self, ids: Sequence[int], prefix: Sequence[int]) -> tuple[list[int], list[int]]:
        """Ids of [prefix; row], and where each token of the row stands in them (-1: nowhere)."""
        first, context = self.lead, self.model.context
        over, room = max(0, len(ids) - context), max(0, context - len(ids))
        kept = list(prefix[-room:]) if room else []
        places = [*range(first), *[-1] * over]
        places += range(first + len(kept), len(ids) + len(kept) - over)
        return [*ids[:first], *kept, *ids[first + over :]], places

    def judge(self, edits: Sequence[tuple[str, str]], inputs: Inputs) -> Judged:
        """Losses and verdicts of rows that the base would read, each with its own edit (prompt, target) before it.

        Args:
            inputs: queries with answers (`objectives.encode` with the base).
        """
        places = target_places(inputs)
        return judged(self.target_logits(edits, inputs), inputs, places)

    def target_logits(self, edits: Sequence[tuple[str, str]], inputs: Inputs) -> Float[Tensor, "k v"]:
        """Logits from which the targets are predicted [k, v], in the order of `objectives.target_places`.

        Raises:
            ModelError: an answer alone is longer than the reading model's context.
        """
        states, speaks = self.read(rows_of(inputs), [self.prefix(*edit) for edit in edits])
        places = target_places(inputs)
        if not bool(speaks[places].all()):
            raise ModelError(
                f"an answer is longer than the {self.model.context} tokens that {self.model.name} reads. Choose a model with a "
                "longer context (setting `counterfactual`)"
            )
        found = states[places]
        return self.logits(found) if self.base.kind == "decoder" else found


def rows_of(inputs: Inputs) -> list[VoiceRow]:
    """Encoded rows as a voice sees them."""
    said = inputs.named.get("decoder_input_ids")
    found = []
    for number, (ids, mask) in enumerate(zip(inputs.named["input_ids"], inputs.padding, strict=True)):
        own = tuple(ids[mask.bool()].tolist())
        spoken = () if said is None else tuple(said[number].tolist())
        found.append(VoiceRow(own, int(inputs.query[number]) + 1, spoken))
    return found


def _aligned(
    hidden: Float[Tensor, "g n d"], places: Sequence[Sequence[int]]
) -> tuple[Float[Tensor, "g m d"], Bool[Tensor, "g m"]]:
    """States at chosen places of each row (-1: none), padded on the right, and which of them are some."""
    m = max(len(own) for own in places)
    index = torch.tensor([[*own, *[0] * (m - len(own))] for own in places], device=hidden.device)
    real = torch.tensor(
        [[*(place >= 0 for place in own), *[False] * (m - len(own))] for own in places], device=hidden.device
    )
    rows = torch.arange(len(places), device=hidden.device)[:, None]
    return hidden[rows, index], real
