"""Target vectors z: what a block's output at the subject's last token should be for the model to say the target.

MEMIT (Meng et al. 2023, Section 4.1 and Eq. 16), used by COMEBA-HK unchanged; ROME (Meng et al. 2022, Eq. 4) differs in
where the vector is added. One loss, for each edit of a batch (spec 1.5):

    L(delta) = mean over contexts and target tokens of  -log p_delta(y_t | .)
             + kappa * KL(p_delta || p_0)  at the subject's last token of "{subject} is a"
             + omega * |delta| / |h_0|^2

minimised by Adam from delta = 0, with |delta| <= clamp * |h_0| after every step, until L < stop_loss. z = h_0 + delta.

The search is exact and does no work twice: blocks up to the edited one run once; of the upper blocks only the tokens
from the subject on are recomputed (earlier tokens are kept as keys and values); only the logits that are read are
computed; all edits of a batch run together, their short rows packed into lanes (`lanes.py`), and an edit that has converged
is frozen and leaves.
`target_vectors_plain.py` is the same search written the plain way; a test holds the two together.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from palimpsest.editors.shared.adam import BETAS, EPSILON
from palimpsest.editors.shared.lanes import Lanes, LaneSource, pack, run_once
from palimpsest.editors.shared.target_sequences import TargetSequences, build_sequences
from palimpsest.edits import Edit
from palimpsest.models.loading import LanguageModel
from palimpsest.models.memory import that_fit
from palimpsest.models.partial import causal_mask, embed, read_out, row_positions, run_blocks

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Search:
    """How a target vector is searched. Names and defaults are MEMIT's for GPT2-XL.

    Attributes:
        layer: block (site "block") or MLP (site "mlp") whose output receives delta.
        steps: S forward passes, at most S - 1 steps of Adam.
        learning_rate: of Adam, absolute.
        learning_rate_ratio: of Adam, as a multiple of |h_0|; replaces learning_rate when given.
        clamp: largest |delta| / |h_0|.
        loss_layer: block whose output is read by the final norm and head for the rewriting loss; None is the last.
        early_stop: False runs all steps for every edit (for timing).
        edits_at_once: how many edits share one pass at most; fewer where memory is short, which is logged.
    """

    layer: int
    steps: int = 20
    learning_rate: float = 0.5
    learning_rate_ratio: float | None = None
    clamp: float = 0.75
    kl_weight: float = 0.0625
    decay: float = 0.5
    stop_loss: float = 0.05
    loss_layer: int | None = None
    site: str = "block"
    early_stop: bool = True
    edits_at_once: int = 64


@dataclass
class TargetVectors:
    """Result for b edits.

    Attributes:
        z: target vectors [b, d], in float32 or wider.
        initial: h_0, the site's output at the subject in the bare prompt, before delta [b, d].
        losses: for each edit the loss at each pass it took part in.
        finite: whether the search of an edit stayed finite [b].
    """

    z: Float[Tensor, "b d"]
    initial: Float[Tensor, "b d"]
    losses: list[list[float]]
    finite: Bool[Tensor, " b"]

    @property
    def delta(self) -> Float[Tensor, "b d"]:
        """z - h_0 [b, d]."""
        return self.z - self.initial

    def rows(self, places: Sequence[int]) -> TargetVectors:
        """Some of the edits, in the given order."""
        chosen = list(places)
        losses = [self.losses[place] for place in chosen]
        return TargetVectors(self.z[chosen], self.initial[chosen], losses, self.finite[chosen])


def search_target_vectors(
    model: LanguageModel, edits: Sequence[Edit], contexts: Sequence[str], search: Search
) -> TargetVectors:
    """Target vectors of a batch of edits on the model as it is now, hooks included.

    Hooks at or below `search.layer` act as in any pass; none may sit above it.

    Args:
        contexts: texts put before the prompt; the first must be "".
    """
    parts = []
    for chunk, part in _chunks(model, edits, contexts, search):
        # What is not finite spreads within a lane: only an edit that diverges alone too has diverged.
        for i in [] if len(chunk) == 1 else torch.nonzero(~part.finite)[:, 0].tolist():
            alone = _search(model, build_sequences(model, [chunk[i]], contexts), search)
            part.z[i], part.finite[i], part.losses[i] = alone.z[0], alone.finite[0], alone.losses[0]
        parts.append(part)
    return TargetVectors(
        z=torch.cat([part.z for part in parts]),
        initial=torch.cat([part.initial for part in parts]),
        losses=[losses for part in parts for losses in part.losses],
        finite=torch.cat([part.finite for part in parts]),
    )


def _chunks(
    model: LanguageModel, edits: Sequence[Edit], contexts: Sequence[str], search: Search
) -> Iterator[tuple[Sequence[Edit], TargetVectors]]:
    """Edits that share their passes, with their results. A device that runs out of memory gets half as many at a time."""
    start, size = 0, min(search.edits_at_once, len(edits))
    while start < len(edits):
        chunk = edits[start : start + size]
        sequences = build_sequences(model, chunk, contexts)
        fitting = that_fit(len(chunk), pass_bytes(model, sequences, search), model.device, "target vectors")
        if fitting < len(chunk):
            size = fitting
            continue
        try:
            part = _search(model, sequences, search)
        except torch.OutOfMemoryError:
            if len(chunk) == 1:
                raise
            size = -(-len(chunk) // 2)
            log.warning("target vectors: out of memory, now %d share a pass", size)
            continue
        yield chunk, part
        start += len(chunk)


def pass_bytes(model: LanguageModel, sequences: TargetSequences, search: Search) -> int:
    """About how many bytes a search of these sequences takes at its largest: one forward and backward pass.

    Of each token from the subject on and each upper block: what the backward pass reads (about 8 d + 2 d_k numbers);
    of earlier tokens: keys and values, unpacked and packed; of each place that is read four rows of the vocabulary.
    """
    tail = int((sequences.tokens.lengths - sequences.subject).sum())
    before = int(sequences.subject.max()) * len(sequences.subject)
    upper, itemsize = model.n_blocks - 1 - search.layer, torch.finfo(model.dtype).bits // 8
    places = len(sequences.read_row) + len(sequences.kl)
    graph = tail * upper * (8 * model.width + 2 * model.inner_width)
    kept = 2 * before * upper * 2 * model.width + sequences.tokens.input_ids.numel() * model.width
    return itemsize * (graph + kept) + 4 * places * model.vocabulary * max(itemsize, 4)


@dataclass
class _Adam:
    """Adam on the rows of delta. Written out because a converged row must be frozen and leave, which a library
    optimiser's momentum would not allow; a test compares it with torch.optim.Adam. Not `adam.Adam`, whose arithmetic rounds
    elsewhere (`lerp_`): published target vectors would move in their last digits."""

    mean: Tensor
    square: Tensor
    count: int = 0

    def step(self, delta: Tensor, gradient: Tensor, rate: Tensor) -> Tensor:
        self.count += 1
        self.mean = BETAS[0] * self.mean + (1 - BETAS[0]) * gradient
        self.square = BETAS[1] * self.square + (1 - BETAS[1]) * gradient**2
        mean = self.mean / (1 - BETAS[0] ** self.count)
        square = self.square / (1 - BETAS[1] ** self.count)
        return delta - rate * mean / (square.sqrt() + EPSILON)

    def only(self, rows: Tensor) -> None:
        self.mean, self.square = self.mean[rows], self.square[rows]


@dataclass
class _Progress:
    """What is known of all edits of the batch while some are still running."""

    delta: Tensor
    losses: list[list[float]]
    finite: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.finite = torch.ones(len(self.delta), dtype=torch.bool, device=self.delta.device)


def _search(model: LanguageModel, sequences: TargetSequences, search: Search) -> TargetVectors:
    source = run_once(model, sequences, search.layer)
    initial = site_output(model, sequences, search, source)
    norm = initial.norm(dim=1)
    ratio = search.learning_rate_ratio
    rate = (ratio * norm if ratio else torch.full_like(norm, search.learning_rate))[:, None]
    progress = _Progress(torch.zeros_like(initial), [[] for _ in range(sequences.n_edits)])
    running = torch.arange(sequences.n_edits, device=initial.device)
    lanes = pack(model, source, running)
    adam = _Adam(torch.zeros_like(initial), torch.zeros_like(initial))
    before: Tensor | None = None
    numbers = running.tolist()
    for step in range(search.steps):
        delta = progress.delta[running].requires_grad_(True)
        loss, log_p = edit_losses(model, lanes, delta, norm[running], search, before)
        before = log_p.detach() if before is None else before
        finite = torch.isfinite(loss)
        progress.finite[running] &= finite
        for number, value in zip(numbers, loss.tolist(), strict=True):
            progress.losses[number].append(value)
        going = finite & (loss >= search.stop_loss) if search.early_stop else finite
        left = going.tolist()  # with the losses all that a step waits for, where the model lies on a GPU
        if step == search.steps - 1 or not any(left):
            break
        gradient = torch.autograd.grad(torch.where(finite, loss, 0.0).sum(), delta)[0]
        moved = adam.step(delta.detach(), torch.nan_to_num(gradient), rate[running])
        moved = _project(moved, search.clamp * norm[running])
        progress.delta[running] = torch.where(going[:, None], moved, delta.detach())
        if not all(left):
            stay = torch.nonzero(going)[:, 0]
            before, running = before[stay], running[stay]
            numbers = running.tolist()
            lanes = pack(model, source, running)
            adam.only(stay)
    return TargetVectors(initial + progress.delta, initial, progress.losses, progress.finite)


@torch.no_grad()
def site_output(
    model: LanguageModel, sequences: TargetSequences, search: Search, source: LaneSource
) -> Float[Tensor, "b d"]:
    """h_0 [b, d]: what the site gives at the subject in the bare prompt. For site "mlp" that is the MLP's own output."""
    rows, columns = sequences.bare, sequences.subject[sequences.bare]
    wide = torch.promote_types(model.dtype, torch.float32)
    if search.site == "block":
        return source.at(rows, columns).to(wide)
    outputs: dict[str, Tensor] = {}
    handle = model.mlp_out(search.layer).register_forward_hook(lambda _, __, out: outputs.update(out=out))
    try:
        tokens = sequences.tokens
        ids = type(tokens)(tokens.input_ids[rows], tokens.attention_mask[rows])
        mask = causal_mask(ids.attention_mask, model.dtype)
        with model.padding_of(ids.attention_mask):
            run_blocks(model, embed(model, ids), 0, search.layer, mask, row_positions(ids))
    finally:
        handle.remove()
    return outputs["out"][torch.arange(len(rows)), columns].to(wide)


