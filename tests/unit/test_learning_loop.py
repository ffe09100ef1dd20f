"""The training loop and the artefact: the best state, early stopping, going on, and what is refused."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import some_examples, tiny_model

from palimpsest.editors.mend import Settings as MendSettings
from palimpsest.errors import DataError, SettingsError
from palimpsest.learning.artefact import TrainedEditor, TrainedError, plain_settings
from palimpsest.learning.examples import Sampler
from palimpsest.learning.loop import DivergedTraining, train
from palimpsest.learning.settings import TrainingSettings

EXAMPLES = some_examples()
SETTINGS = TrainingSettings(
    k_train=2, steps=40, accumulate=4, validate_every=8, validate_on=2, checkpoint_every=12, log_every=8
)


class Toy:
    """Two numbers that are drawn to the mean length of the targets, with noise from the global generator."""

    def __init__(self, settings=SETTINGS, curve=None, lr=0.1):
        self.settings, self.curve, self.lr = settings, curve, lr
        self.weight = torch.nn.Parameter(torch.zeros(2))
        self.seen = torch.zeros((), dtype=torch.float64)
        self.steps = self.validations = 0
        self.broken: set[int] = set()
        self.crash_at = None

    def groups(self):
        return [{"params": [self.weight], "lr": self.lr}]

    def step(self, draws):
        if self.steps == self.crash_at:
            raise KeyboardInterrupt
        wanted = sum(len(draw.edit.target) for draw in draws) / len(draws) + torch.randn(())
        loss = ((self.weight - wanted) ** 2).mean()
        self.seen += len(draws)
        self.steps += 1
        return {"total": loss * torch.nan if self.steps - 1 in self.broken else loss, "wanted": wanted}

    def together(self, groups, parameters):
        return None

    def validate(self, draws):
        self.validations += 1
        value = (
            self.curve[self.validations - 1] if self.curve else float((self.weight - 6).abs().sum().detach())
        )
        return {"total": value, "weight": float(self.weight[0].detach())}

    def tensors(self):
        return {"weight": self.weight, "seen": self.seen}

    def load(self, tensors):
        with torch.no_grad():
            self.weight.copy_(tensors["weight"])
            self.seen.copy_(tensors["seen"])


def run(toy, folder=None, key="key", seed=5):
    return train(toy, Sampler(EXAMPLES, seed), Sampler(EXAMPLES, 1).draw(2), seed, folder, key)


def rows(folder):
    with (folder / "training.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_update_is_adam_on_the_mean_gradient():
    """One update by hand: the mean of four gradients, clipped."""
    toy, other = Toy(replace(SETTINGS, steps=4, clip=0.5)), Toy()
    run(toy)
    sampler = Sampler(EXAMPLES, 5)
    total = torch.zeros(())
    for step in range(4):
        torch.manual_seed(5 * 1_000_003 + step)
        total = total + other.step(sampler.draw(2))["total"] / 4
    total.backward()
    torch.nn.utils.clip_grad_norm_([other.weight], 0.5)
    torch.optim.Adam(other.groups()).step()
    assert torch.allclose(toy.weight, other.weight) and other.weight.grad.norm() < 0.51


def test_the_last_state_can_be_kept_as_released():
    """Spec E8: every validation overwrites what is called the best, so that nothing ever stops."""
    settings = replace(SETTINGS, steps=64, patience=16, keep="last")
    toy = Toy(settings, curve=[5, 1, 2, 3, 4, 5, 6, 7])
    progress = train(toy, Sampler(EXAMPLES, 0), [], 0)
    assert (progress.best_step, progress.step, progress.best["total"]) == (64, 64, 7)
    assert toy.seen == 128 and toy.validations == 8  # nothing was loaded back


def test_early_stopping_stops_and_gives_the_best_state():
    """E8: a toolkit's never stops, overwrites its checkpoint and calls the last state the best."""
    settings = replace(SETTINGS, steps=400, patience=20)
    toy = Toy(settings, curve=[3.0, 2.0, 2.5, 2.0, 2.2, 2.1, 1.0])
    progress = run(toy)
    assert (progress.best_step, progress.step) == (16, 36)  # patience is in steps
    assert progress.best["total"] == 2.0
    shorter = Toy(replace(settings, steps=16), curve=[3.0, 2.0])
    run(shorter)
    assert torch.equal(toy.weight, shorter.weight) and toy.seen == shorter.seen == 32


