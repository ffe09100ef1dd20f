"""Where the released code of GRACE behaves otherwise (`compat: official`), and what each difference does to a model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_grace import OTHERS, actions, edits_for, grace, losses
from tiny import LABELS, some_edits, tiny_model

from palimpsest.command_line.commands import preset_settings
from palimpsest.editors.grace import without_end
from palimpsest.models.objectives import encode, row_losses, say


@pytest.fixture
def bert():
    return tiny_model("bert")


def test_a_decoder_says_its_target_in_free_generation_and_not_as_released(gpt2):
    """Q1, Q2: the released key is taken at the first target token, which a prompt alone never shows."""
    options = {"layer": 3, "replacement": "prompt", "radius": 1e-3, "steps": 60, "split": "half"}
    (edit,) = some_edits(1)
    first = gpt2.tokenizer(" " + edit.target)["input_ids"][0]
    for compat, works in (("corrected", True), ("official", False)):
        used = grace(gpt2, **{**options, "compat": compat})
        unedited = used.generate(edit.prompt, max_new_tokens=1)
        before = losses(gpt2, [edit])
        used.edit([edit])
        assert losses(gpt2, [edit]) < before - 1  # with the answer given, both fire
        with used.watching() as acted:
            said = used.generate(edit.prompt, max_new_tokens=1)
            assert (acted() is not None) is works
        assert (said == [gpt2.tokenizer.decode([first])]) is works
        assert (said == unedited) is not works
        used.remove()


@pytest.mark.parametrize("preset", ["gpt2", "gpt2-xl", "mini-gpt2-bio"])
def test_settings_of_decoders_correct_the_key_and_not_what_is_written(gpt2, preset):
    """Q1: the released key is a token later; both overwrite all of the prompt and nothing of the target."""
    written = {}
    own = preset_settings("grace", preset, {"layer": 1, "radius": 1e-3, "radius_ratio": None, "steps": 2})
    for compat, changed in (("corrected", {}), ("first_target", {"replacement": "prompt_before"})):
        used = grace(gpt2, **{**own, **changed, "compat": compat})
        (edit,) = some_edits(1)
        used.edit([edit])
        inputs, seen = encode(gpt2, [edit.prompt], [edit.target]), []
        hook = used.adapter.module.register_forward_hook(
            lambda _, __, output, seen=seen: seen.append(output[0])
        )
        row_losses(gpt2, inputs)
        used.adapter.detach()
        row_losses(gpt2, inputs)
        hook.remove()
        written[compat] = (seen[0] != seen[1]).any(dim=1).nonzero()[:, 0].tolist()
        used.remove()
    assert written["corrected"] == written["first_target"] == list(range(int(inputs.query[0]) + 1))


def test_the_end_token_is_taught_and_as_released_it_is_not(gpt2):
    """Q1: the released code masks it, since the padding token is the same; its first loss is the one without it."""
    edits = some_edits(3)
    inputs = encode(gpt2, [edit.prompt for edit in edits], [edit.target for edit in edits])
    masked = without_end(inputs)
    for row, bare in zip(inputs.targets.tolist(), masked.targets.tolist(), strict=True):
        wanted = [token for token in row if token != -100]
        assert wanted[-1] == gpt2.end_token and [token for token in bare if token != -100] == wanted[:-1]
    (edit,) = edits[:1]
    first = {}
    for compat in ("corrected", "official"):
        used = grace(
            gpt2, compat=compat, split="half", replacement="last", learning_rate=1e-12, initial="warm"
        )
        first[compat] = used.edit([edit], record=True).record["edits"][0]["losses"][0]
        used.remove()
    # Warm values change nothing at the asking position, so these are the unedited model's losses.
    assert first["corrected"] == pytest.approx(float(row_losses(gpt2, inputs)[0]), rel=1e-4)
    assert first["official"] == pytest.approx(float(row_losses(gpt2, masked)[0]), rel=1e-4)
    assert first["corrected"] != pytest.approx(first["official"], rel=1e-3)


def test_a_new_target_at_the_same_place_as_released_loses_both(bert):
    """Q5: the loss does not move and neither entry answers; corrected, the second edit holds."""
    first = edits_for(bert)[0]
    second = replace(first, identifier="again", target=LABELS[3])
    plain = losses(bert, [first, second])
    used = grace(bert, compat="official", split="half")
    used.edit([first])
    report = used.edit([second], record=True)
    assert report.record["edits"][0]["losses"] == [] and len(used.codebook) == 2
    assert torch.equal(losses(bert, [first, second]), plain)
    used.remove()
    used = grace(bert)
    used.edit([first, second])
    assert losses(bert, [second])[0] < plain[1] and len(used.codebook) == 1


def test_labels_of_permuted_answers():
    """Q6 on a model: the released code takes a permuted answer for the same one and joins the entries."""
    model = tiny_model("t5")
    first = some_edits(1)[0]
    a, b = (replace(first, identifier=text, target=text) for text in ("ab", "ba"))
    ids = [sorted(model.tokenizer(edit.target)["input_ids"]) for edit in (a, b)]
    assert ids[0] == ids[1]
    assert actions(grace(model).edit([a, b], record=True)) == ["init", "overwrite"]
    fresh = tiny_model("t5")
    assert actions(grace(fresh, compat="official", split="half").edit([a, b], record=True)) == ["init", "hit"]


def test_with_one_step_the_released_code_goes_on_adding_keys(bert):
    """Q8: later passes change the codebook; the corrected rules change it in edits only."""
    (edit,) = edits_for(bert, 1)
    for compat, grown in (("corrected", 1), ("official", 4)):
        used = grace(bert, radius=1e-3, steps=1, compat=compat, split="half")
        used.edit([edit])
        for prompt in OTHERS:
            say(bert, [prompt])
        assert len(used.codebook) == grown
        used.remove()


def test_training_mode_and_the_global_random_source_mean_nothing(bert):
    """Q19, Q20: `train()` edits nothing; neither edits nor passes draw from torch's own source."""
    edits = edits_for(bert)
    used = grace(bert, radius=1e-3)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    used.edit(edits[:2])
    bert.network.train()
    tables = used.codebook.tensors()
    losses(bert, edits)
    bert.network.eval()
    assert torch.equal(torch.get_rng_state(), state) and len(used.codebook) == 2
    assert all(torch.equal(tensor, tables[name]) for name, tensor in used.codebook.tensors().items())


def test_each_behaviour_of_the_released_code_can_stand_alone():
    """Q1 and Q3 to Q6: what is switched on differs, the rest stays corrected."""
    alone = {"first_target": "gpt2", "edit_always": "t5", "no_overwrite": "t5", "mean_labels": "t5"}
    first = some_edits(1)[0]
    pair = [replace(first, identifier=text, target=text) for text in ("ab", "ba")]  # of equal means
    for compat, family in alone.items():
        model = tiny_model(family)
        used = grace(model, compat=compat, replacement="prompt", steps=2)
        assert used.adapter.shift == (compat == "first_target")
        assert used.edits_everything is (compat == "edit_always")
        expected = {"no_overwrite": "split", "mean_labels": "hit"}.get(compat, "overwrite")
        report = used.edit(pair, record=True)
        assert actions(report) == ["init", expected], compat
        asked = used.inspect([first.prompt])[0]
        if compat == "no_overwrite":  # both edits are lost
            assert len(used.codebook) == 2 and not asked["fired"]
            assert report.record["edits"][1]["losses"] == []
        used.remove()
    found = grace(tiny_model("t5"), compat="matrix_distance").codebook
    assert found.released == ("matrix_distance",) and found.split == "capped"
