"""What an edit at a block cannot change is run once: the blocks below it, and all that is computed from tokens alone.

From the kept states the edited block, those above it and (of an encoder-decoder) the decoder are run as often as
wanted, with the same hooks, padding and query as in a whole pass. Exact to rounding; `models/objectives.py` is the
plain way. Only what lies below the block is frozen: an edit below it needs a new `Upper`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from palimpsest.models.families import part
from palimpsest.models.greedy import AnswerDecoder, CachedRows, Said, choose, continue_greedily, spoken
from palimpsest.models.lean import LeanRows
from palimpsest.models.lean_bert import LeanBert
from palimpsest.models.lean_decoder import LeanAnswers
from palimpsest.models.lean_gpt2 import LeanGpt2
from palimpsest.models.lean_t5 import LeanT5
from palimpsest.models.loading import LanguageModel
from palimpsest.models.objectives import (
    Inputs,
    Judged,
    asking,
    judged,
    prompts_of,
    target_places,
)
from palimpsest.models.partial import (
    KeyValueCache,
    Noted,
    additive,
    block_output,
    causal_mask,
    embed,
    run_blocks,
)
from palimpsest.models.tokens import TokenBatch

Arguments = dict[str, Tensor]
LEAN: dict[str, type[LeanRows]] = {"t5": LeanT5, "gpt2": LeanGpt2, "bert": LeanBert}  # by family


class Upper:
    """Rows that stand at the input of block `layer`.

    Keys and values that new tokens of a decoder-only model attend to below `layer` are noted at once when the rows
    have no targets, and otherwise (a loss needs none) only when the first answer is asked for.
    """

    def __init__(self, model: LanguageModel, inputs: Inputs, layer: int, site: str | None = None):
        """Run the blocks below `layer` once, without gradient.

        Args:
            site: linear map of the block (`LanguageModel.linear`) if nothing but this map changes, and nothing above it has
                a hook or needs a gradient, while these rows are in use: the rest is then run in a leaner way where there
                is one (models/lean.py).

        Raises:
            ModelError: no such layer, no such site.
        """
        model.block(layer)
        self.site = site
        if site is not None:
            self._map = model.linear(layer, site)
        self.model, self.inputs, self.edited = model, inputs, layer
        self.layer = layer if model.lean else 0  # where the kept states stand
        self._below: Noted | None = None
        self._answer: tuple[Tensor, Arguments] | None = (
            None  # what the decoder is given, once it was asked for
        )
        self._above: LeanRows | None = None
        noted: Noted | None = {} if model.kind == "decoder" and not inputs.targets.shape[1] else None
        with torch.no_grad(), asking(model, inputs):
            batch = TokenBatch(inputs.named["input_ids"], inputs.padding)
            embedded = embed(model, batch)
            self._arguments = _arguments(model, embedded, inputs.padding)
            self.hidden = _run(model, embedded, 0, self.layer - 1, self._arguments, noted)
            if site is not None:
                self._above = _leanly(model, layer, self._map, self.hidden, inputs.padding)
        if noted is not None:
            # Copies: a family's keys and values may be views that keep its queries alive.
            self._below = {
                number: (keys.contiguous(), values.contiguous()) for number, (keys, values) in noted.items()
            }

    def __len__(self) -> int:
        return len(self.inputs)

    def rows(self, rows: Sequence[int] | Tensor) -> Upper:
        """Some of the rows; nothing is run again."""
        other = copy.copy(self)
        other.inputs, other._answer = self.inputs.rows(rows), None
        index = torch.as_tensor(rows, dtype=torch.long, device=self.hidden.device)
        n = other.inputs.padding.shape[1]
        other.hidden = self.hidden[index, :n]
        with torch.no_grad():
            other._arguments = _arguments(self.model, other.hidden, other.inputs.padding)
        if self._above is not None:
            with torch.no_grad():
                other._above = self._above.rows(index, other.inputs.padding)
        if self._below is not None:
            other._below = {
                layer: (keys[index, :, :n], values[index, :, :n])
                for layer, (keys, values) in self._below.items()
            }
        return other

    def row_losses(self) -> Float[Tensor, " b"]:
        """Mean negative log-probability of each row's target tokens [b], with gradient: `objectives.row_losses`."""
        return self.judge().losses

    def judge(self) -> Judged:
        """Losses and verdicts: `objectives.judge`."""
        if self._above is not None:
            return self._judge_leanly(self._above)
        places = target_places(self.inputs)
        return judged(self.logits(places), self.inputs, places)

    def logits(self, places: tuple[Tensor, Tensor]) -> Float[Tensor, "k v"]:
        """Logits [k, v] at (rows, columns) of the outputs (see `Inputs.targets`), with gradient, by the model's own modules."""
        model, states = self.model, self._states()
        if model.kind == "decoder":
            return model.head(states[places])
        if model.kind == "encoder":
            return self._classes(states)[:, None][places]
        if self._answer is None:
            with torch.no_grad():
                self._answer = _answer_arguments(model, self.inputs)
        return model.head(_run_decoder(model, states, *self._answer)[places])

    @torch.no_grad()
    def run_to_map(self) -> None:
        """Run the block of the map, for hooks that want to see what the map is given."""
        if self._above is not None:
            self._map_output(self._above)
            return
        with asking(self.model, self.inputs):
            _run(self.model, self.hidden, self.layer, self.edited, self._arguments)

    def _judge_leanly(self, above: LeanRows) -> Judged:
        if above.wanted is None:
            target_places(self.inputs)  # refuses rows without targets
            with torch.no_grad():
                above.answers(self.inputs)
        return Judged(*above.judge(self._map_output(above)))

    def _map_output(self, above: LeanRows) -> Float[Tensor, "b n d_out"]:
        """The linear map called as a module, so that its hooks run."""
        with asking(self.model, self.inputs):
            return self._map(above.asked)

    @torch.no_grad()
    def say(self, max_new_tokens: int = 20) -> list[Said]:
        """What the model answers to each row's prompt, greedily: `objectives.say`."""
        model = self.model
        if model.kind == "encoder":
            if isinstance(self._above, LeanBert):
                logits, _ = self._above.classes(self._map_output(self._above))
                return choose(model, logits)
            return choose(model, self._classes(self._states()))
        if model.kind == "encoder_decoder":
            decoder: AnswerDecoder | LeanAnswers
            if isinstance(self._above, LeanT5):
                states, _ = self._above.encode(self._map_output(self._above))
                decoder = LeanAnswers(model, self._above.decoder, states, self.inputs.padding)
            else:
                decoder = AnswerDecoder(model, self._states(), self.inputs.padding)
            return spoken(model, continue_greedily(model, decoder.first(), decoder, max_new_tokens))
        if self._below is None:
            prompts = Upper(model, prompts_of(model, self.inputs), self.edited)
            self._below = prompts._below
        return self._say_after_prompts(max_new_tokens)

    def _say_after_prompts(self, max_new_tokens: int) -> list[Said]:
        """A decoder-only model: the prompt's upper blocks, then token by token with everything kept."""
        model, inputs = self.model, prompts_of(self.model, self.inputs)
        n = inputs.padding.shape[1]
        noted = dict(self._below or {})
        with asking(model, inputs):
            last = model.n_blocks - 1
            arguments = _arguments(model, self.hidden[:, :n], inputs.padding)
            states = _run(model, self.hidden[:, :n], self.layer, last, arguments, noted)
        cache = DynamicCache()
        for layer in range(model.n_blocks):
            keys, values = noted[layer]
            cache.update(keys[:, :, :n], values[:, :, :n], layer)
        rows = torch.arange(len(inputs), device=states.device)
        logits = model.head(model.final_norm(states[rows, inputs.query]))
        kept = CachedRows(model, cache, inputs.padding)
        return spoken(model, continue_greedily(model, logits, kept, max_new_tokens))

    def _states(self) -> Float[Tensor, "b n d"]:
        """Output of the edited stack, after its norm where it has one."""
        model = self.model
        with asking(model, self.inputs):
            states = _run(model, self.hidden, self.layer, model.n_blocks - 1, self._arguments)
        return states if model.family.final_norm is None else model.final_norm(states)

    def _classes(self, states: Float[Tensor, "b n d"]) -> Float[Tensor, "b classes"]:
        pooled = part(self.model.network, str(self.model.family.pooler))(states)
        return self.model.head(pooled)


