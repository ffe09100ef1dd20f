"""Whose files are loaded: a directory on this machine, or a hub repository at one commit. Code in either is never run.

A hub id without a commit means whatever its owner puts there next, so it is refused: `org/name@COMMIT`, or the argument
`revision`, names the 40 hexadecimal digits. A directory needs none; its content is in the model's fingerprint.
"""

from __future__ import annotations

import os
import re
from typing import Any

from palimpsest.errors import ModelError
from palimpsest.models.packaged import locate

PINNED = re.compile(r"[0-9a-f]{40}")
# Said outright: left out, transformers asks the person at the terminal whether to run a repository's code.
NO_CODE: dict[str, Any] = {"trust_remote_code": False}
# For weights: pickled ones can run code too.
NO_PICKLE: dict[str, Any] = {"use_safetensors": True}


def commit_of(identifier: str) -> str:
    """How to learn the commit of a hub model, for messages."""
    asking = f"from huggingface_hub import HfApi; print(HfApi().model_info('{identifier}').sha)"
    return f'Copy the 40 hexadecimal digits of its commit from its page, or ask: python -c "{asking}"'


def pinned(where: str, revision: Any = None) -> tuple[str, dict[str, Any]]:
    """What to give to every `from_pretrained`: the place, and options that pin the commit and refuse code.

    Args:
        where: a directory, `package:NAME/FOLDER`, or a hub id, with `@COMMIT` or with `revision`.

    Raises:
        ModelError: a hub id without a commit of 40 hexadecimal digits, or a package or directory that is not there.
    """
    place = locate(where)
    if os.path.isdir(place):  # False of what can be no path, too
        return place, dict(NO_CODE)
    if place.startswith((".", "/", "~")) or place.count("/") > 1:  # no hub id looks like this
        raise ModelError(
            f"there is no directory {place}; a model is a directory, or a hub id with its commit"
        )
    identifier, _, commit = place.partition("@")
    commit = commit or revision or ""
    if not isinstance(commit, str) or not PINNED.fullmatch(commit):
        raise ModelError(
            f"the hub model {identifier!r} is not pinned to a commit (found {commit or 'none'!r:.60}): what a name or a branch "
            f"means can change. {commit_of(identifier)}. Give it as `revision`, or {identifier}@COMMIT; or download the model "
            "and give the directory"
        )
    return identifier, {"revision": commit, **NO_CODE}
