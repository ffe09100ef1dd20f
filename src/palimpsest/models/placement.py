"""Where a model's weights lie: on one device, or spread over several by accelerate (device "auto")."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

import torch

from palimpsest.errors import ModelError

log = logging.getLogger(__name__)


def placement(device: str) -> dict[str, Any]:
    """What `from_pretrained` is told beside the weights; empty for a device that is named.

    Raises:
        ModelError: "auto" without accelerate, a device that does not exist or is not there.
    """
    if device != "auto":
        _refuse_absent(device)
        return {}
    if importlib.util.find_spec("accelerate") is None:
        raise ModelError(
            "device 'auto' needs accelerate, which is not installed. Install it (pip install 'palimpsest[placement]'), "
            "or name a device: cpu, cuda, cuda:1"
        )
    return {"device_map": "auto"}


def _refuse_absent(device: str) -> None:
    """torch says what is wrong with a device only when something is put there."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        count = torch.cuda.device_count()
        there = ", ".join(["cpu", *(f"cuda:{number}" for number in range(count))])
        reason = str(error).splitlines()[0]
        raise ModelError(f"device {device!r} cannot be used ({reason:.120}). There is: {there}") from error


def devices_of(model: Any) -> list[str]:
    """Names of the devices that its weights lie on."""
    return sorted({str(tensor.device) for tensor in model.network.parameters()})


def refuse_spread(model: Any, who: str) -> None:
    """No editor was ever tried on a model that is spread: what an edit makes of one block's output would have to follow the
    blocks from device to device.

    Raises:
        ModelError: the weights lie on more than one device.
    """
    devices = devices_of(model)
    if len(devices) > 1:
        raise ModelError(
            f"{who} was never tried on a model that lies on several devices ({model.name}: {', '.join(devices)}). Put it on one: "
            "`device: cuda:0` in the configuration, load_model(..., device='cuda:0') in Python, with dtype bfloat16 where room "
            "is short; or show the job one GPU only (CUDA_VISIBLE_DEVICES=0)"
        )


def refuse_elsewhere(model: Any) -> None:
    """Every weight must be at hand: what was left in main memory or on the disk for want of room cannot be edited.

    Raises:
        ModelError: some weights were not loaded onto a device.
    """
    away = [name for name, tensor in model.network.named_parameters() if tensor.is_meta]
    if away:
        raise ModelError(
            f"{model.name} does not fit onto the devices: {len(away)} of its weights ({away[0]} among others) would be "
            "fetched again in every pass, and could not be edited. Use dtype bfloat16 or float16, or more GPUs"
        )
    devices = devices_of(model)
    if len(devices) > 1:
        model.lean = False  # what is written out in models/lean.py knows one device
        log.warning(
            "%s lies on %s; one device is what was tested, and editors refuse more",
            model.name,
            ", ".join(devices),
        )
