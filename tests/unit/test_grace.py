"""GRACE as an editor: what an edit does to codebook and model, and what takes it back, keeps it, or refuses it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import ALL_FAMILIES, LABELS, some_edits, tiny_model

from palimpsest.editors import make_editor
from palimpsest.editors.base import load_state, save_state
from palimpsest.edits import Edit
from palimpsest.errors import PalimpsestError, SettingsError
from palimpsest.models.objectives import encode, row_losses, say
from palimpsest.protocols.lifelong_notes import Checks, shared_keys

OTHERS = ["Port Velden Bay lies", "I say so", "Ben Tolvek lives in Marrin, therefore"]


def grace(model, **extra):
    return make_editor("grace", model, {"layer": 1, "steps": 20, **extra})


def edits_for(model, n: int = 6) -> list[Edit]:
    edits = some_edits(n)
    if model.kind == "encoder":
        edits = [replace(edit, target=LABELS[i % 4]) for i, edit in enumerate(edits)]
    return edits


def losses(model, edits) -> torch.Tensor:
    with torch.no_grad():
        return row_losses(model, encode(model, [e.prompt for e in edits], [e.target for e in edits]))


def actions(report) -> list[str]:
    return [note["action"] for note in report.record["edits"]]


@pytest.fixture
def bert():
    return tiny_model("bert")


@pytest.mark.parametrize("family", ALL_FAMILIES)
@pytest.mark.parametrize("site", ["mlp_in", "mlp_out"])
def test_an_edit_works_and_touches_nothing_else(family, site):
    """C1, C2: losses of the edits fall, other prompts and all weights stay bit for bit, `remove` gives all back."""
    model = tiny_model(family)
    weights = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    edits = edits_for(model)
    others = [replace(edit, prompt=prompt, subject=None) for edit, prompt in zip(edits, OTHERS, strict=False)]
    before, apart = losses(model, edits), losses(model, others)
    used = grace(model, site=site, radius=1e-3)
    assert torch.equal(losses(model, edits), before)
    report = used.edit(edits, record=True)
    assert report.applied == [edit.identifier for edit in edits] and len(used.codebook) == 6
    assert (losses(model, edits) < before - 0.3).all()
    assert torch.equal(losses(model, others), apart)
    assert model.linear(1, site).weight is not None  # Q12: the linear map is still there, with its weight
    used.remove()
    assert torch.equal(losses(model, edits), before) and len(used.codebook) == 0
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.network.state_dict().items())


def test_a_classifier_says_what_it_was_taught(bert):
    edits = edits_for(bert)
    used = grace(bert, radius=1e-3, steps=100)
    used.edit(edits)
    assert [said.text for said in say(bert, [edit.prompt for edit in edits])] == [e.target for e in edits]
    assert used.generate([edit.prompt for edit in edits]) == [edit.target for edit in edits]


def test_every_action_on_a_model(bert):
    """The table of Algorithm 1, by real states."""
    first, second = edits_for(bert)[:2]
    used = grace(bert, radius=1e-3)
    assert actions(used.edit([first, first], record=True)) == ["init", "hit"]
    other = replace(first, identifier="again", target=LABELS[3])
    assert actions(used.edit([other], record=True)) == ["overwrite"]
    assert [said.text for said in say(bert, [first.prompt])] == [LABELS[3]]
    assert actions(used.edit([second], record=True)) == ["add"]
    assert used.codebook.actions["add"] == 1
    used.remove()
    states = used.queries([first.prompt, second.prompt])
    apart = float((states[0] - states[1]).norm())
    used = grace(bert, radius=0.6 * apart)
    same = replace(second, target=first.target)
    assert actions(used.edit([first, same], record=True)) == ["init", "expand"]
    assert float(used.codebook.radii[0]) == pytest.approx(apart)
    used.remove()
    assert actions(used.edit([first, second], record=True)) == ["init", "split"]
    assert used.codebook.radii.tolist() == pytest.approx([apart / 2 - 1e-5, apart / 2])
    assert [said.text for said in say(bert, [first.prompt, second.prompt])] == [first.target, second.target]


def test_initial_values(bert):
    """Cold is uniform and depends on the seed alone, warm is the layer's own output, others are passed in."""
    edits = edits_for(bert)[:2]
    still = {"learning_rate": 1e-12, "steps": 1, "radius": 1e-3}
    drawn = []
    for seed in (0, 0, 1):
        used = make_editor("grace", bert, {"layer": 1, **still}, seed=seed)
        used.edit(edits)
        drawn.append(used.codebook.values.clone())
        used.remove()
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert drawn[0].min() >= 0 and drawn[0].max() < 1 and drawn[0].std() > 0.2
    used = grace(bert, **still, initial="warm")
    used.edit(edits)
    own = bert.linear(1, "mlp_out")
    expected = used.codebook.keys @ own.weight.T + own.bias
    assert torch.allclose(used.codebook.values, expected, atol=1e-5)
    used.remove()
    used = grace(bert, **still)
    wish = torch.full((32,), 7.0)
    used.start_from({edits[1].identifier: wish})
    used.edit(edits)
    assert torch.allclose(used.codebook.values[1], wish) and not torch.allclose(used.codebook.values[0], wish)
    for wrong in (torch.zeros(5), torch.full((32,), torch.nan)):
        with pytest.raises(SettingsError, match="initial value of edit 'x' must be 32 finite numbers"):
            used.start_from({"x": wrong})