def bytes_of_upper(model: LanguageModel, inputs: Inputs, layer: int, site: str | None = None) -> int:
    """Bytes that an `Upper` of these rows holds beside the inputs: states at the block, masks, keys and values below it.

    Nothing is run. The weights that lean rows write out are not counted: all rows of a model share them.

    Raises ModelError as `Upper`.
    """
    (b, n), config = inputs.padding.shape, model.network.config
    numbers = b * n * model.width
    if model.kind == "decoder":
        numbers += b * n**2
        if not inputs.targets.shape[1]:
            heads = config.num_attention_heads
            shared = getattr(config, "num_key_value_heads", None) or heads
            numbers += 2 * layer * b * n * model.width * shared // heads
    else:
        numbers += b * n + (config.num_heads * n**2 if model.kind == "encoder_decoder" else 0)
    lean = None if site is None else _lean_kind(model, layer, model.linear(layer, site))
    if lean is not None:
        kind, side = lean
        numbers += kind.kept(model, layer, side, b, n)
    return numbers * model.dtype.itemsize


def _lean_kind(model: LanguageModel, layer: int, module: Any) -> tuple[type[LeanRows], str] | None:
    """The leaner way on from a map, and the map's side, where there is one."""
    kind = LEAN.get(model.family.name)
    if kind is None or not model.lean or model.dtype not in (torch.float32, torch.float64):
        return None
    side = kind.side(model, layer, module)
    return None if side is None else (kind, side)


