"""Hooks attach and detach in one place, and can all be taken off again: then the model is as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from palimpsest.models.loading import LanguageModel


class Attachment:
    """A set of hooks that can be taken off again; taking off twice is harmless."""

    def __init__(self, handles: list[Any]):
        self._handles = handles

    def detach(self) -> None:
        """Remove every hook of the set."""
        while self._handles:
            self._handles.pop().remove()


def attach(model: LanguageModel, hooks: dict[nn.Module, Callable[..., Any]]) -> Attachment:
    """Put forward hooks `hook(module, inputs, output)` on modules, and note the padding of every pass.

    The padding is noted because scope decisions must not see padding tokens (spec quirk 3).
    """

    def note_padding(_: nn.Module, __: tuple[Any, ...], named: dict[str, Any]) -> None:
        mask, ids = named.get("attention_mask"), named.get("input_ids")
        past: Any = named.get("past_key_values")
        model.padding = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
        seen = past.get_seq_length() if hasattr(past, "get_seq_length") else 0
        if model.padding is None and seen and ids is not None:  # no mask: every token, kept or new, is real
            model.padding = ids.new_ones(len(ids), seen + ids.shape[1])

    def forget_padding(_: nn.Module, __: tuple[Any, ...], ___: Any) -> None:
        model.padding = None

    base = model.stack
    handles: list[Any] = [
        base.register_forward_pre_hook(note_padding, with_kwargs=True),
        base.register_forward_hook(forget_padding, always_call=True),
    ]
    handles += [module.register_forward_hook(hook) for module, hook in hooks.items()]
    return Attachment(handles)


def first_hooked(model: LanguageModel) -> int:
    """The lowest block on which anything hangs, which may read whole rows; the number of blocks where nothing does."""
    for number, block in enumerate(model.blocks):
        if any(module._forward_hooks or module._forward_pre_hooks for module in block.modules()):
            return number
    return model.n_blocks


@contextmanager
def captured_inputs(modules: dict[int, nn.Module]) -> Iterator[dict[int, Tensor]]:
    """Note the latest input of each module under its number."""
    noted: dict[int, Tensor] = {}

    def noting(number: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            noted[number] = inputs[0].detach()

        return note

    with ExitStack() as stack:
        for number, module in modules.items():
            stack.callback(module.register_forward_pre_hook(noting(number)).remove)
        yield noted