def edit_losses(
    model: LanguageModel,
    lanes: Lanes,
    delta: Float[Tensor, "a d"],
    norm: Float[Tensor, " a"],
    search: Search,
    before: Float[Tensor, "a vocabulary"] | None,
) -> tuple[Float[Tensor, " a"], Float[Tensor, "a vocabulary"]]:
    """Loss of each running edit, and the log probabilities at the KL rows.

    Args:
        norm: |h_0|; before: log p_0 at the KL rows, None on the first pass (then delta is 0).
    """
    lane, slot, edit = lanes.at
    hidden = lanes.tail + torch.zeros_like(lanes.tail).index_put(
        (lane, slot), delta[edit].to(lanes.tail.dtype)
    )
    past = lanes.prefix if lanes.prefix.kept else None
    last = model.n_blocks - 1
    loss_layer = last if search.loss_layer is None else search.loss_layer
    read = final = hidden
    if lanes.first <= loss_layer:
        read = final = run_blocks(model, hidden, lanes.first, loss_layer, lanes.mask, lanes.positions, past)
    if loss_layer < last:
        final = run_blocks(
            model, read, max(loss_layer + 1, lanes.first), last, lanes.mask, lanes.positions, past
        )

    # Apart, so that the gradient of one is not spread over the vocabulary's width of the other.
    read_lane, read_slot, read_edit = lanes.read
    logits = read_out(model, read[read_lane, read_slot]).to(delta.dtype)
    lost = torch.nn.functional.cross_entropy(logits, lanes.read_token, reduction="none")
    rewriting = torch.zeros_like(norm).index_add(0, read_edit, lost * lanes.read_weight.to(lost))
    log_p = read_out(model, final[lanes.kl]).to(delta.dtype).log_softmax(dim=1)
    log_p_0 = log_p.detach() if before is None else before
    divergence = (log_p.exp() * (log_p - log_p_0)).sum(
        dim=1
    )  # KL(current || initial), as the released code has it
    return rewriting + search.kl_weight * divergence + search.decay * delta.norm(dim=1) / norm**2, log_p


def _project(delta: Float[Tensor, "a d"], largest: Float[Tensor, " a"]) -> Float[Tensor, "a d"]:
    length = delta.norm(dim=1)
    return delta * (largest / length.clamp(min=1e-30)).clamp(max=1.0)[:, None]
