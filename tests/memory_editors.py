"""Untrained SERACs over tiny models, with a gate that a test can open: for the tests of memory-based editors."""

from __future__ import annotations

import dataclasses

import torch
from tiny import LABELS, some_edits, tiny_model

from palimpsest.editors import make_editor
from palimpsest.editors.serac import Serac
from palimpsest.edits import Edit
from palimpsest.learning.artefact import TrainedEditor, plain_settings
from palimpsest.learning.examples import Draw, Outside
from palimpsest.models.objectives import encode

SMALL = {"scope_width": 16, "scope_heads": 2, "cf_width": 16, "cf_heads": 2}
PROMPTS = [
    "The mother of Ada Tolvek was born in",
    "Mira Sorn lives in the city of",
    "Mira Karel",
    "I say so in Velden",
]


def edits_for(model, n: int = 4) -> list[Edit]:
    """Edits that the kind of model can be asked for."""
    found = some_edits(n)
    if model.kind != "encoder":
        return found
    return [dataclasses.replace(edit, target=LABELS[1 + i % 3]) for i, edit in enumerate(found)]


def answers_for(model, prompts) -> list[str]:
    """One answer for each prompt."""
    words = LABELS if model.kind == "encoder" else ["Velden", "Port Velden Bay", "so", "Marrin"]
    return [words[i % 4] for i in range(len(prompts))]


def trained(model, settings: dict | None = None, seed: int = 0) -> TrainedEditor:
    """What a training would leave, with random weights that are larger than usual, so that outputs differ."""
    learner = Serac.learner(model, SMALL | (settings or {}), seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in learner.reader.model.network.named_parameters():
            if parameter.ndim == 2 and learner.trains_reader and "classifier" not in name:
                parameter.copy_(torch.randn(parameter.shape) * 0.3)
    tensors = {name: tensor.detach().clone() for name, tensor in learner.tensors().items()}
    about = plain_settings(learner.settings)
    return TrainedEditor("serac", model.fingerprint, model.name, "data", about, seed, 1, 1, {}, [], tensors)


def serac(family="gpt2", settings: dict | None = None, exact: bool = True, model=None, **shape):
    """A SERAC; with `exact` its gate opens for the very prompts of stored edits, and for nothing else."""
    model = model or tiny_model(family, **shape)
    editor = make_editor("serac", model, settings, trained=trained(model, settings))
    if exact:
        open_exactly(editor)
    return editor


def open_exactly(editor, inside: float = -0.1, outside: float = -5.0) -> None:
    """log g: `inside` for the prompt of the edit itself, `outside` for everything else."""

    def log_scope(queries):
        rows = [
            [inside if query == prompt else outside for prompt, _ in editor.scope.edits] for query in queries
        ]
        return torch.tensor(rows)

    editor.scope.log_scope = log_scope


def logits(model, prompts, answers):
    """Logits at every answer token, by the whole model in one padded batch."""
    from palimpsest.models.objectives import target_logits

    with torch.no_grad():
        return target_logits(model, encode(model, prompts, answers))


def draws_for(model, n: int = 3) -> list[Draw]:
    """Draws of a learning step."""
    inside = edits_for(model, n)
    return [
        Draw(edit, edit.rephrasings[0], edit.target, Outside(edit.locality[0].prompt, inside[0].target))
        for edit in inside
    ]
