"""Load a model once, with what every editor and metric needs to know of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from palimpsest.errors import ModelError
from palimpsest.files import read_object
from palimpsest.models.families import Family, family_of, matrix_view, part
from palimpsest.models.hub import NO_PICKLE, pinned
from palimpsest.models.placement import placement, refuse_elsewhere, refuse_spread
from palimpsest.models.tokenizer_files import digest_of, read_tokenizer, refuse_more_tokens
from palimpsest.models.tokens import TokenBatch

log = logging.getLogger(__name__)
DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
MANIFEST = "manifest.json"
UNLIMITED = 10**6  # tokenizers without a limit name a huge number
AUTO = {
    "decoder": "AutoModelForCausalLM",
    "encoder_decoder": "AutoModelForSeq2SeqLM",
    "encoder": "AutoModelForSequenceClassification",
}


class LanguageModel:
    """A frozen model, its tokenizer, and the places editors work on.

    `kind` is "decoder" (causal language model), "encoder_decoder" or "encoder" (sequence classifier); blocks are
    those that are edited: of an encoder-decoder the encoder's.
    Notation of the papers: d = `width`, d_k = `inner_width`, W^l = `mlp_weight(l)` of shape [d, d_k].
    """

    def __init__(self, network: nn.Module, tokenizer, family: Family, name: str = "model", lean: bool = True):
        network = fuse_activations(network) if lean else network
        self.network: Any = network.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.family = family
        self.name = name
        self.padding: Tensor | None = None  # which tokens of the running pass are real; hook layers read it
        self.query: Tensor | None = None  # position [b] whose state asks a codebook; gated adapters read it
        self.rows: Tensor | None = (
            None  # rows [b] of the prompts that a step with kept keys and values goes on with
        )
        self.lean = lean  # False: no shortcut of passes, the network's own modules run every block every time
        self.written_out: dict[Any, Any] = {}  # by models/lean.py, for all rows
        self.tokenizer_digest = ""  # of a tokenizer from elsewhere, which is a part of what this model is

    @property
    def device(self) -> torch.device:
        """Where the embeddings (and so the inputs) live."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return next(self.network.parameters()).dtype

    @property
    def kind(self) -> str:
        """ "decoder", "encoder_decoder" or "encoder"."""
        return self.family.kind

    def need_decoder(self, who: str) -> None:
        """Raise ModelError, naming who asks, unless this is a decoder-only language model."""
        if self.kind != "decoder":
            raise ModelError(
                f"{who} needs a decoder-only language model, but {self.name} is of kind {self.kind!r} "
                f"(family {self.family.name}). Choose a decoder, or something that does not need one"
            )

    def need_one_device(self, who: str) -> None:
        """Raise ModelError, naming who asks, when the blocks lie on several devices."""
        refuse_spread(self, who)

    @cached_property
    def labels(self) -> list[str]:
        """Names of a classifier's classes, in the order of its logits; empty for other kinds."""
        if self.kind != "encoder":
            return []
        names = {int(number): str(name) for number, name in self.network.config.id2label.items()}
        return [names[number] for number in sorted(names)]

    @property
    def end_token(self) -> int:
        """Id of the token that ends what the model says; raises ModelError when the tokenizer has none."""
        number = self.tokenizer.eos_token_id
        if number is None:
            raise ModelError(f"the tokenizer of {self.name} has no end token. Set eos_token in its files")
        return int(number)

    @property
    def stack(self) -> nn.Module:
        """The module that is given the attention mask and runs `blocks`, in every way the network is called."""
        return self.network.get_encoder() if self.kind == "encoder_decoder" else self.network.base_model

    @cached_property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks, in order."""
        return part(self.network, self.family.blocks)  # type: ignore[return-value]

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def width(self) -> int:
        """d, width of the residual stream."""
        return self.mlp_weight(0).shape[0]

    @property
    def inner_width(self) -> int:
        """d_k, inner width of the MLP: the length of a key."""
        return self.mlp_weight(0).shape[1]

    @property
    def vocabulary(self) -> int:
        """Number of rows of the output head."""
        return matrix_view(self.head).shape[0]

    @cached_property
    def context(self) -> int:
        """Largest number of tokens of one sequence.

        T5 has relative positions and no limit of its own: what its config or tokenizer names counts, else 512.
        """
        config, named = self.network.config, int(self.tokenizer.model_max_length)
        for field in ("max_position_embeddings", "n_positions"):
            if getattr(config, field, None):
                return int(getattr(config, field))
        return named if named < UNLIMITED else 512

    def block(self, layer: int) -> nn.Module:
        """Block number `layer`; raises ModelError when there is none."""
        if not 0 <= layer < self.n_blocks:
            raise ModelError(
                f"layer {layer} does not exist: {self.name} has blocks 0 to {self.n_blocks - 1}. Change the setting `layers`"
            )
        return self.blocks[layer]

    def mlp_out(self, layer: int) -> Any:
        """Module of the second MLP matrix of a block (Linear or Conv1D)."""
        return part(self.block(layer), self.family.mlp_out)

    def mlp_weight(self, layer: int) -> Tensor:
        """W^l [d, d_k], a view on the parameter."""
        return matrix_view(self.mlp_out(layer))

    def linear(self, layer: int, site: str) -> Any:
        """A linear map (Linear or Conv1D) of a block: what GRACE and its baselines wrap.

        Args:
            layer: number of the block.
            site: "mlp_in", "mlp_out", or a dotted path from the block.

        Raises:
            ModelError: no such layer, no such site, or the site is no linear map.
        """
        block = self.block(layer)
        path = {"mlp_in": self.family.mlp_in, "mlp_out": self.family.mlp_out}.get(site, site)
        try:
            module = part(block, path)
        except ModelError as error:
            raise ModelError(
                f"site {site!r} does not exist in the blocks of {self.name}. Use mlp_in, mlp_out, or a dotted "
                f"path from {type(block).__name__}"
            ) from error
        matrix_view(module)  # refuses what is no linear map
        return module

    @cached_property
    def final_norm(self) -> nn.Module:
        """Norm after the last block; raises ModelError for families that have none."""
        if self.family.final_norm is None:
            raise ModelError(f"{self.name} ({self.family.name}) has no norm after its last block")
        return part(self.network, self.family.final_norm)

    @cached_property
    def head(self) -> nn.Module:
        """Output head: [.., d] to [.., vocabulary] (of a classifier: to [.., classes])."""
        return part(self.network, self.family.head)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits over configuration and weights (and a tokenizer from elsewhere), taken before anything was edited."""
        return self.take_fingerprint()

    def take_fingerprint(self) -> str:
        """The same over the weights as they are now."""
        digest = hashlib.sha256()
        config = {
            k: v
            for k, v in self.network.config.to_dict().items()
            if not k.startswith("_") and "version" not in k
        }
        digest.update(json.dumps(config, sort_keys=True, default=str).encode())
        digest.update(self.tokenizer_digest.encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    @contextlib.contextmanager
    def padding_of(self, attention_mask: Tensor | None) -> Iterator[None]:
        """Tell hook layers which tokens are real while parts of the model are run directly (models/partial.py)."""
        before, self.padding = self.padding, attention_mask
        try:
            yield
        finally:
            self.padding = before

    @contextlib.contextmanager
    def asking_at(self, index: Tensor | None) -> Iterator[None]:
        """Tell gated adapters which position [b] of the edited stack's sequence asks, for the passes in the block."""
        before, self.query = self.query, index
        try:
            yield
        finally:
            self.query = before

    @contextlib.contextmanager
    def going_on_with(self, rows: Tensor) -> Iterator[None]:
        """Tell gated adapters which rows [b] of the prompts' pass the rows of this step are."""
        before, self.rows = self.rows, rows
        try:
            yield
        finally:
            self.rows = before

    @torch.no_grad()
    def hidden(self, batch: TokenBatch) -> Tensor:
        """Output of the final norm [b, n, d] of a decoder-only model."""
        self.need_decoder("a pass over a running text")
        batch = batch.to(self.device)
        return self.network.base_model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
        ).last_hidden_state

    @torch.no_grad()
    def logits(self, batch: TokenBatch, positions: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Logits [b, n, vocabulary]; with positions = (rows [m], columns [m]) only those, [m, vocabulary]."""
        hidden = self.hidden(batch)
        if positions is not None:
            hidden = hidden[positions[0].to(hidden.device), positions[1].to(hidden.device)]
        return self.head(hidden)


def fuse_activations(network: nn.Module) -> nn.Module:
    """Replace the many-step tanh GELU of GPT-2 and GPT-J by its fused kernel: the same function, up to rounding.

    On small models half of the time of a pass goes into that one function otherwise.
    """
    from transformers.activations import GELUTanh, NewGELUActivation

    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, GELUTanh())
    return network


def load_model(
    path_or_id: str | Path,
    dtype: str | torch.dtype = "float32",
    device: str = "cpu",
    revision: str | None = None,
    family: str | None = None,
    tokenizer: str | Path | None = None,
    lean: bool = True,
) -> LanguageModel:
    """Load a model from a local directory in hub format, a directory with our manifest, or a hub id with its commit.

    The family says which kind it is: a causal language model, sequence to sequence, or a sequence classifier.
    Only safetensors weights are read and no remote code is run. Raises ModelError with the remedy when the
    directory, a file, the family or the dtype is not what it should be.

    Args:
        dtype: "float32", "float64", "bfloat16" or "float16", or torch's own.
        device: "cpu", "cuda", "cuda:1", or "auto": accelerate places the blocks on the GPUs there are; editors
            refuse a model on more than one.
        tokenizer: a directory or `org/name@COMMIT` with its tokenizer, for a model whose own files have none (or one that
            cannot be read); a manifest's own is taken when left out.
        lean: take shortcuts that are exact to rounding (`LanguageModel.lean`).
    """
    import transformers
    from transformers import AutoConfig

    dtype = str(dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r} is not known (known: {', '.join(DTYPES)})")
    source, revision, name, own = resolve(path_or_id, revision)
    source, options = pinned(source, revision)
    elsewhere = str(tokenizer or own or "")
    placed = placement(device)
    try:
        config = AutoConfig.from_pretrained(source, **options)
        row = family_of(family or config.model_type)
        if row.name != config.model_type:
            raise ModelError(
                f"{name} is a {config.model_type} model, not {row.name}. Correct or leave out `family`"
            )
        words = read_tokenizer(
            elsewhere or (f"{source}@{options['revision']}" if "revision" in options else source), name
        )
        network, found = getattr(transformers, AUTO[row.kind]).from_pretrained(
            source, dtype=DTYPES[dtype], output_loading_info=True, **NO_PICKLE, **options, **placed
        )
    except ModelError:
        raise
    except Exception as error:  # transformers raises many kinds; the reader needs one sentence
        raise ModelError(
            f"cannot load the model {name} from {source}: {type(error).__name__}: {str(error).splitlines()[0]}. "
            "A model directory needs config.json, model.safetensors and tokenizer.json, all whole"
        ) from error
    if found["missing_keys"]:
        raise ModelError(
            f"{name} lacks weights ({sorted(found['missing_keys'])[0]} among others), which a {row.kind} needs. Give "
            "a model that was trained for its task, such as a classifier with its head"
        )
    model = LanguageModel(network if placed else network.to(device), words, row, name, lean)
    if elsewhere:
        refuse_more_tokens(words, network, name, elsewhere)
        model.tokenizer_digest = digest_of(words)
    refuse_elsewhere(model)
    _refuse_non_finite(model)
    _refuse_bare_tokens(model)
    return model


def resolve(path_or_id: str | Path, revision: str | None = None) -> tuple[str, str | None, str, str | None]:
    """(what to load, pinned revision, name, tokenizer elsewhere) for a directory, one of our manifests, or a hub id."""
    if "\0" in str(path_or_id):
        raise ModelError(
            f"{str(path_or_id)!r:.60} names no model. Give a directory, or a hub id with its commit"
        )
    path = Path(path_or_id)
    manifest = path if path.name == MANIFEST else path / MANIFEST
    if os.path.isfile(manifest):
        content = read_object(manifest)
        for field in ("path", "revision", "name", "tokenizer"):
            value = content.get(field)
            if value is not None and (not isinstance(value, str) or "\0" in value):
                raise ModelError(
                    f"file {manifest}, field {field!r}: expected a text, found {value!r:.60}. Make the model again"
                )
        if content.get("path"):
            target = content["path"]
            local = manifest.parent / target
            name = content.get("name") or manifest.parent.resolve().name
            where = str(local.resolve()) if os.path.isdir(local) else target
            return where, content.get("revision") or revision, name, content.get("tokenizer")
    if os.path.isdir(path):
        return str(path), None, path.resolve().name, None
    if os.path.exists(path) or str(path_or_id).startswith((".", "/")) or str(path_or_id).count("/") > 1:
        raise ModelError(
            f"{path_or_id} is not a model directory. Give a directory in hub format, or a hub id with its "
            "commit: org/name@COMMIT (or revision=COMMIT)"
        )
    return str(path_or_id), revision, str(path_or_id), None


def _refuse_bare_tokens(model: LanguageModel) -> None:
    """The end token asks the codebook of an encoder, so its tokenizer must write one."""
    if model.kind == "decoder":
        return
    end = model.tokenizer.eos_token_id if model.kind == "encoder_decoder" else model.tokenizer.sep_token_id
    if end is None or model.tokenizer("a")["input_ids"][-1] != end:
        what = "</s>" if model.kind == "encoder_decoder" else "[CLS] and [SEP]"
        raise ModelError(
            f"the tokenizer of {model.name} does not put {what} around a text, which a {model.family.name} model was "
            "trained with. Give tokenizer.json its post-processor"
        )


def _refuse_non_finite(model: LanguageModel) -> None:
    for name, tensor in model.network.named_parameters():
        if not torch.isfinite(tensor).all():
            raise ModelError(
                f"the weights of {model.name} are not finite ({name}): the file is damaged or training diverged"
            )
