"""Rows of a pass whose output comes from somewhere else: SERAC, its look-up baseline, retrieval (arXiv 2206.06520, section 3).

Such a method changes no state inside the network. It reads the prompt of each row, decides once for the row, and where it
decides so, the logits of that row are those of another `Voice` (a small model, a stored answer, the network itself on a
longer prompt). All passes of the house ask for logits in one of three ways, and all of them are served here:

    decoder           base model, then the head on the positions that are read. The base model's states are widened by what
                      the voice needs to speak at each position (its own states) and by its share; whoever picks positions
                      out of them picks that along, and the head takes it off again. So only logits that are read are computed.
    encoder_decoder   the encoder's pass decides; the network's logits are replaced, for the whole answer or one token of it
    encoder           the base model's pass decides; the network's logits are replaced

A step with kept keys and values is no new sequence: the decision of the prompt's pass holds, and the row's tokens so far are
remembered here, because such a step shows only the newest one. Rows that are left alone keep the network's logits bit for
bit, and a pass without any decision is not touched at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from palimpsest.errors import ModelError
from palimpsest.models.hooks import Attachment
from palimpsest.models.loading import LanguageModel

SMALLEST = 1.19e-7  # added to a mixture before its logarithm: float32's epsilon, as released


@dataclass(frozen=True)
class VoiceRow:
    """One row as a voice sees it.

    Attributes:
        ids: token ids the edited stack reads, without padding; of a decoder with the answer so far.
        prompt: how many of them are the prompt (all of them where the pass does not say).
        said: of an encoder-decoder, what its decoder reads: the start token and the answer so far.
    """

    ids: tuple[int, ...]
    prompt: int
    said: tuple[int, ...] = ()


@dataclass(frozen=True)
class Prompts:
    """A pass over new sequences, for the rule that decides.

    Attributes:
        rows: one for each row of the pass.
        states: last states [b, n, d] of the edited stack.
        prompt: where the prompt's tokens stand [b, n].
    """

    model: LanguageModel
    rows: list[VoiceRow]
    states: Float[Tensor, "b n d"]
    prompt: Bool[Tensor, "b n"]

    def texts(self, whole: bool = False) -> list[str]:
        """The prompts as text; `whole` rows with the answers that they carry, if any."""
        return texts_of(self.model, [row.ids if whole else row.ids[: row.prompt] for row in self.rows])


def texts_of(model: LanguageModel, ids: Sequence[Sequence[int]]) -> list[str]:
    """Texts of token rows as they were, without special tokens and blanks around them: no tokenizer tidies them up."""
    found = model.tokenizer.batch_decode(
        [list(row) for row in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return [text.strip() for text in found]


@dataclass(frozen=True)
class Route:
    """What a rule decides for the rows of a pass.

    Attributes:
        entry: number of the stored edit that speaks [b]; read only where `share` is above 0.
        share: weight of the voice [b], 0 to 1; 0 leaves the row as it is.
        fired: rows on which the method is said to act [b].
    """

    entry: Int[Tensor, " b"]
    share: Float[Tensor, " b"]
    fired: Bool[Tensor, " b"]


@runtime_checkable
class Voice(Protocol):
    """What speaks for the rows that a rule has chosen.

    Attributes:
        width: p, numbers it needs at a position to give the logits there.
    """

    @property
    def width(self) -> int:
        """p."""
        ...

    def states(
        self, rows: Sequence[VoiceRow], entries: Sequence[int]
    ) -> tuple[Float[Tensor, "g m p"], Bool[Tensor, "g m"]]:
        """States at the positions of each row [g, m, p], padded on the right, and where it speaks [g, m].

        Positions are those of the logits: a decoder's tokens, an encoder-decoder's `said`, one for a classifier.
        """
        ...

    def logits(self, states: Float[Tensor, "k p"]) -> Float[Tensor, "k v"]:
        """Logits [k, vocabulary] at k positions, as wide as the network's own."""
        ...


Rule = Callable[[Prompts], Route | None]


