"""The scope classifier g(z, x): whether an input x lies in the scope of an edit z = (x_e, y_e).

SERAC (arXiv 2206.06520), section 3; two forms (spec 1.2):

    embedding   log g = -scale * min over heads of d(e, q), with e the embedding of "x_e [SEP] y_e [SEP]", q that of x, d the
                squared Euclidean distance; one pass per text, edits are embedded once. g > .5 means d < ln 2.
    cross       log g = log softmax(logits)[IN_SCOPE] of one pass over "x_e [SEP] y_e [SEP] [SEP] x [SEP]"

The encoder is trained from scratch here (a BERT shape on the base's tokens, with three marks of its own), or starts from a
directory, `package:NAME/FOLDER` or hub id, with that model's tokenizer. There is no dropout. What is too long loses the
beginning of the edit first, then the end of the input (spec Q15).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from palimpsest.editors.base import require
from palimpsest.editors.shared.counterfactual import SCRATCH
from palimpsest.errors import ModelError
from palimpsest.models.batching import Batching
from palimpsest.models.hub import NO_PICKLE, pinned
from palimpsest.models.loading import LanguageModel

FORMS = ("embedding", "cross")
DISTANCES = ("sq_l2", "l2", "cos")
POOLINGS = ("first", "mean")
IN_SCOPE, OUT_OF_SCOPE = 0, 1  # the classes of the cross form (spec Q18)
CLOSEST = 1e-6  # -log g is at least this where 1 - g is looked at: identical texts have no finite log(1 - g)
UNLIMITED = 1 << 24  # a tokenizer without a limit names a far larger number
PAIRS = 1 << 22  # numbers held at a time when distances are taken

Text = tuple[str, ...]  # (x,), (x_e, y_e) or what `crossed` gives: written with [SEP] behind each part


@dataclass(frozen=True)
class ScopeShape:
    """What a scope classifier is.

    Attributes:
        classifier: "embedding" or "cross".
        encoder: "scratch", or where its weights and tokenizer are read from.
        width, blocks, heads: of an encoder made from scratch; its MLP is four times as wide.
        initial_range: standard deviation of the weights of an encoder made from scratch.
        distance: "sq_l2", "l2" or "cos" (1 - cosine).
        distance_heads: parts the embedding is split into; the closest one counts.
        scale: factor of the distance (never learned).
        bounded: tanh of the embeddings.
        pooling: "first" token's state or the "mean" of all.
    """

    classifier: str = "embedding"
    encoder: str = SCRATCH
    width: int = 64
    blocks: int = 2
    heads: int = 4
    initial_range: float = 0.02
    distance: str = "sq_l2"
    distance_heads: int = 1
    scale: float = 1.0
    bounded: bool = False
    pooling: str = "first"

    def __post_init__(self) -> None:
        require(self.classifier in FORMS, "classifier", self.classifier, " or ".join(FORMS))
        require(self.distance in DISTANCES, "distance", self.distance, " or ".join(DISTANCES))
        require(self.pooling in POOLINGS, "pooling", self.pooling, " or ".join(POOLINGS))
        require(bool(self.encoder), "encoder", self.encoder, "scratch, a directory or a hub id")
        for name in ("width", "blocks", "heads", "distance_heads"):
            require(getattr(self, name) >= 1, f"scope_{name}", getattr(self, name), "at least one")
        require(self.width % self.heads == 0, "scope_heads", self.heads, "must divide scope_width")
        require(self.initial_range > 0, "initial_range", self.initial_range, "must be positive")
        require(self.scale > 0, "scale", self.scale, "must be positive")


class ScopeClassifier:
    """g for a base model, in float32 on its device.

    Args:
        seed: of the weights that start at random.
        context: texts of a scratch encoder have at most so many tokens; None = what an edit and an input can have together.

    Raises:
        ModelError: the encoder cannot be read, or nothing says how many tokens it reads.

    Attributes:
        network: encoder and, of the cross form, head; `nn.Module`.
    """

    def __init__(self, base: LanguageModel, shape: ScopeShape, seed: int = 0, context: int | None = None):
        self.shape, self.device = shape, base.device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if shape.encoder == SCRATCH:
                self.context = context or 3 * base.context + 8
                encoder: Any = self._scratch(base)
            else:
                encoder = self._read(shape.encoder)
            self.width = int(encoder.config.hidden_size)
            require(
                self.width % shape.distance_heads == 0,
                "distance_heads",
                shape.distance_heads,
                f"must divide {self.width}",
            )
            head = _two_classes(self.width) if shape.classifier == "cross" else nn.Identity()
        self.network = nn.ModuleDict({"encoder": encoder, "head": head}).float().to(self.device)
        self.network.eval().requires_grad_(False)

    def _scratch(self, base: LanguageModel) -> nn.Module:
        from transformers import BertConfig, BertModel

        shape, words = self.shape, len(base.tokenizer)
        self.tokenizer, self.first, self.between, self.filling = base.tokenizer, words, words + 1, words + 2
        return BertModel(
            BertConfig(
                vocab_size=words + 3,
                hidden_size=shape.width,
                num_hidden_layers=shape.blocks,
                num_attention_heads=shape.heads,
                intermediate_size=4 * shape.width,
                max_position_embeddings=self.context,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                initializer_range=shape.initial_range,
                pad_token_id=self.filling,
            ),
            add_pooling_layer=False,
        )

    def _read(self, where: str) -> nn.Module:
        import transformers

        place, options = pinned(where)
        try:
            config = transformers.AutoConfig.from_pretrained(place, **options)
            for name, value in config.to_dict().items():
                if "dropout" in name and isinstance(value, float):
                    setattr(config, name, 0.0)
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(place, use_fast=True, **options)
            encoder = transformers.AutoModel.from_pretrained(place, config=config, **NO_PICKLE, **options)
        except Exception as error:  # transformers raises many kinds; the reader needs one sentence
            raise ModelError(
                f"cannot load the encoder {where} of the scope classifier: {type(error).__name__}: "
                f"{str(error).splitlines()[0]}. Give a directory with config.json, model.safetensors and tokenizer.json, a "
                "hub id such as distilbert-base-cased@COMMIT, or encoder: scratch"
            ) from error
        marks = (self.tokenizer.cls_token_id, self.tokenizer.sep_token_id, self.tokenizer.pad_token_id)
        if any(mark is None for mark in marks):
            raise ModelError(
                f"the encoder {where} has no [CLS], [SEP] and [PAD] tokens. Choose a model of the BERT kind"
            )
        self.first, self.between, self.filling = map(int, marks)
        self.context = _context(config, self.tokenizer, where)
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None  # BERT's, which would stay untrained
        return encoder

    def train_last(self, blocks: int | None) -> None:
        """Let gradients reach the whole network, or only its head and the last blocks of the encoder."""
        self.network.requires_grad_(True)
        if blocks is None:
            return
        encoder: Any = self.network["encoder"]
        encoder.requires_grad_(False)
        stack = getattr(encoder, "encoder", None) or encoder.transformer
        for block in list(stack.layer)[max(0, len(stack.layer) - blocks) :]:
            block.requires_grad_(True)

    # tokens ------------------------------------------------------------------------------------------------------------

    def ids(self, texts: Sequence[Text]) -> list[list[int]]:
        """[CLS] and each part with [SEP] behind it, cut to the context. In pairs of inputs and edits each part is there often."""
        parts = list(dict.fromkeys(part for text in texts for part in text))
        options = {"add_special_tokens": False, "truncation": False}
        found = self.tokenizer(parts, **options)["input_ids"] if parts else []
        known = dict(zip(parts, found, strict=True))
        return [self._written([known[part] for part in text]) for text in texts]

    def _written(self, parts: list[list[int]]) -> list[int]:
        room = self.context - 1 - len(parts)
        if len(parts) > 1:  # the edit's beginning goes first
            over = sum(map(len, parts)) - room
            for place in range(len(parts) - 1):
                cut = min(max(0, over), len(parts[place]))
                parts[place], over = parts[place][cut:], over - cut
        parts[-1] = parts[-1][: max(0, room - sum(map(len, parts[:-1])))]
        return [self.first, *(token for part in parts for token in (*part, self.between))]

    # the two forms -----------------------------------------------------------------------------------------------------

    def embed(self, ids: Sequence[Sequence[int]], batching: Batching | None = None) -> Float[Tensor, "n c"]:
        """Embeddings [n, c] (of the cross form: the state its head reads), with gradient, in padded batches."""
        found: list[Tensor | None] = [None] * len(ids)
        for group in (batching or Batching()).groups([len(row) for row in ids]):
            longest = max(len(ids[row]) for row in group)
            shape = (len(group), longest)
            tokens = torch.full(shape, self.filling, dtype=torch.long)
            mask = torch.zeros(shape, dtype=torch.long)
            for place, row in enumerate(group):
                tokens[place, : len(ids[row])], mask[place, : len(ids[row])] = torch.tensor(ids[row]), 1
            states = self._states(tokens.to(self.device), mask.to(self.device))
            for row, state in zip(group, states, strict=True):
                found[row] = state
        kept = [state for state in found if state is not None]
        return torch.stack(kept) if kept else torch.empty(0, self.width, device=self.device)

    def _states(self, tokens: Tensor, mask: Tensor) -> Float[Tensor, "b c"]:
        states = self.network["encoder"](input_ids=tokens, attention_mask=mask).last_hidden_state
        if self.shape.pooling == "first":
            pooled = states[:, 0]
        else:
            weight = mask[..., None].to(states.dtype)
            pooled = (states * weight).sum(dim=1) / weight.sum(dim=1)
        return pooled.tanh() if self.shape.bounded else pooled

    def log_scope_of_embeddings(
        self, edits: Float[Tensor, "n c"], queries: Float[Tensor, "b c"]
    ) -> Float[Tensor, "b n"]:
        """log g [b, n] of the embedding form, edits in chunks."""
        step = max(1, PAIRS // max(1, queries.numel()))
        if len(edits) <= step:
            return self._log_scope(queries[:, None], edits[None])
        return torch.cat([self._log_scope(queries[:, None], some[None]) for some in edits.split(step)], dim=1)

    def _log_scope(
        self, queries: Float[Tensor, "b _ c"], edits: Float[Tensor, "_ _ c"]
    ) -> Float[Tensor, "b n"]:
        h = self.shape.distance_heads
        if self.shape.distance == "cos":
            q, e = (x.unflatten(-1, (h, -1)) for x in (queries, edits))
            apart = 1 - torch.nn.functional.cosine_similarity(q, e, dim=-1)
        else:
            apart = (queries - edits).unflatten(-1, (h, -1)).square().sum(dim=-1)
            if self.shape.distance == "l2":
                apart = (apart + 1e-12).sqrt()
        return -self.shape.scale * apart.min(dim=-1).values

    def log_scope_of_pairs(self, ids: Sequence[Sequence[int]]) -> Float[Tensor, " n"]:
        """log g [n] of the cross form, for ids of what `crossed` gives."""
        logits = self.network["head"](self.embed(ids))
        return logits.log_softmax(dim=-1)[:, IN_SCOPE]

    def log_scope(self, edits: Sequence[Text], queries: Sequence[str]) -> Float[Tensor, "b n"]:
        """log g [b, n] of every query with every edit (prompt, answer), with gradient."""
        if self.shape.classifier == "cross":
            pairs = [crossed(edit, query) for query in queries for edit in edits]
            return self.log_scope_of_pairs(self.ids(pairs)).view(len(queries), len(edits))
        states = self.embed(self.ids([*edits, *((query,) for query in queries)]))
        return self.log_scope_of_embeddings(states[: len(edits)], states[len(edits) :])

    def log_scope_of_rows(self, edits: Sequence[Text], queries: Sequence[str]) -> Float[Tensor, " n"]:
        """log g [n] of edit i with query i, with gradient."""
        if self.shape.classifier == "cross":
            return self.log_scope_of_pairs(self.ids(list(map(crossed, edits, queries))))
        states = self.embed(self.ids([*edits, *((query,) for query in queries)]))
        return self._log_scope(states[len(edits) :, None], states[: len(edits), None])[:, 0]


def _context(config: Any, tokenizer: Any, where: str) -> int:
    """Tokens that the encoder reads. RoBERTa has two positions more than that, so that the tokenizer's limit counts too."""
    limits = (getattr(config, "max_position_embeddings", None), getattr(tokenizer, "model_max_length", None))
    known = [int(limit) for limit in limits if limit is not None and 0 < limit < UNLIMITED]
    if not known:
        raise ModelError(
            f"neither the configuration of the encoder {where} (max_position_embeddings) nor its tokenizer (model_max_length) "
            "says how many tokens it reads. Give one that does, or encoder: scratch"
        )
    return min(known)


def crossed(edit: Text, query: str) -> Text:
    """An edit and an input as the cross form reads them: the edit's last separator and the input's first one meet."""
    return (*edit, "", query)


def log_not(log_scope: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """log(1 - g) from log g, finite where g is 1."""
    return torch.log(-torch.expm1(log_scope.clamp(max=-CLOSEST)))


def _two_classes(width: int) -> nn.Module:
    """The head of DistilBERT for classification: in scope, out of scope."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))
