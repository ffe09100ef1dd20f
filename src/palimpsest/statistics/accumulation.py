"""The mechanism of a collection: text packed into rows, sums over batches, checkpoints of the sums."""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from palimpsest import interruption
from palimpsest.errors import PalimpsestError, StatisticsError
from palimpsest.files import (
    Pace,
    proves_damage,
    read_json,
    unreadable_now,
    write_atomic,
    write_json,
)
from palimpsest.models.loading import LanguageModel
from palimpsest.models.memory import block_bytes, that_fit
from palimpsest.text_files import text_lines

log = logging.getLogger(__name__)


BLOCK = 512  # rows of a product that are computed at a time; what lies above the diagonal outside them is left out


class Partial:
    """Sums so far, in memory and (when there is a path) on disk, so that a broken collection can go on.

    Attributes:
        sums: layer -> float64, on the device of the layer.
        header: what is collected, and how: a checkpoint with another one does not count.
        tokens, batches: how much is in the sums.
    """

    def __init__(self, path: Path | None, header: Mapping[str, Any], sums: dict[int, torch.Tensor]):
        self.path, self.layers, self.sums = path, tuple(sums), sums
        self.header = {**{n: str(v) for n, v in header.items()}, "layers": str(self.layers)}
        self.tokens, self.batches = 0, 0
        self._pace = Pace()
        if path is not None and path.exists():
            self._resume(path)

    def _resume(self, path: Path) -> None:
        try:
            tensors, header = read_tensors(path)
        except StatisticsError as error:
            if not proves_damage(error):
                raise unreadable_now(path, error) from error
            log.warning("cannot go on from a broken checkpoint, starting again: %s", error)
            return
        if any(header.get(name) != value for name, value in self.header.items()):
            return
        try:
            found = {layer: tensors[f"layer_{layer}"] for layer in self.layers}
            if any(found[layer].shape != self.sums[layer].shape for layer in self.layers):
                raise ValueError("its shapes are others")
            tokens, batches = int(header["tokens"]), int(header["batches"])
        except (KeyError, ValueError) as error:
            log.warning("the checkpoint %s is of another form (%r), starting again", path, error)
            return
        self.sums = {layer: found[layer].to(own) for layer, own in self.sums.items()}
        self.tokens, self.batches = tokens, batches
        log.info("going on after %d batches", self.batches)

    def counted(self, kept: str, every: int | None = None) -> None:
        """After a batch: save when it is time to, and end the command here when it was asked to.

        Args:
            kept: what there is to go on from, for the message.
            every: batches between two checkpoints; None = as `Pace` says.
        """
        self.batches += 1
        leaving = interruption.requested()
        due = self._pace.due() if every is None else self.batches % every == 0
        if leaving or due:
            with self._pace.saving():
                self.save()
        if leaving:
            interruption.leave(kept)

    def save(self) -> None:
        """Write the sums, if there is a place for them."""
        if self.path is None:
            return
        header = {**self.header, "tokens": str(self.tokens), "batches": str(self.batches)}
        tensors = {f"layer_{layer}": total.cpu() for layer, total in self.sums.items()}
        with interruption.saving():
            write_atomic(self.path, lambda temporary: save_file(tensors, temporary, metadata=header))

    def remove(self) -> None:
        """Forget the checkpoint: the result is written."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


class Sums(Partial):
    """Sums of products of keys.

    K^T K is symmetric: only blocks on and below the diagonal are computed and summed (of 12 rows of blocks 54 % of the
    products), `total` mirrors them.
    """

    def __init__(
        self,
        path: Path | None,
        key: Mapping[str, Any],
        layers: tuple[int, ...],
        model: LanguageModel,
        batch_tokens: int,
        symmetric: bool = True,
    ):
        self.symmetric, width = symmetric, model.inner_width
        where = {layer: model.mlp_weight(layer).device for layer in layers}
        zeros = {
            layer: torch.zeros(width, width, dtype=torch.float64, device=where[layer]) for layer in layers
        }
        # The batch size decides which rows a counted batch held.
        super().__init__(path, {**key, "batch_tokens": batch_tokens, "symmetric": symmetric}, zeros)

    def add(self, layer: int, keys: torch.Tensor) -> None:
        """Add the products of one batch; keys [tokens, d_k] of any dtype and device."""
        keys, total = keys.to(torch.float32), self.sums[layer]
        if not torch.isfinite(keys).all():
            raise StatisticsError(
                f"the keys of layer {layer} are not finite in batch {self.batches + 1}. "
                "Load the model in float32 and check it"
            )
        width = keys.shape[1]
        block = BLOCK if self.symmetric else width
        for start in range(0, width, block):
            end = min(start + block, width)
            total[start:end, :end] += keys[:, start:end].T @ keys[:, :end]

    def total(self, layer: int) -> torch.Tensor:
        """The sum of k k^T [d_k, d_k], float64, both halves, on the CPU.

        Raises:
            StatisticsError: it is not finite.
        """
        found = self.sums[layer].cpu()
        if self.symmetric:
            found = mirrored(found)
        if not torch.isfinite(found).all():
            raise StatisticsError(
                f"the products of the keys of layer {layer} are not finite: the keys are too large for float32. "
                "Check the model"
            )
        return found


def mirrored(lower: torch.Tensor) -> torch.Tensor:
    """The symmetric matrix of which blocks on and below the diagonal are given; by blocks, for one too large for caches."""
    whole, width = lower.clone(), len(lower)
    for start in range(0, width, BLOCK):
        end = min(start + BLOCK, width)
        corner = lower[start:end, start:end]
        whole[start:end, start:end] = corner.tril() + corner.tril(-1).T
        whole[:start, start:end] = lower[start:end, :start].T
    return whole


class _Enough(Exception):
    pass


@contextmanager
def _watching(model: LanguageModel, partial: Sums, stop_early: bool) -> Iterator[None]:
    """Hang a reader in front of every wanted matrix; the last one may stop the pass before its own product."""
    last = max(partial.layers)

    def reader(layer: int) -> Any:
        def read(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            partial.add(layer, inputs[0].detach().reshape(-1, inputs[0].shape[-1]))
            if layer == last and stop_early:
                raise _Enough

        return read

    handles = [model.mlp_out(layer).register_forward_pre_hook(reader(layer)) for layer in partial.layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def accumulate(
    model: LanguageModel,
    batches: Iterator[list[list[int]]],
    partial: Sums,
    budget: int,
    checkpoint_batches: int | None,
    progress: bool,
    stop_early: bool = True,
) -> None:
    """Run every batch not counted yet; leaves the sums and counts in `partial`.

    Args:
        checkpoint_batches: batches between two checkpoints; None = as `Pace` says.
        stop_early: each pass ends in the last wanted block.
    """
    pause = 0.1 if sys.stderr.isatty() else 10.0  # a log file needs few lines
    bar = tqdm(
        total=budget,
        initial=partial.tokens,
        unit="token",
        desc="covariance",
        disable=not progress,
        mininterval=pause,
    )
    trunk, no_cache = model.stack, {"use_cache": False} if model.kind == "decoder" else {}
    with bar, _watching(model, partial, stop_early), torch.no_grad(), interruption.deferred():
        for batch in islice(batches, partial.batches, None):
            tokens = torch.tensor(batch, dtype=torch.long, device=model.device)
            needed = block_bytes(model, *tokens.shape)
            for part in tokens.split(that_fit(len(tokens), needed, model.device, "statistics: rows")):
                with suppress(_Enough):
                    trunk(input_ids=part, attention_mask=torch.ones_like(part), **no_cache)
            partial.tokens += tokens.numel()
            bar.update(tokens.numel())
            partial.counted(f"the sums over {partial.tokens} tokens are kept", checkpoint_batches)


def packed_rows(
    model: LanguageModel,
    corpus: Path | str | Sequence[str],
    budget: int,
    context: int,
    longest: int | None = None,
) -> Iterator[list[int]]:
    """Passages one after another, an end-of-text token after each, cut into rows of `context` tokens.

    A tokenizer that puts a token before every text (Llama's `<s>`) adds none here: a row is running text, cut anywhere. The
    prompts of edits do start with it; their keys are those of later tokens.

    Args:
        longest: tokens that are read of a passage; `None` = all.
    """
    separator = model.tokenizer.eos_token_id
    waiting: list[int] = []
    left = budget
    for line in _lines(corpus):
        tokens = model.tokenizer(line, add_special_tokens=False)["input_ids"][:longest]
        waiting += [*tokens, separator] if separator is not None else tokens
        while len(waiting) >= context and left > 0:
            row, waiting = waiting[: min(context, left)], waiting[context:]
            left -= len(row)
            yield row
        if left <= 0:
            return
    if waiting:
        yield waiting[:left]


def batched(rows: Iterator[list[int]], size: int) -> Iterator[list[list[int]]]:
    """Groups of at most `size` rows of equal length; only the last row of a corpus is shorter."""
    group: list[list[int]] = []
    for row in rows:
        if group and (len(group) == size or len(row) != len(group[0])):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _lines(corpus: Path | str | Sequence[str]) -> Iterator[str]:
    if isinstance(corpus, (str, Path)):
        lines = text_lines(corpus, "Give a text file with one passage a line")
        yield from (line.strip() for line in lines if line.strip())
    else:
        yield from (line.strip() for line in corpus if line.strip())


def corpus_digest(corpus: Path | str | Sequence[str], longest: int | None = None) -> str:
    """sha256 over the passages as they are read, so that a file and its lines count as the same corpus; passages
    that are cut to `longest` tokens are another one."""
    digest = hashlib.sha256()
    for line in _lines(corpus):
        digest.update(line.encode() + b"\n")
    if longest is not None:
        digest.update(f"\ncut to {longest} tokens".encode())  # no passage has a line break
    return digest.hexdigest()


def write_description(path: Path, content: Mapping[str, Any]) -> None:
    """Write it unless it is there: a job that was killed between tensors and description has only the first."""
    with suppress(PalimpsestError):
        if read_json(path) == content:
            return
    write_json(path, content)


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and header of a safetensors file; a missing or damaged one is refused by name."""
    if not path.is_file():
        raise StatisticsError(f"file {path} does not exist. Collect statistics: palimpsest statistics --help")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise StatisticsError(
            f"file {path} is damaged or truncated ({error}). Delete it and collect again"
        ) from error
