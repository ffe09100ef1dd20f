"""A pair about which an editor decides as before is not asked again: the same scores as asking everything."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tiny import CITIES, LABELS, PEOPLE, tiny_model

from palimpsest.editors import make_editor
from palimpsest.edits import Edit
from palimpsest.metrics.retention import Asking, Pool
from palimpsest.models.batching import Batching
from palimpsest.protocols.lifelong_inputs import lifelong_stream

PROMPTS = [
    f"Where does {person} live{', I say' * (n % 3)}?" for n, person in enumerate([*PEOPLE, "Ada", "Ben"])
]


def pools(model, editor, task, room=1 << 30):
    """(asks everything with the whole model, asks only what can have changed)."""
    answers = LABELS if task == "classification" else CITIES
    pairs = [(prompt, answers[n % 4]) for n, prompt in enumerate(PROMPTS)]
    fast = Asking(
        model,
        task,
        editor.lowest_block(),
        Batching(tokens=40),
        site=editor.edited_site(),
        deciding=editor.deciding,
        said_tokens=6,
        room=room,
    )
    return pairs, Pool(Asking(model, task, said_tokens=6), pairs), Pool(fast, pairs)


def ask_singly(pool):
    """Rows of each pass of the first block that three single questions take."""
    seen = []
    block = pool.asking.model.block(0)
    handle = block.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    try:
        for place in (0, 1, 2):
            pool.ask([place])
    finally:
        handle.remove()
    return seen


def test_one_question_is_one_row_where_nothing_is_kept(tmp_path):
    """An editor that never says how it decides is not looked at; one that cannot say is asked once for each group."""
    model = tiny_model("t5")
    settings = {"layer": 1, "loss": "own", "steps": 2}
    edits = [Edit(prompt=prompt, target="Velden", identifier=prompt) for prompt in PROMPTS[:6]]
    how = {"task": "qa", "batching": Batching(), "said_tokens": 4, "room": 0}
    for name in ("ft", "ft_retrain"):
        stream = lifelong_stream(
            make_editor(name, model, settings), edits, tmp_path, run="run", seed=0, **how
        )
        assert ask_singly(stream.items) == [1, 1, 1]
    learns = {"layer": 1, "site": "mlp_out", "compat": "official", "split": "half", "steps": 1}
    for editor in (make_editor("ft", model, settings), make_editor("grace", model, learns)):
        _, _, pool = pools(model, editor, "qa", room=0)
        pool = Pool(replace(pool.asking, batching=Batching()), pool.pairs)
        assert ask_singly(pool) == [len(PROMPTS), 1, 1, 1]


@pytest.mark.parametrize("room", [1 << 30, 0])
@pytest.mark.parametrize("family", ["t5", "bert"])
@pytest.mark.parametrize("name", ["grace", "defer", "memory"])
def test_same_scores_after_every_edit(name, family, room):
    """Edits, one of them again with another answer, one taken back: whatever changes is asked again."""
    model = tiny_model(family)
    task = "qa" if family == "t5" else "classification"
    more = {"radius": 2.0, "steps": 150} if name == "grace" else {}
    editor = make_editor(name, model, {"layer": 1, "steps": 12, "replacement": "all", **more})
    pairs, plain, fast = pools(model, editor, task, room)
    seen = [plain.ask()]
    try:
        assert fast.ask() == seen[0]
        for (prompt, answer), other in ((pairs[0], 0), (pairs[3], 0), (pairs[0], 1), (pairs[5], 0)):
            target = pairs[1][1] if other else answer
            editor.edit([Edit(prompt=prompt, target=target, identifier=prompt)])
            seen.append(plain.ask())
            assert fast.ask() == seen[-1]
            assert fast.ask([5, 0, 2]) == [seen[-1][place] for place in (5, 0, 2)]
        if name == "grace":
            editor.undo(pairs[5][0])
            seen.append(plain.ask())
            assert fast.ask() == seen[-1]
    finally:
        editor.remove()
    assert fast.ask() == seen[0]
    assert any(one != seen[0] for one in seen), "no edit changed anything"


def test_only_changed_pairs_are_asked(monkeypatch):
    """GRACE with small radii: an edit asks for one pair, a second look for none."""
    model = tiny_model("t5")
    editor = make_editor("grace", model, {"layer": 1, "site": "mlp_out", "steps": 3, "radius": 1e-3})
    pairs, _, fast = pools(model, editor, "qa")
    asked, judge = [], Pool._judge
    monkeypatch.setattr(
        Pool,
        "_judge",
        lambda pool, group, rows: asked.extend(group.places[row] for row in rows) or judge(pool, group, rows),
    )
    try:
        fast.ask()
        assert sorted(asked) == list(range(len(pairs)))
        asked.clear()
        fast.ask()
        assert asked == []
        editor.edit([Edit(prompt=pairs[4][0], target=pairs[4][1])])
        fast.ask()
        assert asked == [4]
        asked.clear()
        fast.ask()
        assert asked == []
        editor.codebook.values[0] += 0.5  # trained again: the same key, another value
        fast.ask()
        assert asked == [4]
    finally:
        editor.remove()


def test_an_editor_that_learns_by_being_asked_is_asked_everything():
    """As released, with one step: every pass may add keys (Q8)."""
    model = tiny_model("t5")
    settings = {"layer": 1, "site": "mlp_out", "compat": "official", "split": "half"}
    for steps, known in ((1, False), (2, True)):
        editor = make_editor("grace", model, {**settings, "steps": steps})
        _, _, fast = pools(model, editor, "qa")
        fast.ask()
        assert all((group.decided is not None) == known for group in fast._groups)