def test_the_curve_has_train_and_validation_rows(tmp_path):
    progress = run(Toy(), tmp_path)
    found = rows(tmp_path)
    assert list(found[0]) == ["step", "split", "loss", "value"]
    assert {row["loss"] for row in found if row["split"] == "valid"} == {"total", "weight"}
    assert {row["loss"] for row in found if row["split"] == "train"} == {"total", "wanted", "dropped steps"}
    assert sorted({int(row["step"]) for row in found}) == [8, 16, 24, 32, 40] and progress.step == 40


def test_the_curve_is_written_with_each_checkpoint(tmp_path, monkeypatch):
    """A training that is killed outright has run nothing at its end, and still leaves the curve up to its checkpoint."""
    left, toy = [], Toy()
    plain = toy.step

    def step(draws):
        if toy.steps == 13:
            left.extend(rows(tmp_path))
        return plain(draws)

    monkeypatch.setattr(toy, "step", step)
    run(toy, tmp_path)
    assert {row["step"] for row in left} == {"8"} and (tmp_path / "training.csv").is_file()


@pytest.mark.parametrize("crash_at", [13, 29, 38])
def test_a_broken_training_ends_with_the_same_bytes(tmp_path, crash_at):
    whole = Toy()
    run(whole, tmp_path / "whole")
    broken = Toy()
    broken.crash_at = crash_at
    with pytest.raises(KeyboardInterrupt):
        run(broken, tmp_path / "broken")
    assert (tmp_path / "broken" / "training.csv").exists()
    again = Toy()
    progress = run(again, tmp_path / "broken")
    assert again.steps == 40 - crash_at // 12 * 12  # went on from the last checkpoint
    assert torch.equal(again.weight, whole.weight) and torch.equal(again.seen, whole.seen)
    assert progress.step == 40
    files = [(tmp_path / name / "training.csv").read_bytes() for name in ("whole", "broken")]
    assert files[0] == files[1]


def test_checkpoints_of_another_training_or_damaged_ones_are_left_aside(tmp_path, caplog):
    run(Toy(replace(SETTINGS, steps=13, accumulate=1)), tmp_path, key="one")
    older = {"key": "one", "progress": '{"another_field": 1}'}
    for key, damage in (("another", None), ("one", "bytes"), ("one", "fields")):
        if damage == "bytes":
            (tmp_path / "checkpoint.safetensors").write_bytes(b"no tensors")
        elif damage == "fields":
            save_file({"now.weight": torch.ones(2)}, tmp_path / "checkpoint.safetensors", metadata=older)
        toy = Toy(replace(SETTINGS, steps=4, accumulate=1))
        run(toy, tmp_path, key=key)
        assert toy.steps == 4
    assert "is of another training" in caplog.text and caplog.text.count("is damaged, or of another") == 2


@pytest.mark.parametrize("broken", [{1}, {0, 2}])
def test_a_step_without_a_finite_gradient_is_dropped_alone(tmp_path, broken):
    """Spec 1.5: the other steps of the update count, and the mean is over them."""
    toy, other = Toy(replace(SETTINGS, steps=4)), Toy()
    toy.broken = broken
    progress = run(toy, tmp_path)
    assert progress.dropped == len(broken)
    assert [row["value"] for row in rows(tmp_path) if row["loss"] == "dropped steps"] == [str(len(broken))]
    sampler, total = Sampler(EXAMPLES, 5), torch.zeros(())
    for step in range(4):
        torch.manual_seed(5 * 1_000_003 + step)
        loss = other.step(sampler.draw(2))["total"]
        total = total if step in broken else total + loss / (4 - len(broken))
    total.backward()
    torch.optim.Adam(other.groups()).step()
    torch.testing.assert_close(toy.weight, other.weight)


def test_an_update_of_nothing_but_dropped_steps_moves_nothing():
    toy = Toy(replace(SETTINGS, steps=4, accumulate=2))
    toy.broken = {0, 1, 2, 3}
    assert run(toy).dropped == 4 and torch.equal(toy.weight, torch.zeros(2))


