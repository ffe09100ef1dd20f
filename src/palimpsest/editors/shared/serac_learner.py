"""Training of SERAC's scope classifier g and counterfactual model h (arXiv 2206.06520, section 3; spec 1.5).

Per step k edits (x_e, y_e), for each an in-scope input x' with answer y', and an out-of-scope input x_loc:

    L_h = NLL(y' | h([z; x']))                                          with the gold edit z, not the retrieved one
    L_g = mean -log g(z_i, x'_i) + mean -log(1 - g(z_i, x_loc_i))       two means of equal weight
    L   = c_edit L_h + c_scope L_g

g and h share no parameter, so `cf_steps` and `cf_right` may end the training of h early. Where an in-scope input has an
answer that the edit makes wrong (`Draw.opposite`: dialogue sentiment), L_h gains the unlikelihood -log(1 - p) of its tokens. With
`objective: mixture` nothing says what is in scope (spec E2): the loss is c_edit NLL(y' | mixture) + c_scope KL(f || mixture on
x_loc), with the retrieved edit and the soft gate; `cf_steps`, `cf_right` and `negatives` have no part in it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from palimpsest.editors.shared.counterfactual import EditReader
from palimpsest.editors.shared.learned_weights import learned, take
from palimpsest.editors.shared.mend_learner import divergence, with_answer
from palimpsest.editors.shared.routed_editor import newest_best
from palimpsest.editors.shared.routed_output import mixture, texts_of
from palimpsest.editors.shared.scope_classifier import ScopeClassifier, Text, log_not
from palimpsest.learning.examples import Draw
from palimpsest.learning.loop import TOTAL
from palimpsest.models.loading import LanguageModel
from palimpsest.models.objectives import Inputs, encode, judged, target_logits, target_places

log = logging.getLogger(__name__)
# Among the tensors: steps done, and inputs that h was right about in a row, which say when h is left as it is.
STEPS, RIGHT = "steps", "right"
SURE = 1e-6  # 1 - p is at least this where its logarithm is taken
REMEMBERED = 1 << 16  # texts for g that are kept: examples are drawn again and again


class SeracLearner:
    """What the loop trains: g and h of one base model.

    Args:
        settings: of the editor (`serac.Settings`).
        classifier, reader: on the base's device, in float32.
    """

    def __init__(self, model: LanguageModel, settings: Any, classifier: ScopeClassifier, reader: EditReader):
        self.model, self.settings, self.classifier, self.reader = model, settings, classifier, reader
        self.steps, self.right = torch.zeros((), dtype=torch.long), torch.zeros((), dtype=torch.long)
        mixed = settings.objective == "mixture"
        unused = {"cf_steps": None, "cf_right": None, "negatives": "diagonal"} if mixed else {}
        for name, default in unused.items():
            value = getattr(settings, name)
            if value != default:  # shapes give these for all variants, so they are no mistake
                log.info("serac with objective: mixture: the setting %s = %r has no effect", name, value)
        remember = lru_cache(REMEMBERED)
        self._edit_text = remember(partial(scope_text, model, settings.texts))
        self._query_text = remember(partial(query_text, model, settings.texts))
        classifier.train_last(settings.freeze)
        if self.trains_reader:
            reader.model.network.requires_grad_(True)

    @property
    def trains_reader(self) -> bool:
        """Whether there is a counterfactual model of its own; "retrieve and prompt" has none (spec Q16)."""
        return self.reader.model is not self.model

    def groups(self) -> list[dict[str, Any]]:
        """g with `lr`, h with `lr_counterfactual`."""
        scope = [p for p in self.classifier.network.parameters() if p.requires_grad]
        found: list[dict[str, Any]] = [{"params": scope, "lr": self.settings.lr}]
        if self.trains_reader:
            own = list(self.reader.model.network.parameters())
            found.append({"params": own, "lr": self.settings.lr_counterfactual})
        return found

    def tensors(self) -> dict[str, Tensor]:
        """Weights of g and h, the number of steps done, and how many inputs in a row h was right about."""
        return learned(self.classifier, self.reader) | {STEPS: self.steps, RIGHT: self.right}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take them over."""
        take(self.classifier, self.reader, tensors)
        self.steps, self.right = (tensors[name].cpu().clone() for name in (STEPS, RIGHT))

    # one step ----------------------------------------------------------------------------------------------------------

    def step(self, draws: Sequence[Draw]) -> dict[str, Tensor]:
        """Losses of one batch of edits, which are alone in the memory."""
        settings = self.settings
        limits = ((self.steps, settings.cf_steps), (self.right, settings.cf_right))
        reads = self.trains_reader and all(limit is None or int(done) < limit for done, limit in limits)
        self.steps = self.steps + 1
        if settings.objective == "mixture":
            edit, kept = self._mixture_losses(draws)
            return {TOTAL: settings.c_edit * edit + settings.c_scope * kept, "edit": edit, "locality": kept}
        inside, outside = self._scope_losses(draws)
        losses = {TOTAL: settings.c_scope * (inside + outside), "in scope": inside, "out of scope": outside}
        if reads:
            edit, right = self._edit_loss(draws)
            self.right = self.right + len(draws) if bool(right.all()) else torch.zeros_like(self.right)
            losses |= {TOTAL: losses[TOTAL] + settings.c_edit * edit, "edit": edit}
        return losses

    def together(self, groups: Sequence[Sequence[Draw]], parameters: Sequence[Tensor]) -> None:
        """One by one: a step is a whole batch of edits already."""

    def _scope_losses(self, draws: Sequence[Draw]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        edits = self.edit_texts(draws)
        queries = [self._query_text(draw.query, draw.query_answer) for draw in draws]
        others = [self._query_text(*with_answer(draw.outside, self.model.kind)) for draw in draws]
        if self.settings.negatives != "diagonal":
            found = self.classifier.log_scope(edits, [*queries, *others])
            inside, outside = found[: len(draws)], found[len(draws) :].flatten()
            if self.settings.negatives == "every":
                prompts = [draw.edit.prompt for draw in draws]  # two edits of one prompt share their scope
                pairs = [[asked != other for other in prompts] for asked in prompts]
                apart = torch.tensor(pairs, device=found.device)
                outside = torch.cat([outside, inside[apart]])
            return -inside.diagonal().mean(), -log_not(outside).mean()
        found = self.classifier.log_scope_of_rows([*edits, *edits], [*queries, *others])
        return -found[: len(draws)].mean(), -log_not(found[len(draws) :]).mean()

    def edit_texts(self, draws: Sequence[Draw]) -> list[Text]:
        """What g is given of the edits."""
        return [self._edit_text(draw.edit.prompt, draw.edit.target) for draw in draws]

    def _edit_loss(self, draws: Sequence[Draw]) -> tuple[Float[Tensor, ""], Tensor]:
        """L_h, and which answers h gets right [k]."""
        edits = [(draw.edit.prompt, draw.edit.target) for draw in draws]
        inputs = encode(self.model, [draw.query for draw in draws], [draw.query_answer for draw in draws])
        verdict = self.reader.judge(edits, inputs)
        loss = verdict.losses.mean()
        against = [
            (edit, draw.query, draw.opposite)
            for edit, draw in zip(edits, draws, strict=True)
            if draw.opposite
        ]
        if against:
            wrong = encode(self.model, [query for _, query, _ in against], [other for *_, other in against])
            loss = loss + self._unlikelihood([edit for edit, _, _ in against], wrong)
        return loss, verdict.right

    def _unlikelihood(self, edits: Sequence[tuple[str, str]], inputs: Inputs) -> Float[Tensor, ""]:
        """Mean of -log(1 - p) over the tokens of answers that the edits make wrong (spec 1.5)."""
        logits = self.reader.target_logits(edits, inputs)
        wanted = inputs.targets[target_places(inputs)]
        p = logits.softmax(dim=1).gather(1, wanted[:, None])[:, 0]
        return -(1 - p).clamp(min=SURE).log().mean()

    def _mixture_losses(self, draws: Sequence[Draw]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        edits = [(draw.edit.prompt, draw.edit.target) for draw in draws]
        asked = [(draw.query, draw.query_answer) for draw in draws]
        asked += [with_answer(draw.outside, self.model.kind) for draw in draws]
        texts = [self._query_text(*pair) for pair in asked]
        score, entry = newest_best(self.classifier.log_scope(self.edit_texts(draws), texts))
        prompts, answers = zip(*asked, strict=True)
        inputs = encode(self.model, prompts, answers)
        places = target_places(inputs)
        with torch.no_grad():
            own = target_logits(self.model, inputs).float()
        other = self.reader.target_logits([edits[number] for number in entry.tolist()], inputs).float()
        mixed = mixture(own, other, score.exp()[places[0]])
        k = len(draws)
        edit = judged(mixed, inputs, places).losses[:k].mean()
        outside = places[0] >= k
        return edit, divergence(own[outside], mixed[outside])

    # looking -----------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self, draws: Sequence[Draw]) -> dict[str, float]:
        """Losses, and how the gate behaves with the `k_train` edits of a group in the memory.

        `opened`: in-scope inputs that the gate lets through to their own edit; `kept shut`: out-of-scope inputs that it stops;
        `edit right`: answers that h gets right given the gold edit.
        """
        k, settings = self.settings.k_train, self.settings
        sums: dict[str, float] = {}
        groups = [draws[at : at + k] for at in range(0, len(draws), k)]
        for group in groups:
            for name, value in self._looked_at(group).items():
                sums[name] = sums.get(name, 0.0) + value / len(groups)
        losses = (
            ("edit", "locality") if settings.objective == "mixture" else ("edit", "in scope", "out of scope")
        )
        weights = {"edit": settings.c_edit}
        total = sum(weights.get(name, settings.c_scope) * sums[name] for name in losses)
        return {TOTAL: total, **sums}

    def _looked_at(self, draws: Sequence[Draw]) -> dict[str, float]:
        texts = [self._query_text(draw.query, draw.query_answer) for draw in draws]
        texts += [self._query_text(*with_answer(draw.outside, self.model.kind)) for draw in draws]
        score, entry = newest_best(self.classifier.log_scope(self.edit_texts(draws), texts))
        opened, k = score.exp() > self.settings.threshold, len(draws)
        found_own = entry[:k] == torch.arange(k, device=entry.device)
        edit, right = self._edit_loss(draws)
        values = {
            "opened": float((opened[:k] & found_own).float().mean()),
            "kept shut": float((~opened[k:]).float().mean()),
            "edit right": float(right.float().mean()),
        }
        if self.settings.objective == "mixture":
            mixed, kept = self._mixture_losses(draws)
            return {"edit": float(mixed), "locality": float(kept), **values}
        inside, outside = self._scope_losses(draws)
        return {"edit": float(edit), "in scope": float(inside), "out of scope": float(outside), **values}


def releases(model: LanguageModel, texts: str) -> bool:
    """Whether g is given the texts of the released code, which differ for decoders only (E3)."""
    return texts == "released" and model.kind == "decoder"


def scope_text(model: LanguageModel, texts: str, prompt: str, target: str) -> Text:
    """(x_e, y_e) for g; as released, only what is left of "x_e y_e" when its last word is cut off (E3)."""
    if releases(model, texts):
        return (f"{prompt} {target}".rpartition(" ")[0],)
    return as_read(model, prompt), as_read(model, target)


def query_text(model: LanguageModel, texts: str, prompt: str, answer: str) -> str:
    """What g is given of an input: the prompt; as released, of a decoder, its answer too (E3)."""
    if releases(model, texts):
        return f"{prompt} {answer}"
    return as_read(model, prompt)


def as_read(model: LanguageModel, text: str) -> str:
    """A text as it comes back from the base's tokens, which is how g meets inputs: an uncased tokenizer loses the case."""
    if model.kind == "decoder":  # bytes, or pieces that lose nothing
        return text.strip()
    return texts_of(model, [model.tokenizer(text)["input_ids"]])[0]