@pytest.mark.parametrize("gone", range(4))
def test_undo_at_every_position(bert, gone):
    """C24, E2: the prompt answers as if never edited; all others keep key, radius, value and answer."""
    edits = edits_for(bert, 4)
    plain = losses(bert, edits)
    used = grace(bert, radius=1e-3)
    used.edit(edits)
    after, tables = losses(bert, edits), used.codebook.tensors()
    assert used.undo(edits[gone] if gone % 2 else edits[gone].identifier).deleted == 1
    stay = [i for i in range(4) if i != gone]
    now = losses(bert, edits)
    assert torch.equal(now[gone], plain[gone]) and torch.equal(now[stay], after[stay])
    assert all(torch.equal(tables[n][stay], t) for n, t in used.codebook.tensors().items())
    with pytest.raises(PalimpsestError, match="no entry of the codebook holds the edit"):
        used.undo(edits[gone])
    for i in stay:
        used.undo(edits[i])
    assert torch.equal(losses(bert, edits), plain)


def test_undo_takes_the_latest_of_a_name_or_the_one_with_that_answer(bert):
    edit = replace(edits_for(bert, 1)[0], identifier=None)
    other = replace(edit, target=LABELS[3])
    for given, left in ((edit.prompt, edit.target), (other, edit.target), (edit, other.target)):
        used = grace(bert, radius=1e-3)
        used.edit([edit])
        # A step away, or the second answer would overwrite the first.
        used.codebook.keys[0] += 1e-4
        used.codebook._squared[0] = used.codebook.keys[0].square().sum()
        used.edit([other])
        assert [taught.text for taught in used.codebook.taught] == [edit.target, other.target]
        used.undo(given)
        assert [taught.text for taught in used.codebook.taught] == [left]
        used.remove()


def test_undo_of_a_shared_key_moves_nothing_and_takes_nothing_from_others(bert):
    """The key stays for those that share it, its radius never grows, and who was taught anew has left it."""
    book, axes = grace(bert).codebook, torch.eye(bert.width)
    width = book.keys.shape[1]
    queries = [axes[0].new_zeros(width) for _ in range(4)]
    for query, place in zip(queries, (0.0, 1.8, -1.0, 2.5), strict=True):
        query[0] = place
    start = lambda: torch.zeros(book.values.shape[1])  # noqa: E731
    for name, query, label in zip("abcd", queries, (1, 1, 1, 2), strict=True):
        book.update(query, (label,), 1.0, start, name, str(label))
    radii = book.radii.clone()
    assert book.taught[0].edits == ["a", "b", "c"]
    assert book.forget("a").kept == 1
    assert float(book.keys[0, 0]) == 0.0
    assert (book.radii <= radii).all()
    book.update(queries[1], (3,), 1.0, start, "b", "3")  # b wants something else now
    assert book.taught[0].edits == ["c"]
    assert book.forget("c").deleted == 1
    assert [taught.edits for taught in book.taught] == [["d"], ["b"]]


def test_a_run_notes_which_inputs_share_a_key(bert):
    """Entries of several edits, largest first, with the prompts of these; one of a single edit is not among them."""
    used = grace(bert, radius=1e9)  # everything of one class lands in one ball
    edits = edits_for(bert)
    edits = [replace(edit, target=LABELS[0 if i else 1]) for i, edit in enumerate(edits)]
    assert used.edit(edits).applied == [edit.identifier for edit in edits]
    held = [taught.edits for taught in used.codebook.taught]
    noted = shared_keys(used, edits)
    assert [note["edits"] for note in noted] == sorted(
        (len(own) for own in held if len(own) > 1), reverse=True
    )
    largest = max(held, key=len)
    assert len(largest) > 1 and noted[0]["answer"] == LABELS[0]
    assert noted[0]["prompts"] == [edit.prompt for edit in edits if edit.identifier in largest]
    assert shared_keys(make_editor("ft", bert, {"layer": 1, "loss": "own"}), edits) == []