def test_a_diverging_training_says_so_and_keeps_its_curve(tmp_path):
    toy = Toy(replace(SETTINGS, accumulate=1, steps=100))
    toy.broken = set(range(14, 100))
    with pytest.raises(DivergedTraining, match="of .* steps had gradients that are not finite. Lower the"):
        run(toy, tmp_path)
    assert toy.steps < 30 and rows(tmp_path) and (tmp_path / "checkpoint.safetensors").exists()
    # Where it is the output of a failed job, Snakemake removes training.csv.
    assert (tmp_path / "diverged.csv").read_bytes() == (tmp_path / "training.csv").read_bytes()
    with safe_open(str(tmp_path / "diverged.safetensors"), framework="pt") as file:
        assert list(file.keys()) and file.metadata()["step"] in {row["step"] for row in rows(tmp_path)}
    run(Toy(replace(SETTINGS, accumulate=1, steps=100)), tmp_path)
    assert not list(tmp_path.glob("diverged.*"))
    with pytest.raises(DivergedTraining, match="validation loss at step 8 is nan.*Lower"):
        run(Toy(curve=[float("nan")]))


@pytest.mark.parametrize(
    "settings",
    [
        {"k_train": 0},
        {"steps": 1.5},
        {"patience": 0},
        {"keep": "first"},
        {"patience": 4_999},
        {"clip": 0},
        {"hard_share": 2},
        {"no_op_share": -1},
    ],
)
def test_impossible_settings_are_refused_by_name(settings):
    with pytest.raises(SettingsError, match=next(iter(settings))):
        TrainingSettings(**settings)


def trained(model, **changes):
    content = {
        "editor": "mend", "model": model.fingerprint, "model_name": model.name, "data": "d", "seed": 0, "steps": 4,
        "settings": plain_settings(MendSettings(layers=(1,))), "best_step": 2, "validation": {"total": 0.5},
        "learned": ["fact-0"], "tensors": {"a": torch.arange(3.0), "b": torch.ones(1, dtype=torch.float64)},
    }  # fmt: skip
    return TrainedEditor(**{**content, **changes})


def test_an_artefact_comes_back_as_it_was(tmp_path):
    saved = trained(tiny_model())
    saved.save(tmp_path)
    read = TrainedEditor.load(tmp_path)
    assert {name: getattr(read, name) for name in vars(read) if name != "tensors"} == {
        name: getattr(saved, name) for name in vars(saved) if name != "tensors"
    }
    assert all(torch.equal(read.tensors[name], saved.tensors[name]) for name in saved.tensors)
    assert read.fingerprint == saved.fingerprint != trained(tiny_model(), tensors={}).fingerprint
    json.dumps(read.describe())
    assert "learned" not in read.describe()


def test_a_folder_that_is_not_whole_is_refused(tmp_path):
    with pytest.raises(TrainedError, match="holds no trained editor.*palimpsest train-editor"):
        TrainedEditor.load(tmp_path)
    saved = trained(tiny_model())
    saved.save(tmp_path)
    tensors = load_file(tmp_path / "weights.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, tmp_path / "weights.safetensors")
    with pytest.raises(TrainedError, match="weights.safetensors is missing or not the one"):
        TrainedEditor.load(tmp_path)
    saved.save(tmp_path)
    content = json.loads((tmp_path / "trained.json").read_text())
    for name, value, words in (("format", 9, "'format': 9, but this is 1"), ("seed", None, "lacks .*'seed'")):
        changed = {**content, name: value} if value else {k: v for k, v in content.items() if k != name}
        (tmp_path / "trained.json").write_text(json.dumps(changed))
        with pytest.raises(TrainedError, match=words):
            TrainedEditor.load(tmp_path)


def test_an_artefact_serves_only_what_it_was_trained_for():
    model = tiny_model()
    made, own = trained(model), MendSettings(layers=(1,))
    made.check(model, "mend", own)
    made.check(model, "mend", replace(own, reduction="mean", last_chunk_only=128))  # how to edit
    with pytest.raises(TrainedError, match="for the editor 'mend', not 'serac'"):
        made.check(model, "serac", own)
    with pytest.raises(TrainedError, match=f"{made.model}.*fingerprint .*Train it for this model"):
        made.check(tiny_model(seed=1), "mend", own)
    for changes in ({"layers": (1, 2)}, {"rank": 8}, {"c_edit": 1.0}):
        with pytest.raises(TrainedError, match=f"trained with {next(iter(changes))} = .*is asked for"):
            made.check(model, "mend", replace(own, **changes))


def test_facts_that_were_learned_from_cannot_be_judged():
    from palimpsest.edits import Edit

    made = trained(tiny_model())
    made.refuse_learned([Edit("a", "b", identifier="fact-9"), Edit("a", "b")])
    with pytest.raises(DataError, match="1 of 2 edits were used to train mend, the first: fact-0.*reserve"):
        made.refuse_learned([Edit("a", "b", identifier="fact-9"), Edit("a", "b", identifier="fact-0")])
