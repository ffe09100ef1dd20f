"""Identities of the key-value writers, checked against numbers computed another way."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import random_statistics, some_edits, tiny_model

from palimpsest.editors import make_editor
from palimpsest.editors.shared.factors import FactoredCovariance
from palimpsest.editors.shared.key_system import KeySystem, Past
from palimpsest.editors.shared.keys import KeyWalk
from palimpsest.models.tokens import encode_prompts

COMMON = {
    "layers": [1, 2],
    "steps": 6,
    "learning_rate": 0.4,
    "clamp": 2.0,
    "lam": 5.0,
    "context_lengths": [[6, 3]],
}
NAMES = [
    "memit",
    "comeba_hk",
    "rome",
    "ft",
]  # taken off models of every family; other promises: tests/unit/test_every_editor.py


def editor(model, name="memit", seed=0, **extra):
    """An editor with settings that fit a tiny model."""
    chosen = COMMON | extra
    if name == "rome":
        chosen = {"layers": [1], "steps": 6, "learning_rate": 0.4, "context_lengths": [[6, 3]]} | extra
    if name == "ft":
        return make_editor(
            "ft", model, {"layer": 1, "learning_rate": 1e-2, "epsilon": None} | extra, seed=seed
        )
    return make_editor(name, model, chosen, random_statistics(model, (0, 1, 2)), seed)


@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_recursive_update_is_the_joint_least_squares_solution(seed, batches, size):
    """After P batches W equals the minimiser over all of them (spec 1.2): the identity COMEBA rests on."""
    generator = torch.Generator().manual_seed(seed)
    d, d_k, lam = 7, 12, 3.0
    sample = torch.randn(40, d_k, generator=generator, dtype=torch.float64)
    c_0, w_0 = sample.T @ sample / 40, torch.randn(d, d_k, generator=generator, dtype=torch.float64)
    system, past = KeySystem(FactoredCovariance(c_0), lam), Past()
    weight, all_keys, all_values = w_0.clone(), [], []
    for _ in range(batches):
        keys = torch.randn(size, d_k, generator=generator, dtype=torch.float64)
        values = torch.randn(size, d, generator=generator, dtype=torch.float64)
        update, past = system.solve(keys, values - keys @ weight.T, past)
        weight = weight + update
        all_keys.append(keys)
        all_values.append(values)
    k, v = torch.cat(all_keys), torch.cat(all_values)
    joint = torch.linalg.solve(lam * c_0 + k.T @ k, (lam * w_0 @ c_0 + v.T @ k).T).T
    assert torch.allclose(weight, joint, rtol=1e-8, atol=1e-8)


def test_memit_of_one_layer_is_its_closed_form(gpt2):
    """Keys by plain forward passes, update by a direct inverse: the weights the editor leaves."""
    memit = editor(gpt2, layers=[1], target_search="plain")
    edits = some_edits(4)
    before = gpt2.mlp_weight(1).clone().double()
    report = memit.edit(edits, record=True)
    after = gpt2.mlp_weight(1).clone().double()
    memit.remove()
    keys = []
    for edit in edits:
        variants = [[context for context in group] for group in memit.contexts]
        groups = []
        for group in variants:
            found = []
            for context in group:
                text = f"{context}. {edit.prompt}" if context else edit.prompt
                seen = []
                handle = gpt2.mlp_out(1).register_forward_pre_hook(
                    lambda _, inputs, seen=seen: seen.append(inputs[0])
                )
                gpt2.hidden(encode_prompts(gpt2, [text]))
                handle.remove()
                tokens = gpt2.tokenizer(text[: text.rfind(edit.subject) + len(edit.subject)])["input_ids"]
                found.append(seen[0][0, len(tokens) - 1])
            groups.append(torch.stack(found).mean(dim=0))
        keys.append(torch.stack(groups).mean(dim=0))
    k = torch.stack(keys).double()
    residual = (report.record["z"] - report.record["initial"]).double()
    c = memit.statistics.matrix(1)
    expected = residual.T @ k @ torch.linalg.inv(5.0 * c + k.T @ k)
    assert torch.allclose(after - before, expected, atol=1e-4)
    assert expected.abs().max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_remove_gives_back_the_model_bit_for_bit(model, name):
    """Whatever was done in between."""
    before = {key: value.clone() for key, value in model.network.state_dict().items()}
    used = editor(model, name)
    prompts = encode_prompts(model, [edit.prompt for edit in some_edits()])
    logits = model.logits(prompts)
    assert not used.edit(some_edits(4)).failed
    assert not torch.equal(model.logits(prompts), logits)
    used.edit(some_edits(6)[4:])
    used.remove()
    assert torch.equal(model.logits(prompts), logits)
    for key, value in model.network.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_only_the_named_matrices_change(gpt2):
    """MEMIT writes its layers' matrices and nothing else; COMEBA-HK writes nothing at all."""
    for name, changed in (
        ("memit", {"transformer.h.1.mlp.c_proj.weight", "transformer.h.2.mlp.c_proj.weight"}),
        ("comeba_hk", set()),
    ):
        before = {key: value.clone() for key, value in gpt2.network.state_dict().items()}
        used = editor(gpt2, name)
        used.edit(some_edits(4))
        after = gpt2.network.state_dict()
        assert {key for key in before if not torch.equal(before[key], after[key])} == changed
        used.remove()