def test_reverting_an_edit_that_was_taught_again_gives_it_back_what_it_shared(bert):
    book = grace(bert).codebook
    start = lambda: torch.zeros(book.values.shape[1])  # noqa: E731
    queries = torch.zeros(3, book.keys.shape[1])
    queries[1, 0], queries[2, 0] = 0.5, 50.0
    book.update(queries[0], (1,), 1.0, start, "a", "1")
    book.update(queries[1], (1,), 1.0, start, "b", "1")
    book.update(queries[2], (2,), 1.0, start, "far", "2")
    made = book.update(queries[2] + 5.0, (3,), 1.0, start, "b", "3")
    assert book.taught[0].edits == ["a"]
    book.revert(made)
    assert book.taught[0].edits == ["a", "b"]
    assert len(book.taught[0].queries) == 2


def test_a_state_that_overflowed_meets_no_key(bert, monkeypatch):
    """Nothing answers it, and `inspect` says so."""
    used, edits = grace(bert), edits_for(bert, 1)
    used.edit(edits)
    width = used.adapter.key_width
    monkeypatch.setattr(used, "queries", lambda prompts: torch.full((len(prompts), width), torch.inf))
    (found,) = used.inspect(edits[0].prompt)
    assert found["fired"] is False and found["key"] is None and found["distance"] is None


def test_inspect_tells_key_distance_radius_and_what_was_taught(bert):
    edits = edits_for(bert, 3)
    used = grace(bert, radius=1e-3)
    assert [found["key"] for found in used.inspect(OTHERS)] == [None] * 3 and used.inspect([]) == []
    used.edit([*edits, replace(edits[1], identifier="twice")])
    found = [*used.inspect(edits[1].prompt), *used.inspect([OTHERS[0]], [None])]
    assert found[0]["fired"] and found[0]["key"] == 1 and found[0]["distance"] == pytest.approx(0, abs=1e-4)
    assert (found[0]["taught"], found[0]["edits"]) == (edits[1].target, [edits[1].identifier, "twice"])
    states = used.queries([OTHERS[0], *[edit.prompt for edit in edits]])
    distances = (states[1:] - states[0]).norm(dim=1)
    assert not found[1]["fired"] and found[1]["key"] == int(distances.argmin())
    assert found[1]["distance"] == pytest.approx(float(distances.min()), rel=1e-4)
    assert found[1]["radius"] == 1e-3


def test_a_prompt_of_one_token_leaves_nothing_to_overwrite():
    model = tiny_model("gpt2")
    short = replace(
        some_edits(1)[0],
        prompt=model.tokenizer.decode([model.tokenizer("Ada")["input_ids"][0]]),
        subject=None,
    )
    report = grace(model).edit([short, some_edits(2)[1]])
    assert len(report.applied) == 1
    assert "Give a longer prompt, or set replacement: prompt" in report.failed[0].reason
    assert grace(model, replacement="prompt").edit([short]).applied


@pytest.mark.parametrize("name", ["ft", "grace"])
def test_a_class_the_model_lacks_fails_alone(bert, name):
    good, bad = edits_for(bert, 2)
    report = make_editor(
        name, bert, {"layer": 1, "steps": 2, **({"loss": "own"} if name == "ft" else {})}
    ).edit([good, replace(bad, target="no such class")])
    assert report.applied == [good.identifier]
    assert "no such class" in report.failed[0].reason


def test_a_step_with_kept_keys_and_no_mask_is_no_new_question():
    """As with the mask that `generate` passes: what the prompt decided holds."""
    model = tiny_model("gpt2")
    used = grace(model, replacement="last", radius=1e-3)
    edit = some_edits(1)[0]
    used.edit([edit])
    ids = torch.tensor([model.tokenizer(edit.prompt)["input_ids"]])
    with torch.no_grad():
        found = []
        for masked in (True, False):
            mask = torch.ones_like(ids) if masked else None
            kept = model.network(input_ids=ids, attention_mask=mask, use_cache=True).past_key_values
            longer = torch.ones(1, ids.shape[1] + 1, dtype=torch.long) if masked else None
            # The edit's own first token again, whose state would ask anew.
            step = model.network(input_ids=ids[:, -1:], attention_mask=longer, past_key_values=kept)
            found.append(step.logits)
    assert torch.equal(*found)


