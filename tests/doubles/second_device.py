"""A second device, made of main memory: what runs on the CPU and mixes up devices fails here as it would on a GPU.

Tensors on it say `device = second:0`, and every operation that reaches them is done by the CPU on what they wrap. So no
number differs from the CPU's but where torch chooses another kernel by device. What a GPU refuses is refused: operands on
both devices (but for single numbers, and for indices on the CPU), a generator of another device, `.numpy()`.

What this does not show: kernels, memory and speed of a GPU, and code that asks for the name "cuda".
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, library
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

aten = torch.ops.aten
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)
# What the CPU has to wait for on a GPU: numbers that it asks for, and shapes that depend on numbers.
WAITING = (
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.equal.default,
    aten.masked_select.default,
)
NAME = "second"
waits: list[str] = []  # names of the operations that waited, since it was last cleared


class Elsewhere(Tensor):
    """A tensor on the second device; `here` holds its numbers in main memory."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> Elsewhere:
        """Shape, strides and dtype of what it wraps."""
        made = Tensor._make_wrapper_subclass(
            cls,
            here.shape,
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=torch.device(NAME, 0),
        )
        made.here = here
        return made

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        """Every operation, with the way back of its gradient."""
        return _run(operation, args, kwargs or {})

    def tolist(self) -> Any:
        """torch refuses it for wrapped tensors, not for those of other devices."""
        waits.append("tolist")
        return self.here.tolist()

    def __repr__(self, **_: Any) -> str:
        return f"Elsewhere({self.here!r})"


def _run(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    wanted = kwargs.get("device")
    _note_waiting(operation, args, wanted)
    if operation is aten.copy_.default:  # between devices, either way
        _here(args[0]).copy_(_here(args[1]))
        return args[0]
    if operation is aten._to_copy.default:
        moved = aten._to_copy.default(_here(args[0]), **{**kwargs, "device": None})
        stays = isinstance(args[0], Elsewhere) if wanted is None else torch.device(wanted).type == NAME
        return Elsewhere(moved) if stays else moved
    _refuse_mixed(operation, args, kwargs)
    made_of = any(isinstance(leaf, Elsewhere) for leaf in tree_leaves((args, kwargs)))
    lies_there = made_of if wanted is None else torch.device(wanted).type == NAME
    if wanted is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    found = operation(*tree_map(_here, args), **tree_map(_here, kwargs))
    if not lies_there:
        return found
    found = tree_map(lambda leaf: Elsewhere(leaf) if isinstance(leaf, Tensor) else leaf, found)
    return return_and_correct_aliasing(operation, args, kwargs, found)


def _refuse_mixed(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    leaves = tree_leaves((args, kwargs))
    generators = [leaf for leaf in leaves if isinstance(leaf, torch.Generator)]
    if generators and any(isinstance(leaf, Elsewhere) for leaf in leaves):
        raise RuntimeError(
            f"{operation}: expected a generator of {NAME}, found one of {generators[0].device}"
        )
    if operation in INDEXING and isinstance(args[0], Elsewhere):
        leaves = tree_leaves((args[0], args[2:], kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    here = [tensor for tensor in tensors if not isinstance(tensor, Elsewhere)]
    written_here = operation._schema.is_mutable and not isinstance(args[0], Elsewhere)
    if 0 < len(here) < len(tensors) and (written_here or any(tensor.ndim for tensor in here)):
        shapes = [tuple(tensor.shape) for tensor in tensors]
        raise RuntimeError(
            f"{operation}: expected all tensors on one device, found {NAME} and cpu ({shapes})"
        )


def _note_waiting(operation: Any, args: tuple[Any, ...], wanted: Any) -> None:
    if not args or not isinstance(args[0], Elsewhere):
        return
    leaves = operation is aten._to_copy.default and wanted is not None and torch.device(wanted).type != NAME
    masked = operation in INDEXING and any(one is not None and one.dtype == torch.bool for one in args[1])
    if leaves or masked or operation in WAITING:
        waits.append(str(operation))


def _here(leaf: Any) -> Any:
    return leaf.here if isinstance(leaf, Elsewhere) else leaf


def _factory(function: Any) -> Any:
    """A way to make tensors from nothing, on the second device."""

    def make(*args: Any, device=None, layout=None, pin_memory=None, memory_format=None, **kwargs: Any):
        return Elsewhere(
            function(*args, **{name: value for name, value in kwargs.items() if value is not None})
        )

    return make


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    _here(target).copy_(_here(source))
    return target


_setup_privateuseone_for_python_backend(NAME)
_kernels = library.Library("aten", "IMPL")
for _names, _function in (
    (("empty.memory_format",), lambda size, **given: torch.empty(size, **given)),
    (("empty_strided",), torch.empty_strided),
    (("arange", "arange.start", "arange.start_step"), torch.arange),
    (("eye", "eye.m"), torch.eye),
):
    for _name in _names:
        _kernels.impl(_name, _factory(_function), "PrivateUse1")
_kernels.impl("_copy_from", _copy_from, "PrivateUse1")


@contextmanager
def as_everywhere() -> Iterator[None]:
    """Attention by the kernel that every device has; tied weights stay tied when they move, as on a GPU."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