def test_without_hooks_follows_equation_14(gpt2):
    """The second batch solves against lambda C_0 + K'K'^T; the released form weighs the past by lambda."""
    updates = {}
    for form in ("equation_14", "released"):
        used = editor(gpt2, "comeba_hk", hooks=False, accumulate=form, layers=[1])
        first = used.edit(some_edits(6)[:3], record=True).record
        second = used.edit(some_edits(6)[3:], record=True).record
        used.remove()
        past, keys = first["keys"][1].double(), second["keys"][1].double()
        scale = 5.0 if form == "released" else 1.0
        stored = 5.0 * used.statistics.matrix(1) + scale * past.T @ past
        expected = second["residuals"][1].double().T @ keys @ torch.linalg.inv(stored + keys.T @ keys)
        assert torch.allclose(second["updates"][1].double(), expected, atol=1e-5)
        updates[form] = second["updates"][1]
    assert not torch.allclose(updates["equation_14"], updates["released"], atol=1e-3)


def test_first_step_of_hooks_equals_memit(gpt2):
    """Before anything is written the hooks are inert, so z and first-layer keys are MEMIT's (spec 1.4)."""
    memit, hooked = editor(gpt2, "memit"), editor(gpt2, "comeba_hk")
    ours = memit.edit(some_edits(4), record=True).record
    memit.remove()
    theirs = hooked.edit(some_edits(4), record=True).record
    hooked.remove()
    assert torch.allclose(ours["z"], theirs["z"], atol=1e-5)
    assert torch.allclose(ours["keys"][1], theirs["keys"][1], atol=1e-5)


def test_cut_walk_equals_whole_walk(model):
    """Tokens after the subject cannot change a key."""
    edits, groups = some_edits(), [[""], ["Because I", "The city of Velden"]]
    found = [KeyWalk(model, edits, groups, 2, cut=cut).keys_and_state(3) for cut in (True, False)]
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_rome_puts_the_value_at_the_key(gpt2):
    """Corrected form: (W + Lambda u^T) k* + b = v*. The released form breaks this as soon as contexts differ."""
    rome = editor(gpt2, "rome")
    note = rome.edit(some_edits(1), record=True).record["edits"][0]
    value = gpt2.mlp_weight(1).double() @ note["key"] + gpt2.mlp_out(1).bias.double()
    assert torch.allclose(value, note["z"][0].double(), atol=1e-4)
    rome.remove()
    released = editor(gpt2, "rome", form="released")
    other = released.edit(some_edits(1), record=True).record["edits"][0]
    assert not torch.allclose(other["update"], note["update"], atol=1e-4)


def test_fine_tuning_stays_in_its_box_and_lowers_the_loss(gpt2):
    """FT-L clamps every entry; FT-M without a clamp learns the targets."""
    boxed = editor(gpt2, "ft", epsilon=1e-3)
    before = gpt2.mlp_weight(1).clone()
    boxed.edit(some_edits(4))
    assert float((gpt2.mlp_weight(1) - before).abs().max()) <= 1e-3 + 1e-6
    boxed.remove()
    free = editor(gpt2, "ft", loss="target_new", steps=40)
    losses = free.edit(some_edits(3), record=True).record["losses"]
    assert losses[-1] < 0.3 * losses[0]


def test_fine_tuning_equals_plain_fine_tuning():
    """Cached lower blocks and needed logits only: the same weights as a loop over the whole network."""
    model, twin = tiny_model("gptj", torch.float64), tiny_model("gptj", torch.float64)
    edits = some_edits(4)
    editor(model, "ft", loss="target_new", steps=5, mini_batch=2, learning_rate=1e-3).edit(edits)
    weight = twin.mlp_out(1).weight.requires_grad_(True)
    optimiser = torch.optim.Adam([weight], lr=1e-3)
    for _ in range(5):
        for pair in (edits[:2], edits[2:]):
            loss = 0.0
            for edit in pair:
                ids = twin.tokenizer(f"{edit.prompt} {edit.target}", return_tensors="pt")["input_ids"]
                start = len(twin.tokenizer(edit.prompt)["input_ids"])
                log_p = twin.network(input_ids=ids).logits.log_softmax(dim=2)[0, start - 1 : -1]
                loss = loss - log_p.gather(1, ids[0, start:, None]).mean() / 2
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    assert torch.allclose(model.mlp_out(1).weight, weight, atol=1e-6)


def test_singular_statistics_fail_the_edit_and_leave_the_model(gpt2):
    """Cholesky says no; the batch is reported as failed, nothing is half written."""
    from palimpsest.statistics.covariance import CovarianceStatistics

    singular = {layer: torch.zeros(48, 48, dtype=torch.float64) for layer in (1, 2)}
    used = make_editor("memit", gpt2, COMMON, CovarianceStatistics(singular, 10, gpt2.fingerprint))
    prompts = encode_prompts(gpt2, [edit.prompt for edit in some_edits()])
    before = gpt2.logits(prompts)
    report = used.edit(some_edits(3))
    assert len(report.failed) == 3 and "positive definite" in report.failed[0].reason and not report.applied
    assert torch.equal(gpt2.logits(prompts), before)