def test_states_that_ask_are_the_same_alone_in_batches_and_after_edits(model):
    prompts = [edit.prompt for edit in some_edits()] + OTHERS
    used = grace(model, radius=1e-3)
    together = used.queries(prompts)
    used.edit(some_edits())
    alone = torch.cat([used.queries([prompt]) for prompt in prompts])
    assert torch.allclose(together, alone, atol=1e-4)
    assert used.codebook.look_up(together[:6]).fired.all()
    used.remove()


def test_one_batch_is_the_same_as_one_by_one(bert):
    edits, tables = edits_for(bert), []
    for batches in ([edits], [[edit] for edit in edits]):
        used = grace(bert, radius=0.5)
        for batch in batches:
            used.edit(batch)
        tables.append(used.codebook.tensors())
        used.remove()
    assert all(torch.equal(tables[0][name], tables[1][name]) for name in tables[0])


def test_an_edit_that_fails_leaves_everything_as_it_was(bert, monkeypatch):
    edits = edits_for(bert)
    used = grace(bert, radius=1e-3)
    used.edit(edits[:2])
    tables, plain, answers = used.codebook.tensors(), used.codebook.plain(), losses(bert, edits)
    unknown = replace(edits[2], target="class 9")
    long = Edit("Velden " * 80, LABELS[0], identifier="long")
    report = used.edit([unknown, long])
    assert report.applied == []
    reasons = {failure.edit: failure.reason for failure in report.failed}
    assert "'class 9' is not one of" in reasons[unknown.identifier] and "at most 64" in reasons["long"]
    monkeypatch.setattr("palimpsest.models.upper.Upper.row_losses", lambda _: torch.tensor([torch.nan]))
    report = used.edit([edits[3], edits[0]])
    assert len(report.failed) == 2 and "loss is nan" in report.failed[0].reason
    monkeypatch.undo()
    assert used.codebook.plain() == plain and torch.equal(losses(bert, edits), answers)
    assert all(torch.equal(tensor, tables[name]) for name, tensor in used.codebook.tensors().items())


def test_watching_tells_the_rows_that_were_overwritten(bert):
    edits = edits_for(bert, 2)
    used = grace(bert, radius=1e-3)
    used.edit(edits[:1])
    with used.watching() as acted:
        assert acted() is None
        losses(bert, edits)
        assert acted().tolist() == [True, False] and acted() is None


def test_calibrate_sets_the_radius_by_distances_between_prompts(bert, caplog):
    """radius_ratio x median distance to the nearest other prompt; kept in the state and over `reset`."""
    used = grace(bert, radius=None, radius_ratio=0.5)
    with pytest.raises(SettingsError, match="Call calibrate"):
        used.edit(edits_for(bert, 1))
    prompts = [edit.prompt for edit in some_edits()] + OTHERS
    with caplog.at_level("INFO"):
        radius = used.calibrate([*prompts, prompts[0]])
    states = used.queries(prompts)
    apart = torch.cdist(states, states) + torch.eye(len(states)) * 1e9
    assert radius == used.radius == pytest.approx(0.5 * float(apart.min(dim=1).values.median()), rel=1e-4)
    assert f"{radius:.6g}" in caplog.text
    used.edit(edits_for(bert, 1))
    assert float(used.codebook.radii[0]) == pytest.approx(radius)
    with pytest.raises(PalimpsestError, match="before the first"):
        used.calibrate(prompts)
    again = grace(bert, radius=None, radius_ratio=0.5)
    again.load_state(used.state())
    assert again.radius == radius and again.neighbour_distance == used.neighbour_distance
    again.remove()
    used.reset()
    assert used.radius == radius and len(used.codebook) == 0
    used.remove()
    assert used.radius is None
    with pytest.raises(SettingsError, match="at least two different prompts .*1 given"):
        used.calibrate([prompts[0]] * 3)
    assert grace(bert, radius=3.0).calibrate(prompts) == 3.0


@pytest.mark.parametrize("name", ["grace", "defer", "memory"])
@pytest.mark.parametrize("family", ["t5", "bert", "gpt2"])
def test_state_goes_round(family, name, tmp_path):
    """Q18: saved, loaded into a fresh editor on a fresh model: the same answers, and the same next edit."""
    model, other = tiny_model(family), tiny_model(family)
    edits = edits_for(model, 4)
    first = make_editor(name, model, {"layer": 1, "steps": 3})
    second = make_editor(name, other, {"layer": 1, "steps": 3}, seed=1)
    save_state(first, tmp_path / "empty")
    load_state(second, tmp_path / "empty")
    first.edit(edits[:3])
    save_state(first, tmp_path / "full")
    load_state(second, tmp_path / "full")
    assert torch.equal(losses(model, edits), losses(other, edits))
    for used in (first, second):
        used.edit(edits[3:])
    assert torch.equal(losses(model, edits), losses(other, edits))
    assert first.state_bytes() == second.state_bytes() > 0


