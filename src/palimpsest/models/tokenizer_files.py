"""A model's tokenizer as it is read: from the model's own files, or from those of another place that the model was made with."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from palimpsest.errors import ModelError
from palimpsest.models.hub import pinned

# What transformers needs to build a fast tokenizer from a SentencePiece file (spiece.model), which T5's hub repositories have.
SENTENCEPIECE = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}
ASKED_FOR = (*SENTENCEPIECE, "tiktoken")  # transformers tries the last one where one of the others is missing
ELSEWHERE = "Or name a place that has tokenizer.json: `tokenizer` of the model (a directory, or ID@COMMIT)"
FEWEST = 32  # transformers makes an empty tokenizer up when the files are missing; a real one has every byte or letter


def read_tokenizer(where: str, name: str) -> Any:
    """A fast tokenizer, with a padding token.

    Args:
        where: a directory, or a hub id as `org/name@COMMIT`.
        name: of the model, for messages.

    Raises:
        ModelError: it cannot be read, with what is missing: a file, or the packages that read SentencePiece files.
    """
    from transformers import AutoTokenizer

    place, options = pinned(where)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, use_fast=True, **options)
    except Exception as error:  # transformers raises many kinds; the reader needs one sentence
        absent = missing_packages()
        if absent and (_is_sentencepiece(place) or any(word in str(error) for word in ASKED_FOR)):
            raise ModelError(
                f"the tokenizer of {name} ({place}) is a SentencePiece file, and what reads it is not installed: "
                f'{" and ".join(absent)}. Install the extra `t5`: pip install -c constraints.txt -e ".[t5]". {ELSEWHERE}'
            ) from error
        first = (str(error).splitlines() or [""])[0]
        raise ModelError(
            f"cannot load the model {name}: its tokenizer cannot be read from {place}: {type(error).__name__}: {first}. A "
            f"tokenizer needs tokenizer.json, whole. {ELSEWHERE}"
        ) from error
    if not getattr(tokenizer, "is_fast", False) or len(tokenizer) < FEWEST:
        raise ModelError(
            f"{name} has no fast tokenizer in {place} (tokenizer.json), which is needed to find subjects and targets. "
            f"{ELSEWHERE}"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def missing_packages() -> list[str]:
    """Packages of the extra `t5` that are not installed."""
    return [name for name, module in SENTENCEPIECE.items() if not _installed(module)]


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that the module would lie in
        return False


def _is_sentencepiece(place: str) -> bool:
    folder = Path(place)
    return not (folder / "tokenizer.json").is_file() and any(folder.glob("*.model"))


def digest_of(tokenizer: Any) -> str:
    """What it does with a text, as hex digits: the fast tokenizer's whole description."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def refuse_more_tokens(tokenizer: Any, network: nn.Module, name: str, where: str) -> None:
    """Raise ModelError where a tokenizer from elsewhere has tokens that the model has no embedding of."""
    rows = network.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    if len(tokenizer) > rows:
        raise ModelError(
            f"the tokenizer {where} has {len(tokenizer)} tokens, but {name} has embeddings of {rows}: it is another model's. "
            "Correct the key `tokenizer`"
        )
