"""A MEND whose networks are as they start, and settings that train one in a second."""

from __future__ import annotations

from tiny import CITIES, LABELS, PEOPLE

from palimpsest.editors import editor_class
from palimpsest.editors.shared.mend_edit import edit_inputs
from palimpsest.edits import Edit
from palimpsest.learning.artefact import TrainedEditor, plain_settings

PATHS = ["decoder.block.1.layer.2.DenseReluDense.wo"]
QUICK = {
    "layers": [2, 3], "rank": 8, "alpha0": 3e-3, "lr": 1e-3, "lr_lr": 1e-2, "c_edit": 1.0, "steps": 20, "k_train": 2,
    "accumulate": 1, "validate_every": 10, "validate_on": 4, "log_every": 5, "checkpoint_every": 10,
}  # fmt: skip


def settings_for(model, **changes):
    return {**QUICK, **({"paths": PATHS} if model.kind == "encoder_decoder" else {}), **changes}


def untrained(model, **changes):
    """An artefact whose networks are as they start; with norm: false they hand the gradient on."""
    learner = editor_class("mend").learner(model, settings_for(model, norm=False, **changes), 0)
    return TrainedEditor(
        editor="mend", model=model.fingerprint, model_name=model.name, data="", seed=0, steps=0, best_step=0,
        settings=plain_settings(learner.settings), validation={}, tensors=learner.tensors(),
    )  # fmt: skip


def edits(model, n=3):
    answers = LABELS if model.kind == "encoder" else CITIES
    return [
        Edit(f"Where does {person} live{', I say' * i}?", answers[(i + 1) % 4], identifier=f"e{i}")
        for i, person in enumerate(PEOPLE[:n])
    ]


def weights_of(model):
    return {name: tensor.clone() for name, tensor in model.network.state_dict().items()}


def editor_inputs(model, batch):
    return edit_inputs(model, [edit.prompt for edit in batch], [edit.target for edit in batch], False)