@pytest.mark.parametrize("name", ["grace", "defer", "memory"])
def test_a_state_of_something_else_is_refused(bert, name):
    """Another model, layer, site or way of overwriting; the editor keeps what it had."""
    edits = edits_for(bert)
    used = make_editor(name, bert, {"layer": 1, "steps": 2})
    used.edit(edits[:1])
    before, saved = losses(bert, edits), used.state()
    for model, settings, field in (
        (tiny_model("bert", seed=5), {}, "model"),
        (bert, {"layer": 2}, "layer"),
        (bert, {"site": "mlp_in"}, "site"),
        (bert, {"replacement": "last"}, "replacement"),
    ):
        other = make_editor(name, model, {"layer": 1, "steps": 2, **settings})
        other.edit(edits[1:2])
        with pytest.raises(PalimpsestError, match=f"saved for {field} .*Load it into an editor"):
            used.load_state(other.state())
        other.remove()
    assert torch.equal(losses(bert, edits), before)
    used.load_state(saved)
    assert torch.equal(losses(bert, edits), before) and used.lowest_block() == 1


def test_a_codebook_of_another_radius_or_a_torn_state_is_refused(bert):
    """Keys stand so far apart as their radii ask; and nothing is taken over before everything is known to fit."""
    edits = edits_for(bert)
    used, other = grace(bert, radius=1e-3), grace(bert, radius=3.0)
    other.edit(edits[:1])
    with pytest.raises(PalimpsestError, match="saved for radius 3.0, but the editor has 0.001"):
        used.load_state(other.state())
    torn = other.state()
    del torn.tensors["generator"]
    again = grace(bert, radius=3.0)
    with pytest.raises(PalimpsestError, match="lacks 'generator'"):
        again.load_state(torn)
    assert len(used.codebook) == len(again.codebook) == 0


def test_settings_that_make_no_sense(bert):
    for settings, message in (
        ({"radius": 0.0}, "setting radius = 0.0 is not allowed: must be positive"),
        ({"radius": -1.0}, "radius = -1.0"),
        ({"radius": float("nan")}, "radius = nan"),
        ({"radius": None}, "give radius or radius_ratio"),
        ({"radius_ratio": 0.5}, "give radius or radius_ratio"),
        ({"radius": None, "radius_ratio": 0.0}, "radius_ratio = 0.0"),
        ({"steps": 0}, "steps = 0"),
        ({"replacement": "everything"}, "replacement = 'everything'"),
        ({"compat": "official"}, "splits in half"),
        ({"initial": "hot"}, "cold or warm"),
    ):
        with pytest.raises(SettingsError, match=message):
            grace(bert, **settings)
    for settings, message in (
        ({"layer": 7}, "layer 7 does not exist"),
        ({"site": "output.LayerNorm"}, "linear"),
    ):
        with pytest.raises(PalimpsestError, match=message):
            grace(bert, **settings)


def test_half_precision_keeps_wide_keys_and_values():
    model = tiny_model("bert", dtype=torch.bfloat16)
    used = grace(model, radius=1.0)
    edits = edits_for(model, 2)
    before = losses(model, edits)
    used.edit(edits)
    assert used.codebook.keys.dtype == used.codebook.values.dtype == torch.float32
    assert (losses(model, edits) < before).all()


@pytest.mark.parametrize("part", [None, "_radii", "_values", "_keys", "label"])
def test_a_run_s_own_check_sees_what_taking_an_entry_back_does_to_others(monkeypatch, part):
    """C24: of twelve entries the last is changed by every deletion; it is far from the first edits of the stream."""
    model = tiny_model("gpt2")
    edits = [replace(e, identifier=f"e{i}", prompt=f"{e.prompt}{' so' * (i // 6)}")
             for i, e in enumerate([*some_edits(6), *some_edits(6)])]  # fmt: skip
    checks = Checks(model, edits)
    used = grace(model, radius=1e-3, steps=2)
    checks.built(used)
    used.edit(edits)
    assert len(used.codebook) == 12
    delete = used.codebook.delete

    def harmful(entry):
        delete(entry)
        if part == "label":
            used.codebook.taught[-1].label = (1, 2)
        elif part:
            getattr(used.codebook, part)[len(used.codebook) - 1] += 1e-3

    monkeypatch.setattr(used.codebook, "delete", harmful)
    checks.edited(used)
    assert checks.found == {"identity": True, "weights_unchanged": True, "reversible": part is None}
    used.remove()
    checks.removed()
    assert checks.found["unwrapping_restores"]