class OutputRouter:
    """The hooks on a network.

    Args:
        rule: decides for each pass over new sequences; None leaves the pass as it is.
        voice: speaks for the rows that were chosen.
        soft: the logarithm of the mixture of both outputs instead of the voice's own logits.
    """

    def __init__(self, model: LanguageModel, rule: Rule, voice: Voice, soft: bool = False):
        self.model, self.rule, self.voice, self.soft = model, rule, voice, soft
        self.latest: Route | None = None  # of the latest pass over new sequences
        self._rows: list[VoiceRow] = []  # of the prompts' pass, with what was said since
        self._kept = 0  # tokens that are kept from earlier passes
        self._carried: Tensor | None = None  # what the states brought to the head
        self._rests = False
        self._attachment: Attachment | None = None

    @property
    def is_attached(self) -> bool:
        """Whether the hooks hang."""
        return self._attachment is not None

    def attach(self) -> None:
        """Hang the hooks (once). Raises ModelError while those of another router hang."""
        if self._attachment is not None:
            return
        self.refuse_others()
        stack, network = self.model.stack, self.model.network
        handles = [stack.register_forward_hook(self._after_stack, with_kwargs=True)]
        if self.model.kind == "decoder":
            handles += [
                stack.register_forward_pre_hook(self._note_kept, with_kwargs=True),
                self.model.head.register_forward_pre_hook(self._before_head),
                self.model.head.register_forward_hook(self._after_head),
            ]
        else:
            handles += [
                network.register_forward_pre_hook(self._note_kept, with_kwargs=True),
                network.register_forward_hook(self._after_network, with_kwargs=True),
            ]
        self._attachment = Attachment(handles)

    def detach(self) -> None:
        """Take the hooks off."""
        self.latest, self._rows, self._carried = None, [], None
        if self._attachment is not None:
            self._attachment.detach()
            self._attachment = None

    def refuse_others(self) -> None:
        """Raise ModelError while another router hangs on the model: a row has one output."""
        for hook in self.model.stack._forward_hooks.values():
            other = getattr(hook, "__self__", None)
            if isinstance(other, OutputRouter) and other is not self:
                raise ModelError(
                    f"another editor with a memory answers on {self.model.name} already. Call its `remove()` first"
                )

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Passes in the block are the network's own: rules and voices may run it."""
        before, self._rests = self._rests, True
        try:
            yield
        finally:
            self._rests = before

    # the prompts' pass -------------------------------------------------------------------------------------------------

    def _note_kept(self, _: nn.Module, __: tuple[Any, ...], named: dict[str, Any]) -> None:
        past: Any = named.get("past_key_values")
        if not self._rests:
            self._kept = int(past.get_seq_length()) if hasattr(past, "get_seq_length") else 0

    def _after_stack(self, _: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        if self._rests:
            return None
        ids: Any = named.get("input_ids", args[0] if args else None)
        decoder = self.model.kind == "decoder"
        if decoder and self._kept:
            return self._widen_step(ids, output)
        self.latest, self._rows = None, []
        if ids is None:
            raise ModelError("the pass gives embeddings, but scope is decided on tokens. Give input_ids")
        real = self._real(named.get("attention_mask"), ids)
        asked = self.asked(ids, real, output.last_hidden_state)
        with self.resting():
            self.latest = self.rule(asked)
        self._rows = asked.rows
        return self._widen(output, real) if decoder and self._chosen(len(ids)) else None

    def _real(self, mask: Any, ids: Int[Tensor, "b n"]) -> Bool[Tensor, "b n"]:
        given = isinstance(mask, Tensor) and mask.ndim == 2
        return mask.bool() if given else torch.ones_like(ids, dtype=torch.bool)

    def asked(self, ids: Int[Tensor, "b n"], real: Bool[Tensor, "b n"], states: Tensor) -> Prompts:
        """A pass as the rule sees it; the prompt ends where `asking_at` says, else with the row."""
        prompt, query = real, self.model.query
        if query is not None:
            if len(query) != len(ids):
                raise ModelError(
                    f"the pass has {len(ids)} rows, but {len(query)} positions were given to ask at. Use `asking_at` "
                    "for one batch"
                )
            places = torch.arange(ids.shape[1], device=ids.device)[None]
            prompt = real & (places <= query.to(ids.device)[:, None])
        counts = prompt.sum(dim=1).tolist()
        rows = [
            VoiceRow(tuple(row[mine].tolist()), count)
            for row, mine, count in zip(ids, real, counts, strict=True)
        ]
        return Prompts(self.model, rows, states.detach(), prompt)

    def _chosen(self, b: int, rows: Sequence[int] | None = None) -> list[int]:
        """Rows of the prompts' pass that the voice speaks for, of those that are in this one, by their place in it."""
        if self.latest is None:
            return []
        share = self.latest.share.tolist()
        return [place for place, row in enumerate(rows or range(b)) if share[row] > 0]

    def _going(self, b: int) -> list[int]:
        """Numbers of the prompts that the b rows of a step go on with."""
        told = self.model.rows
        if told is None and b != len(self._rows):
            raise ModelError(
                f"a step with kept keys and values has {b} rows, but the prompts' pass had {len(self._rows)}. Say with "
                "`going_on_with` which of them these are"
            )
        return list(range(b)) if told is None else told.tolist()

    def _speak(self, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """The voice's states [g, m, p], where it speaks [g, m], and its share [g], for rows of the prompts' pass."""
        assert self.latest is not None
        entries = self.latest.entry.tolist()
        with self.resting():
            states, speaks = self.voice.states(
                [self._rows[row] for row in rows], [entries[row] for row in rows]
            )
        return states, speaks, self.latest.share[list(rows)].to(states.device)

    # decoders: what the voice needs travels with the states -----------------------------------------------------------

    def _widen(self, output: Any, real: Bool[Tensor, "b n"]) -> Any:
        hidden, chosen = output.last_hidden_state, self._chosen(len(real))
        states, speaks, share = self._speak(chosen)
        extra = self._nothing(hidden, states)
        for place, row in enumerate(chosen):
            columns = real[row].nonzero()[:, 0]
            extra[row, columns, :-1] = states[place, : len(columns)].to(extra)
            extra[row, columns, -1] = (speaks[place, : len(columns)] * share[place]).to(extra)
        output.last_hidden_state = torch.cat([hidden.to(extra.dtype), extra], dim=-1)
        return output

    def _widen_step(self, ids: Int[Tensor, "b m"], output: Any) -> Any:
        if self.latest is None:
            return None
        hidden, going = output.last_hidden_state, self._going(len(ids))
        for row, new in zip(going, ids.tolist(), strict=True):
            mine = self._rows[row]
            self._rows[row] = VoiceRow((*mine.ids, *new), mine.prompt)
        chosen = self._chosen(len(ids), going)
        if not chosen:
            return None
        states, speaks, share = self._speak([going[place] for place in chosen])
        extra, m = self._nothing(hidden, states), ids.shape[1]
        for number, place in enumerate(chosen):
            end = len(self._rows[going[place]].ids)
            extra[place, :, :-1] = states[number, end - m : end].to(extra)
            extra[place, :, -1] = (speaks[number, end - m : end] * share[number]).to(extra)
        output.last_hidden_state = torch.cat([hidden.to(extra.dtype), extra], dim=-1)
        return output

    def _nothing(self, hidden: Tensor, states: Tensor) -> Float[Tensor, "b n q"]:
        """Room for states and share, in a precision that holds both networks' numbers exactly."""
        dtype = torch.promote_types(torch.promote_types(hidden.dtype, states.dtype), torch.float32)
        return torch.zeros(*hidden.shape[:2], self.voice.width + 1, dtype=dtype, device=hidden.device)

    def _before_head(self, _: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._rests:
            return None
        self._carried = None
        hidden: Tensor = inputs[0]
        own = hidden.shape[-1] - self.voice.width - 1
        if own != self.model.width:  # nothing travels with these states
            return None
        self._carried = hidden[..., own:]
        return (hidden[..., :own].to(self.model.dtype).contiguous(), *inputs[1:])

    def _after_head(self, _: nn.Module, __: tuple[Any, ...], logits: Tensor) -> Tensor | None:
        carried = self._carried
        if self._rests or carried is None:
            return None
        self._carried = None
        return self._replaced(logits, carried[..., :-1], carried[..., -1])

    # the others: logits are replaced where the network gives them ------------------------------------------------------

    def _after_network(self, _: nn.Module, __: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        if self._rests or self.latest is None:
            return None
        logits = output.logits
        if self.model.kind == "encoder":
            going = list(range(len(logits)))
        else:
            going = self._hear(named.get("decoder_input_ids"))
        chosen = self._chosen(len(logits), going)
        if not chosen:
            return None
        states, speaks, share = self._speak([going[place] for place in chosen])
        if self.model.kind == "encoder":
            weights = logits.new_zeros(len(logits), dtype=share.dtype)
            weights[chosen] = share * speaks[:, 0]
            carried = logits.new_zeros(len(logits), self.voice.width, dtype=states.dtype)
            carried[chosen] = states[:, 0]
        else:
            m = logits.shape[1]
            weights = torch.zeros(logits.shape[:2], dtype=share.dtype, device=logits.device)
            weights[chosen] = share[:, None] * speaks[:, -m:]
            carried = torch.zeros(
                *logits.shape[:2], self.voice.width, dtype=states.dtype, device=logits.device
            )
            carried[chosen] = states[:, -m:]
        output.logits = self._replaced(logits, carried, weights)
        return output

    def _hear(self, ids: Int[Tensor, "b m"] | None) -> list[int]:
        """Note what an encoder-decoder's decoder reads; the prompts that its rows belong to."""
        if ids is None:
            raise ModelError("the pass has no decoder_input_ids, which the edited model's answer depends on")
        going = self._going(len(ids))
        for row, new in zip(going, ids.tolist(), strict=True):
            mine = self._rows[row]
            self._rows[row] = VoiceRow(
                mine.ids, mine.prompt, (*mine.said, *new) if self._kept else tuple(new)
            )
        return going

    def _replaced(
        self, logits: Float[Tensor, "*at v"], states: Float[Tensor, "*at p"], share: Float[Tensor, "*at"]
    ) -> Float[Tensor, "*at v"]:
        """Logits with the voice's in their place, or mixed with them, where its share is above 0."""
        chosen = share > 0
        if not bool(chosen.any()):
            return logits
        with self.resting():
            other = self.voice.logits(states[chosen])
        wide = torch.promote_types(torch.promote_types(logits.dtype, other.dtype), torch.float32)
        found = logits.to(wide, copy=True)
        found[chosen] = (
            mixture(found[chosen], other.to(wide), share[chosen].to(wide)) if self.soft else other.to(wide)
        )
        return found


def mixture(
    own: Float[Tensor, "k v"], other: Float[Tensor, "k v"], share: Float[Tensor, " k"]
) -> Float[Tensor, "k v"]:
    """log((1 - s) p_own + s p_other + epsilon), which the released code hands on as logits (spec 1.1)."""
    weight = share[:, None]
    return ((1 - weight) * own.softmax(dim=-1) + weight * other.softmax(dim=-1) + SMALLEST).log()