def _leanly(
    model: LanguageModel, layer: int, module: Any, hidden: Float[Tensor, "b n d"], padding: Int[Tensor, "b n"]
) -> LeanRows | None:
    lean = _lean_kind(model, layer, module)
    return None if lean is None else lean[0](model, layer, lean[1], hidden, padding)


def _arguments(
    model: LanguageModel, hidden: Float[Tensor, "b n d"], padding: Int[Tensor, "b n"]
) -> Arguments:
    """What the blocks are given besides the hidden states: the same for all of them, and for every pass."""
    if model.kind == "decoder":
        positions = torch.arange(hidden.shape[1], device=hidden.device).expand(hidden.shape[:2])
        return {"mask": causal_mask(padding, hidden.dtype), "positions": positions}
    arguments = {"attention_mask": additive(padding[:, None, None].bool(), hidden.dtype)}
    if model.kind == "encoder_decoder":
        # T5 computes the position bias in its first block and hands it on to the others.
        attention: Any = part(model.blocks[0], "layer.0.SelfAttention")
        arguments["position_bias"] = attention.compute_bias(hidden.shape[1], hidden.shape[1])
    return arguments


def _run(
    model: LanguageModel,
    hidden: Float[Tensor, "b n d"],
    first: int,
    last: int,
    arguments: Arguments,
    noted: Noted | None = None,
) -> Float[Tensor, "b n d"]:
    """Blocks first..last (both included; none when last < first) on hidden [b, n, d]."""
    if model.kind == "decoder":
        past = None if noted is None else KeyValueCache(noted=noted)
        return run_blocks(model, hidden, first, last, arguments["mask"], arguments["positions"], past)
    for layer in range(first, last + 1):
        hidden = block_output(model.block(layer)(hidden, **arguments))
    return hidden


def _answer_arguments(model: LanguageModel, inputs: Inputs) -> tuple[Float[Tensor, "b m d"], Arguments]:
    """What T5's decoder is given for the answers besides the encoder's states: its input, masks, position bias."""
    decoder, ids = model.network.get_decoder(), inputs.named["decoder_input_ids"]
    hidden = decoder.embed_tokens(ids)
    attention: Any = part(decoder.block[0], "layer.0.SelfAttention")
    return hidden, {
        "attention_mask": causal_mask(torch.ones_like(ids), hidden.dtype),
        "position_bias": attention.compute_bias(ids.shape[1], ids.shape[1]),
        "encoder_attention_mask": additive(inputs.padding[:, None, None].bool(), hidden.dtype),
    }


def _run_decoder(
    model: LanguageModel, states: Float[Tensor, "b n d"], hidden: Float[Tensor, "b m d"], arguments: Arguments
) -> Float[Tensor, "b m d"]:
    """T5's decoder, ready for the head. Its blocks are called directly: at this size the wrappers around them cost
    a fifth of a step."""
    decoder = model.network.get_decoder()
    for block in decoder.block:
        hidden = block_output(block(hidden, encoder_hidden_states=states, **arguments))
    hidden = decoder.final_layer_norm(hidden)
    return hidden * model.width**-0.5 if model.network.config.scale_decoder_outputs else hidden
