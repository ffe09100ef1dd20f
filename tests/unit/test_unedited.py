"""What an unedited model answers, kept for other runs: the same scores to the bit, and no pass of the model."""

from __future__ import annotations

import contextlib
import math

import pytest
from tiny import CITIES, LABELS, PEOPLE, some_edits, tiny_model

from palimpsest import results
from palimpsest.editors import make_editor
from palimpsest.edits import write_edits
from palimpsest.metrics.asked import AskedPairs
from palimpsest.metrics.retention import Asking, Pool
from palimpsest.metrics.unedited import Unedited
from palimpsest.models.batching import Batching
from palimpsest.runs.inputs import RunFiles
from palimpsest.runs.run import execute

FAMILY = {"qa": "t5", "classification": "bert", "generation": "gpt2"}


@contextlib.contextmanager
def passes(model):
    """How often the model's first block was run."""
    seen = []
    handle = model.block(0).register_forward_hook(lambda *_: seen.append(1))
    try:
        yield seen
    finally:
        handle.remove()


def pairs_for(family):
    answers = LABELS if family == "bert" else CITIES
    return [
        (f"Where does {person} live{', I say' * (i % 3)}?", answers[i % 4]) for i, person in enumerate(PEOPLE)
    ]


@pytest.mark.parametrize("task", FAMILY)
def test_a_pool_is_asked_once_for_all_runs(task, tmp_path, caplog):
    model, kept = tiny_model(FAMILY[task]), Unedited(tmp_path)
    pairs, settings = pairs_for(FAMILY[task]), {"lowest": 2, "batching": Batching(tokens=40)}

    def look(**more):  # names in their order: rows are written in it
        with passes(model) as seen:
            scores = Pool(Asking(model, task, **settings | {"unedited": kept} | more), pairs).ask_unedited()
        return [(list(one.values.items()), one.right) for one in scores], len(seen)

    alone, many = look(unedited=None)
    assert many > 0 and not list(tmp_path.iterdir())
    assert look() == (alone, many) and look() == (alone, 0)
    assert look(lowest=1)[1] > 0 and look(batching=Batching(tokens=60))[1] > 0, "asked in another way"
    for file in tmp_path.iterdir():
        file.write_text('{"values": [[["token_f1", "much"]]], "right": [true]}')
    assert look() == (alone, many) and "the model is asked again" in caplog.text


def test_decisions_are_noted_with_answers_that_another_run_gave(tmp_path, monkeypatch):
    """GRACE: after an edit only pairs are asked about which it decides anew, as after a first look of one's own."""
    model, pairs = tiny_model("t5"), pairs_for("t5")
    settings = {"layer": 2, "site": "mlp_out", "radius": 3.0, "steps": 3}
    found, judged = [], []
    plain = Pool._judge
    monkeypatch.setattr(
        Pool, "_judge", lambda self, group, rows: judged.append(len(rows)) or plain(self, group, rows)
    )
    for kept in (None, Unedited(tmp_path), Unedited(tmp_path)):
        editor = make_editor("grace", model, settings, seed=1)
        asking = Asking(
            model,
            "qa",
            lowest=editor.lowest_block(),
            site=editor.edited_site(),
            deciding=editor.deciding,
            unedited=kept,
        )
        pool = Pool(asking, pairs)
        first = pool.ask_unedited()
        asked_first = sum(judged)
        judged.clear()
        assert not editor.edit(some_edits(1)).failed
        found.append((first, pool.ask(), sum(judged)))
        judged.clear()
        editor.remove()
        assert asked_first == (0 if len(found) == 3 else len(pairs))
    assert found[0] == found[1] == found[2]
    assert found[0][0] != found[0][1] or found[0][2] == 0


def test_a_memory_that_speaks_before_its_first_edit_shares_nothing(tmp_path):
    """Neither what it says nor what the model says, whoever asks first; nor does a run that takes no shortcut."""
    model = tiny_model("t5")
    saved_lifelong_world(tmp_path, model)
    rows = {}
    for order in (("memory", "defer"), ("defer", "memory")):
        for name in order:
            settings = {"layer": 2, "steps": 1} | ({"from_start": True} if name == "memory" else {})
            answers = tmp_path / f"answers-{order[0]}"
            rows[order, name] = first_look(tmp_path, name, settings, answers)
            kept = len(
                list(answers.glob("*.json"))
            )  # of what is asked first: hold-out, upstream and the stream
            assert kept == (0 if (name, order[0]) == ("memory", "memory") else 3)
    for name in ("memory", "defer"):
        assert (
            rows[("memory", "defer"), name]
            == rows[("defer", "memory"), name]
            == first_look(
                tmp_path,
                name,
                {"layer": 2, "steps": 1} | ({"from_start": True} if name == "memory" else {}),
                None,
            )
        )
    assert rows[("defer", "memory"), "memory"] != rows[("defer", "memory"), "defer"]
    first_look(tmp_path, "defer", {"layer": 2, "steps": 1}, tmp_path / "plain", plain=True)
    assert not (tmp_path / "plain").exists()


def saved_lifelong_world(folder, model):
    model.network.save_pretrained(folder / "model")
    model.tokenizer.save_pretrained(folder / "model")
    write_edits(folder / "data" / "edits.jsonl", some_edits(4))


def first_look(folder, editor, settings, answers, plain=False):
    spec = {
        "run": editor, "protocol": "lifelong", "dataset": "d", "model": "m", "editor": editor, "settings": settings, "edits": 4,
        "batch_size": 1, "options": {"task": "qa", "plain": plain},
    }  # fmt: skip
    out = folder / "out"
    execute(spec, 0, RunFiles(folder / "model", folder / "data", answers=answers), out)
    metrics = results.read_metrics(out)
    return metrics[metrics.step == 0].drop(columns="run").to_dict("records")


@pytest.mark.parametrize("family", ["gpt2", "t5", "bert"])
def test_questions_about_simultaneous_edits_are_asked_once(family, tmp_path):
    model, kept, pairs = tiny_model(family), Unedited(tmp_path), pairs_for(family)
    alone = AskedPairs(model, pairs, Batching(tokens=40))
    AskedPairs(model, pairs, Batching(tokens=40), unedited=kept)
    with passes(model) as seen:
        again = AskedPairs(model, pairs, Batching(tokens=40), unedited=kept)
        assert not seen and again.before(pairs) == alone.before(pairs)
    for layer in range(model.n_blocks):
        model.mlp_out(layer).weight.data.mul_(-20.0)
    now = alone.now(pairs)
    assert again.now(pairs) == now and not all(said.unchanged for said in now)


def test_what_is_too_large_or_no_number_is_not_kept(tmp_path):
    """Log-probabilities for the drift, and losses of a model that gives none."""
    model, pairs = tiny_model("gpt2"), pairs_for("gpt2")
    AskedPairs(model, pairs, drift=True, unedited=Unedited(tmp_path))
    model.final_norm.weight.data.fill_(math.nan)
    said = AskedPairs(model, pairs, unedited=Unedited(tmp_path)).before(pairs)
    AskedPairs(tiny_model("gpt2"), [], unedited=Unedited(tmp_path))  # nothing asked, nothing kept
    assert all(math.isnan(one.loss) for one in said) and not list(tmp_path.iterdir())
