"""MEND's training: its losses, what it leaves, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import some_examples, tiny_model
from untrained_mend import editor_inputs, settings_for, untrained, weights_of

from palimpsest.editors import editor_class, make_editor
from palimpsest.editors.shared import mend_learner
from palimpsest.editors.shared.mend_learner import with_answer
from palimpsest.edits import Edit
from palimpsest.errors import DataError, SettingsError
from palimpsest.learning.artefact import TrainedEditor, TrainedError, plain_settings
from palimpsest.learning.examples import Outside, Sampler
from palimpsest.learning.loop import TrainingProgress
from palimpsest.learning.train import train_editor
from palimpsest.models.objectives import judge, judged, row_losses

FAMILIES = ("gpt2", "gptj", "t5", "bert")


@pytest.mark.parametrize("family", FAMILIES)
def test_training_lowers_the_loss_and_leaves_the_model_alone(family, tmp_path):
    model = tiny_model(family)
    before, examples = weights_of(model), some_examples(family)
    trained = train_editor("mend", model, examples, settings_for(model), tmp_path, seed=1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights_of(model).items())
    lines = [line.split(",") for line in (tmp_path / "training.csv").read_text().splitlines()[1:]]
    losses = [float(value) for step, split, name, value in lines if (split, name) == ("train", "total")]
    assert losses[-1] < losses[0]
    assert trained.learned == [f"fact-{i}" for i in range(6)] and trained.best_step > 0
    assert {"edit success", "rephrase success", "drawdown", "right before"} <= set(trained.validation)
    for name in ("2.mlp_out", "3.mlp_in"):
        assert trained.validation[f"alpha {name}"] and -1 <= trained.validation[f"cosine {name}"] <= 1
    assert trained.fingerprint == TrainedEditor.load(tmp_path).fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "trained.json",
        "training.csv",
        "weights.safetensors",
    ]


def test_training_is_repeated_only_when_something_changed(tmp_path, monkeypatch, caplog):
    model, examples = tiny_model("gpt2"), some_examples()
    first = train_editor("mend", model, examples, settings_for(model, steps=6), tmp_path / "a")
    again = train_editor("mend", model, examples, settings_for(model, steps=6), tmp_path / "b")
    files = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("a", "b")]
    assert files[0] == files[1] and first.fingerprint == again.fingerprint
    other = train_editor("mend", model, examples, settings_for(model, steps=6), seed=1)
    assert other.fingerprint != first.fingerprint
    (tmp_path / "b" / "trained.json").write_text("{")  # a damaged one is no reason to give up
    train_editor("mend", model, examples, settings_for(model, steps=6), tmp_path / "b")
    assert TrainedEditor.load(tmp_path / "b").fingerprint == first.fingerprint
    monkeypatch.setattr("palimpsest.learning.train.train", lambda *_: pytest.fail("trained again"))
    train_editor("mend", model, examples, settings_for(model, steps=6), tmp_path / "a")
    with pytest.raises(pytest.fail.Exception):
        train_editor("mend", model, examples, settings_for(model, steps=7), tmp_path / "a")
    assert "holds a training with other settings; it will be replaced" in caplog.text


def test_what_was_learned_is_named_as_edits_are(monkeypatch):
    """The two sentiments of an entity are one fact: an edit of it must be refused."""
    both = [
        replace(example, identifier=example.identifier + mark, opposed=(("what?", "bad"),))
        for example in some_examples()
        for mark in "+-"
    ]
    monkeypatch.setattr("palimpsest.learning.train.train", lambda *_: TrainingProgress(best={"total": 1.0}))
    trained = train_editor("mend", tiny_model("gpt2"), both, settings_for(tiny_model("gpt2"), rephrase=False))
    assert trained.learned == [f"fact-{i}" for i in range(6)]
    with pytest.raises(DataError, match="1 of 1 edits were used to train mend"):
        trained.refuse_learned([Edit("a", "b", identifier="fact-0")])


def test_step_sizes_alone():
    """The control: with lr 0 the networks stay where they start."""
    model = tiny_model("gpt2")
    start = editor_class("mend").learner(model, settings_for(model, lr=0, steps=10), 0).tensors()
    trained = train_editor("mend", model, some_examples(), settings_for(model, lr=0, steps=10))
    moved = {name for name, tensor in trained.tensors.items() if not torch.equal(tensor, start[name])}
    assert "alpha" in moved and all("norm_" in name for name in moved - {"alpha"})


def test_the_losses_of_a_step():
    """L = c_edit L_e + L_loc; without a change of the weights L_loc is 0 and L_e is that of the untouched model."""
    model = tiny_model("gpt2")
    learner = editor_class("mend").learner(model, settings_for(model, alpha0=0.0, c_edit=0.3), 0)
    draws = Sampler(some_examples(), 0).draw(2)
    losses = learner.step(draws)
    queries = [Edit(draw.query, draw.query_answer) for draw in draws]
    expected = row_losses(model, editor_inputs(model, queries)).mean()
    assert float(losses["locality"].detach()) == pytest.approx(0.0, abs=1e-6)
    assert float(losses["edit"].detach()) == pytest.approx(float(expected), rel=1e-4)
    assert float(losses["total"].detach()) == pytest.approx(0.3 * float(expected), rel=1e-4)
    losses["total"].backward()
    assert learner.network.alpha.grad.abs().min() > 0


@pytest.mark.parametrize("family", ["gpt2", "t5", "bert"])
def test_losses_and_successes_are_those_of_the_model_once_edited(family):
    """What a step computes from low-rank changes laid over the model, again from weights that are written."""
    model, settings = tiny_model(family), {"alpha0": 1.0 if family == "t5" else 3e-2, "c_edit": 0.3}
    learner = editor_class("mend").learner(model, settings_for(model, norm=False, **settings), 0)
    draws = Sampler(some_examples(family), 0).draw(2)
    losses, values = learner.step(draws), learner.validate(draws)
    asked = {
        "edit": [draw.edit for draw in draws],
        "query": [Edit(draw.query, draw.query_answer) for draw in draws],
        "outside": [Edit(draw.outside.prompt, draw.outside.answer) for draw in draws],
    }
    inputs = {name: editor_inputs(model, rows) for name, rows in asked.items()}
    before, right_before = outputs_of(model, inputs["outside"]), judge(model, inputs["outside"]).right
    editor = make_editor("mend", model, trained=untrained(model, **settings))
    assert len(editor.edit(asked["edit"]).applied) == 2
    after = outputs_of(model, inputs["outside"])
    verdict = {name: judge(model, rows) for name, rows in inputs.items()}
    divergences = (before.exp() * (before - after)).sum(dim=1)
    expected = {"edit": float(verdict["query"].losses.mean()), "locality": float(divergences.mean())}
    expected["total"] = 0.3 * expected["edit"] + expected["locality"]
    assert expected["locality"] > 1e-3
    for name, value in expected.items():
        assert float(losses[name].detach()) == pytest.approx(value, rel=1e-3)
        assert values[name] == pytest.approx(value, rel=1e-3)
    shares = {name: float(one.right.float().mean()) for name, one in verdict.items()}
    assert (values["edit success"], values["rephrase success"]) == (shares["edit"], shares["query"])
    assert values["right before"] == float(right_before.float().mean())
    assert values["drawdown"] == pytest.approx(values["right before"] - shares["outside"])
    # What nobody knows to be right is no part of it.
    unsure = [replace(draw, outside=replace(draw.outside, known=False)) for draw in draws]
    values = learner.validate([unsure[0], draws[1]])
    assert values["right before"] == float(right_before[1])
    assert values["drawdown"] == float(right_before[1]) - float(verdict["outside"].right[1])
    assert not {"right before", "drawdown"} & set(learner.validate(unsure))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("changes", [{}, {"mask_padding": False, "reduction": "mean", "share": False}])
def test_steps_that_share_passes_are_those_one_by_one(family, changes):
    """Losses, gradients, what the normalisation has seen, and what validation says."""
    model, sampler = tiny_model(family), Sampler(some_examples(family), 0)
    groups = [sampler.draw(2) for _ in range(3)]
    if (
        family != "bert"
    ):  # so that the answers of a batch, and the tokens of the batches, are not equally many
        edit = groups[1][0].edit
        groups[1][0] = replace(groups[1][0], edit=replace(edit, target="Port Velden Bay on the sea"))
    found = []
    for shared in (True, False):
        settings = settings_for(model, k_train=2, accumulate=3, share_passes=shared, **changes)
        learner = editor_class("mend").learner(model, settings, 0)
        parameters = [p for group in learner.groups() for p in group["params"]]
        if shared:
            losses, gradients = learner.together(groups, parameters)
        else:
            assert learner.together(groups, parameters) is None
            losses = [learner.step(draws) for draws in groups]
            gradients = torch.autograd.grad(sum(each["total"] for each in losses), parameters)
        values = learner.validate([draw for draws in groups for draw in draws])
        plain = [{name: float(value.detach()) for name, value in each.items()} for each in losses]
        found.append((plain, gradients, dict(learner.network.named_buffers()), values))
    (losses, gradients, sums, values), (one_by_one, expected, own_sums, own_values) = found
    for each, other in zip(losses, one_by_one, strict=True):
        assert each == pytest.approx(other, rel=1e-4, abs=1e-6)
    largest = max(float(gradient.abs().max()) for gradient in expected)
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-5 * largest)
    for name, tensor in sums.items():
        torch.testing.assert_close(tensor, own_sums[name], rtol=1e-4, atol=1e-6)
    assert values == pytest.approx(own_values, rel=1e-3, abs=1e-5)


def test_a_step_that_is_not_finite_costs_no_other_that_shares_its_passes(monkeypatch, tmp_path):
    """They are taken again one by one, and no token is counted twice."""
    model, seen = tiny_model("gpt2"), []
    whole = mend_learner.gradient_factors

    def spoiled(rows, modules, weights, groups):
        found, verdict = whole(rows, modules, weights, groups)
        seen.append(groups)
        if len(seen) in (1, 3):  # all three at once, then the second of them alone
            found[-1][0] = replace(found[-1][0], u=found[-1][0].u * torch.inf)
        return found, verdict

    monkeypatch.setattr(mend_learner, "gradient_factors", spoiled)
    settings = settings_for(
        model, steps=3, accumulate=3, k_train=1, validate_every=3, patience=None, log_every=3
    )
    trained = train_editor("mend", model, some_examples(), settings, tmp_path)
    assert seen[:4] == [3, 1, 1, 1]
    rows = [line.split(",") for line in (tmp_path / "training.csv").read_text().splitlines()]
    assert ["3", "train", "dropped steps", "1"] in rows
    learner = editor_class("mend").learner(model, settings, 0)
    sampler = Sampler([one for one in some_examples() if one.split == "train"], "0 train")
    first, _, third = (sampler.draw(1) for _ in range(3))
    monkeypatch.setattr(mend_learner, "gradient_factors", whole)
    learner.step(first), learner.step(third)
    counts = [name for name in trained.tensors if name.endswith("count")]
    assert counts and all(
        torch.equal(trained.tensors[name], learner.tensors()[name].cpu()) for name in counts
    )


def test_padding_that_counts_is_in_the_gradient_and_in_no_verdict(monkeypatch):
    """E5: edits are judged as ever, whatever their gradient was taken of."""
    model, draws = tiny_model("gpt2"), Sampler(some_examples(), 3).draw(4)
    for number, city in enumerate(("Velden", "Port Velden Bay")):  # answers of 2 and of 4 tokens
        draws[number] = replace(draws[number], edit=replace(draws[number].edit, target=city))
    seen, gradients = [], []

    def judging(logits, inputs, places):
        seen.append(inputs.targets)
        return judged(logits, inputs, places)

    monkeypatch.setattr("palimpsest.editors.shared.mend_learner.judged", judging)
    for mask in (True, False):
        settings = settings_for(model, alpha0=0.0, mask_padding=mask, norm=False, k_train=4)
        learner = editor_class("mend").learner(model, settings, 0)
        learner.step(draws)["edit"].backward()
        learner.validate(draws)
        gradients.append(learner.network.alpha.grad.clone())
    assert len(seen) == 8 and not torch.allclose(*gradients)
    assert all(torch.equal(one, other) for one, other in zip(seen[:4], seen[4:], strict=True))


def outputs_of(model, inputs):
    """Log-probabilities, by whole passes, of all tokens of x_loc but the first, of its answer, or of the classes."""
    logits = model.network(**inputs.named).logits
    if model.kind == "encoder":
        return logits.log_softmax(dim=1)
    wanted = inputs.targets >= 0
    if model.kind == "decoder":  # without the end token, and what comes after the last token
        wanted = torch.arange(wanted.shape[1]) < (inputs.padding.sum(dim=1) - 2)[:, None]
    return logits[wanted].log_softmax(dim=1)


def test_where_the_divergence_is_taken():
    """All tokens of x_loc, its answer, or one place too late (E7)."""
    model = tiny_model("gpt2")
    learner = editor_class("mend").learner(model, settings_for(model), 0)
    inputs = editor_inputs(model, [Edit("Mira lives in the city of", "Port Velden Bay")])
    start, count = int(inputs.query[0]), int((inputs.targets >= 0).sum())
    columns = {"all": range(start + count), "answer": range(start, start + count)}
    columns["answer_unshifted"] = range(start + 1, start + count + 1)
    for where, wanted in columns.items():
        learner.settings = replace(learner.settings, locality_over=where)
        assert learner._locality_places(inputs)[1].tolist() == list(wanted)


def test_a_half_precision_base_teaches_as_a_whole_one():
    """Gradients this small would vanish in float16 if the losses were not scaled on their way through the base."""
    gradients, draws = [], Sampler(some_examples(), 0).draw(2)
    for dtype in (torch.float16, torch.float32):
        model = tiny_model("gpt2", dtype)
        learner = editor_class("mend").learner(model, settings_for(model, norm=False, alpha0=0.0), 0)
        loss = (
            1e-7 * learner.step(draws)["edit"]
        )  # L_loc of no change is rounding, and not the same everywhere
        loss.backward()
        gradients.append(learner.network.alpha.grad)
    torch.testing.assert_close(*gradients, rtol=0.1, atol=0.05 * float(gradients[1].abs().max()))


def test_out_of_scope_prompts_without_an_answer_give_their_last_word():
    for prompt in ("Mira lives here", " Mira lives here "):
        assert with_answer(Outside(prompt, " "), "decoder") == ("Mira lives", "here")
    assert with_answer(Outside("Mira lives here", "Velden"), "decoder") == ("Mira lives here", "Velden")
    assert with_answer(Outside("Mira lives here", ""), "encoder") == ("Mira lives here", "")
    # None to give: `fitting` leaves it out.
    assert with_answer(Outside("Mira", ""), "decoder") == ("Mira", "")


def test_half_a_training_by_other_code_is_not_gone_on_from(tmp_path, monkeypatch):
    keys, model = [], tiny_model("gpt2")
    monkeypatch.setattr(
        "palimpsest.learning.train.train",
        lambda *a: keys.append(a[-1]) or TrainingProgress(best={"total": 1.0}),
    )
    for code in ("one", "one", "another"):
        monkeypatch.setattr("palimpsest.learning.train.source_digest", lambda *_, code=code: code)
        train_editor("mend", model, some_examples(), settings_for(model), tmp_path / str(len(keys)))
    assert keys[0] == keys[1] != keys[2]


def test_a_gradient_that_is_not_finite_spoils_no_statistics():
    model = tiny_model("gpt2")
    learner = editor_class("mend").learner(model, settings_for(model), 0)
    draws = Sampler(some_examples(), 0).draw(2)
    learner.step(draws)
    kept = {name: tensor.clone() for name, tensor in learner.tensors().items()}
    norm = model.network.transformer.ln_f.weight
    norm.data.mul_(float("nan"))
    loss = learner.step(draws)["total"]
    assert torch.isnan(loss) and loss.requires_grad
    assert all(torch.equal(tensor, kept[name]) for name, tensor in learner.tensors().items())


def test_bad_input_is_refused_before_anything_starts(tmp_path):
    model = tiny_model("gpt2")
    trained = untrained(model)
    for arguments, error, words in (
        (("mend", model, None), SettingsError, "learns before it edits.*train-editor.*trained="),
        (("mend", model, {"layers": [1]}), TrainedError, r"trained with layers = \[2, 3\], but \[1\]"),
        (("mend", model, {"size": 1}), SettingsError, "no setting 'size'"),
        (("mend", model, "default"), SettingsError, "must be a dict or Settings, not str"),
        (("mend", tiny_model("gpt2", seed=2), None), TrainedError, "Train it for this model"),
        (("ft", model, None), SettingsError, "ft needs no training"),
        (("mend", model, None, object()), SettingsError, "reads no statistics"),
        (("mend", "gpt2", None), SettingsError, r"what load_model\(...\) returns"),
    ):
        with pytest.raises(error, match=words):
            make_editor(*arguments, trained=None if "learns before" in words else trained)
    with pytest.raises(TrainedError, match="holds no trained editor"):
        make_editor("mend", model, trained=tmp_path)
    unseen = editor_class("mend").learner(model, settings_for(model), 0)
    fresh = replace(trained, settings=plain_settings(unseen.settings), tensors=unseen.tensors())
    with pytest.raises(TrainedError, match="has seen no token.*train-editor"):
        make_editor("mend", model, trained=fresh)
    with pytest.raises(TrainedError, match="do not fit the matrices 2.mlp_out"):
        make_editor("mend", model, trained=replace(trained, tensors={"alpha": torch.ones(4)}))
    for changes, words in (
        ({"init": "zero"}, "init"), ({"sign": "up"}, "sign"), ({"rank": 0}, "rank"), ({"lr": -1}, "lr"),
        ({"c_edit": 0}, "c_edit"), ({"reduction": "max"}, "reduction"), ({"last_chunk_only": 0}, "last_chunk"),
    ):  # fmt: skip
        with pytest.raises(SettingsError, match=words):
            editor_class("mend").learner(model, settings_for(model, **changes), 0)
    examples = some_examples()
    for changed, settings, error, words in (
        (examples[:4], {}, DataError, "'split': no learning example of the split 'valid'"),
        ([replace(one, rephrasings=()) for one in examples], {}, DataError, "no record has a rephrasing"),
        (examples, {"k_train": 5}, SettingsError, "k_train = 5, but the split 'train' has 4"),
    ):
        with pytest.raises(error, match=words):
            train_editor("mend", model, changed, settings_for(model, **settings))
    with pytest.raises(SettingsError, match="ft needs no training"):
        train_editor("ft", model, examples)
