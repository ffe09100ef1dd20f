"""The lifelong protocol: who is edited, which rows come when, retention asked in batches, and going on after a kill."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch
from tiny import CITIES, LABELS, PEOPLE, breaking_off, tiny_model

from palimpsest import results
from palimpsest.editors.base import Editor, EditorState, FailedEdit
from palimpsest.editors.grace import Grace
from palimpsest.edits import Edit, write_edits
from palimpsest.errors import DataError, SettingsError
from palimpsest.files import write_json, write_text
from palimpsest.metrics.retention import MAIN_SCORE, Asking, Pool, Scores, averages
from palimpsest.models.batching import Batching
from palimpsest.models.objectives import say
from palimpsest.protocols import lifelong, protocol
from palimpsest.protocols.checkpoints import Checkpoints, seed_everything
from palimpsest.protocols.lifelong_inputs import (
    AskedProbe,
    LifelongStream,
    cut_edits,
    cut_probes,
    read_probes,
    task_of,
)
from palimpsest.runs.inputs import RunFiles
from palimpsest.runs.run import execute

FAMILY = {"qa": "t5", "classification": "bert", "generation": "gpt2"}
PROMPTS = [
    f"Where does {person} live{' now, I say' * (n % 3)}?" for n, person in enumerate([*PEOPLE, "Ada", "Mira"])
]


class Noise(Editor):
    """Adds noise to one block, drawn from the global source; knows which block it changes, or says that it does not."""

    name, knows, fails, dies_at, calls = "noise", True, (), None, 0

    def __init__(self, model, settings=None, statistics=None, seed=0):
        super().__init__(model, settings, statistics, seed)
        self.weight = model.mlp_out(2).weight
        self.untouched = self.weight.detach().clone()

    def apply(self, batch, record):
        self.calls += 1
        if self.calls == self.dies_at:
            raise KeyboardInterrupt
        # Not from `random`: type checks of the tests draw from it, more often where more functions are called.
        self.weight.data += 0.1 * torch.rand(()) * torch.randn_like(self.weight)
        return [
            FailedEdit(edit.identifier, "not this one") for edit in batch if edit.identifier in self.fails
        ]

    def lowest_block(self):
        return 2 if self.knows else None

    def state(self):
        return EditorState({"weight": self.weight.detach()})

    def load_state(self, state):
        self.weight.data.copy_(state.tensors["weight"])

    def remove(self):
        self.weight.data.copy_(self.untouched)

    def state_bytes(self):
        return 100


def items(task, n=6):
    answers = LABELS if task == "classification" else CITIES
    return [
        Edit(
            prompt=PROMPTS[i],
            target=answers[i % 4],
            identifier=f"item-{i}",
            rephrasings=(f"Say: {PROMPTS[i]}",),
        )
        for i in range(n)
    ]


def probes(task):
    answers = LABELS if task == "classification" else CITIES
    asked = [("upstream", "Who is Jon?", 0, None), ("upstream", "Who is Mira Sorn to you?", 1, None)]
    asked += [("holdout", "Where is Ada?", 1, "item-0"), ("accurate", "Ben lives in", 2, None)]
    return [AskedProbe(split, prompt, answers[number], edit) for split, prompt, number, edit in asked]


def stream(
    task="qa", n=6, snapshot_every=2, edits=None, asking=None, edit_always=None, until=None, **attributes
):
    seed_everything(5)
    editor = Noise(tiny_model(FAMILY[task]))
    for name, value in attributes.items():
        setattr(editor, name, value)
    how = Asking(editor.model, task, editor.lowest_block(), said_tokens=6, **(asking or {}))
    chosen = edits or items(task, n)
    return LifelongStream(
        "a-run", 3, editor, how, chosen, probes(task), snapshot_every, edit_always, None, until
    )


def run(the_stream, checkpoints=None):
    return protocol("lifelong")(the_stream, checkpoints)


def frame_of(progress, **wanted):
    frame = pd.DataFrame(progress.metrics)
    for name, value in wanted.items():
        frame = frame[frame[name] == value]
    return frame


@pytest.mark.parametrize("task", FAMILY)
def test_rows_of_every_task(task, tmp_path):
    progress = run(stream(task, n=5))
    score = MAIN_SCORE[task]
    assert sorted(set(pd.DataFrame(progress.metrics).step)) == [0, 2, 4, 5]
    assert frame_of(progress, split="upstream", metric=score).step.tolist() == [0, 2, 4, 5]
    assert frame_of(progress, split="stream", metric=score)[["step", "n"]].values.tolist() == [[0, 5]]
    err = frame_of(progress, split="edit", metric=score)
    assert err.n.tolist() == err.n_edits.tolist() and 0 not in err.step.tolist()
    seen = frame_of(progress, split="stream", metric="items_seen")
    assert seen.value.tolist() == [0, 2, 4, 5]
    made = frame_of(progress, split="stream", metric="edits_made")
    assert made.value.tolist() == made.n_edits.tolist()
    records = pd.DataFrame(progress.records)
    success = records[records.metric == "edit_success"]
    assert success.order.tolist() == progress.made and len(progress.edit_seconds) == len(progress.made)
    assert (success.step == success.order + 1).all() and set(success.split) == {"stream"}
    held = records[(records.split == "holdout") & (records.metric == score)]
    assert held.step.tolist() == [0, 5] and held.edit.tolist() == ["item-0"] * 2
    for row in err.itertuples():
        mine = records[(records.step == row.step) & (records.split == "edit") & (records.metric == score)]
        assert row.value == pytest.approx(mine.value.mean())
    if task == "generation":
        assert progress.made == [0, 1, 2, 3, 4] and not len(frame_of(progress, metric="errors"))
        assert len(frame_of(progress, split="accurate", metric="perplexity_median")) == 4
    results.write_metrics(tmp_path / "metrics.parquet", progress.metrics)
    results.write_records(tmp_path / "records.parquet", progress.records)
    assert [look["step"] for look in progress.history()["looks"]] == [0, 2, 4, 5]
    assert all(entry["seconds_unedited"] > 0 for entry in progress.history()["forward"])


def answered_right(task="qa"):
    """Items of which the second and fourth are what the unedited model says."""
    edits, model = items(task, 5), tiny_model(FAMILY[task])
    for number in (1, 3):
        (said,) = say(model, [edits[number].prompt], 6)
        edits[number] = Edit(prompt=edits[number].prompt, target=said.text, identifier=f"item-{number}")
    return edits


def test_only_errors_are_edited():
    edits = answered_right("classification")
    quiet = stream("classification", edits=edits)
    quiet.editor.apply = lambda batch, record: []  # leaves the model as it is
    wrong = [place for place, scores in enumerate(quiet.items.ask()) if not scores.right]
    progress = run(quiet)
    assert progress.made == wrong and not {1, 3} & set(wrong)
    assert progress.done == 5 and progress.applied == [f"item-{place}" for place in wrong]
    errors = frame_of(progress, split="stream", metric="errors", step=5).iloc[0]
    assert (errors.value, errors.n) == (len(wrong), 5)
    always = run(stream("classification", edits=edits, edit_always=True))
    assert always.made == [0, 1, 2, 3, 4] and always.asked == 5 and always.wrong <= 5


def test_the_last_item_is_looked_at_even_when_it_is_right():
    edits = answered_right("classification")[:4]
    quiet = stream("classification", edits=edits, snapshot_every=None)
    quiet.editor.apply = lambda batch, record: []
    progress = run(quiet)
    assert 3 not in progress.made
    assert sorted(set(pd.DataFrame(progress.metrics).step)) == [0, 4]


def test_a_failed_edit_is_noted_and_still_judged():
    progress = run(stream(n=3, fails=("item-1",), edit_always=True))
    assert progress.failed == [{"edit": "item-1", "order": 1, "step": 2, "reason": "not this one"}]
    assert progress.made == [0, 1, 2] and progress.applied == ["item-0", "item-2"]
    assert frame_of(progress, split="edit", metric="failed_edits", step=3).value.tolist() == [1]
    told = {(row["order"], row["failed"], row["split"]) for row in progress.records if row["failed"]}
    assert told == {
        (1, "not this one", split) for split in ("edit", "stream")
    }  # a probe's number is no edit's


@pytest.mark.parametrize("task", FAMILY)
def test_every_way_of_asking_gives_the_same_rows(task):
    """States kept between looks, run again at each look, the whole model, and one by one."""
    ways = [
        run(stream(task, edit_always=True)),
        run(stream(task, edit_always=True, asking={"room": 0})),
        run(stream(task, edit_always=True, knows=False)),
        run(stream(task, edit_always=True, knows=False, asking={"batching": Batching(tokens=1)})),
    ]
    first, *others = [pd.DataFrame(way.metrics) for way in ways]
    assert len(first) > 30
    for other in others:
        pd.testing.assert_frame_equal(first, other, rtol=1e-4)


@pytest.mark.parametrize("dies_at", [2, 3, 5])
def test_a_broken_run_ends_with_the_same_rows(tmp_path, dies_at):
    whole = run(stream(edit_always=True))
    folder = Checkpoints(tmp_path, {"run": 1}, every_batch=True)
    with pytest.raises(KeyboardInterrupt):
        run(stream(edit_always=True, dies_at=dies_at), folder)
    again = stream(edit_always=True)
    torch.manual_seed(99)
    progress = run(again, Checkpoints(tmp_path, {"run": 1}, every_batch=True))
    assert again.editor.calls == 6 - (dies_at - 1)
    assert progress.metrics == whole.metrics and progress.records == whole.records
    assert progress.made == whole.made and len(progress.edit_seconds) == 6


def test_a_stream_until_so_many_edits_counts_edits_and_not_items(tmp_path, monkeypatch, caplog):
    """Every second item is right: looks after 2 edits and at the third, which ends the stream; broken off, the same."""
    monkeypatch.setattr(lifelong, "_answered", lambda stream, progress, place: place % 2 == 0)
    whole = run(stream(n=8, until=3))
    assert whole.made == [1, 3, 5] and [look["step"] for look in whole.looks] == [0, 4, 6]
    assert {row["step"] for row in whole.records if row["split"] == "upstream"} == {0, 6}  # 6: the end
    with pytest.raises(KeyboardInterrupt):
        run(stream(n=8, until=3, dies_at=3), Checkpoints(tmp_path, {"run": 1}, every_batch=True))
    again = run(stream(n=8, until=3), Checkpoints(tmp_path, {"run": 1}, every_batch=True))
    assert again.metrics == whole.metrics and again.records == whole.records and not caplog.records
    assert run(stream(n=8, until=5)).made == [1, 3, 5, 7] and "5 edits were asked for" in caplog.text
    with pytest.raises(SettingsError, match="until_edits is 9; expected a whole number of 1 to the 8 items"):
        stream(n=8, until=9)


def test_pool_answers_in_the_order_of_the_question():
    model = tiny_model("t5")
    pool = Pool(
        Asking(model, "qa", 1, Batching(tokens=40), said_tokens=5), [(prompt, "Velden") for prompt in PROMPTS]
    )
    everything = pool.ask()
    assert len(pool) == len(PROMPTS) and pool.ask([5, 2, 2]) == [everything[n] for n in (5, 2, 2)]


def test_averages_drop_what_is_not_a_number():
    scores = [Scores({"perplexity": value}) for value in (2.0, None, 10.0, 3.0)]
    assert averages(scores) == [
        ("perplexity", 5.0, 3),
        ("perplexity_median", 3.0, 3),
        ("perplexity_dropped", 1.0, 4),
    ]
    assert averages([]) == []


def test_a_decoder_is_judged_on_as_many_tokens_as_the_answer_has():
    model = tiny_model("gpt2")
    (said,) = say(model, ["Ada Tolvek lives in the city of"], 3)
    pool = Pool(Asking(model, "qa", 0), [("Ada Tolvek lives in the city of", said.text)])
    (scores,) = pool.ask()
    assert scores.right and scores.values["exact_match"] == 1.0


def test_bad_input():
    with pytest.raises(SettingsError, match="no task 'chess'"):
        Asking(tiny_model("gpt2"), "chess")
    with pytest.raises(SettingsError, match="kind encoder, but tiny-gpt2 is of kind decoder"):
        Asking(tiny_model("gpt2"), "classification")
    with pytest.raises(SettingsError, match="snapshot_every"):
        stream(snapshot_every=0)
    with pytest.raises(DataError, match="'class 9'.*class 0, class 1"):
        stream("classification", edits=[Edit(prompt="Where?", target="class 9")])


def test_probes_are_read_and_refused(tmp_path):
    edits = items("qa", 2)
    derived = read_probes(tmp_path, edits)  # no file: rephrasings are held out
    assert [(probe.split, probe.edit) for probe in derived] == [("holdout", "item-0"), ("holdout", "item-1")]
    good = {"set": "upstream", "prompt": "Who?", "answer": "Ada", "edit": None}
    other = {
        "set": "holdout",
        "prompt": "Who?",
        "answer": "Ada",
        "edit": "item-7",
    }  # one fixed set, whatever the run edits
    write_text(tmp_path / "probes.jsonl", f"{json.dumps(good)}\n{json.dumps(other)}\n")
    assert read_probes(tmp_path, edits) == [
        AskedProbe("upstream", "Who?", "Ada", None),
        AskedProbe("holdout", "Who?", "Ada", "item-7"),
    ]
    for change, message in (
        ({"set": "future"}, "line 2, field 'set'.*'future'"),
        ({"answer": " "}, "line 2, field 'answer'.*empty"),
        ({"prompt": None}, "line 2, field 'prompt'"),
    ):
        write_text(tmp_path / "probes.jsonl", f"{json.dumps(good)}\n{json.dumps(good | change)}\n")
        with pytest.raises(DataError, match=message):
            read_probes(tmp_path, edits)
    write_text(tmp_path / "probes.jsonl", "{\n")
    with pytest.raises(DataError, match=r"probes\.jsonl, record line 1: not valid JSON"):
        read_probes(tmp_path, edits)


def test_the_task_is_found(tmp_path):
    bert, t5 = tiny_model("bert"), tiny_model("t5")
    assert task_of(tmp_path, None, bert) == "classification" and task_of(tmp_path, None, t5) == "qa"
    write_json(tmp_path / "manifest.json", {"task": "generation"})
    assert task_of(tmp_path, None, tiny_model("gpt2")) == "generation"
    with pytest.raises(SettingsError, match="option task is 'qa'"):
        task_of(tmp_path, "qa", t5)


def test_long_texts_are_cut(tmp_path):
    model = tiny_model("bert")
    (edit,) = cut_edits(
        model, [Edit(prompt=f"{'Mira lives in Velden. ' * 40}", target="class 1")], "classification"
    )
    assert len(model.tokenizer(edit.prompt)["input_ids"]) <= model.context
    gpt2 = tiny_model("gpt2")
    long = AskedProbe("upstream", "Mira lives", "in Velden and " * 40)
    (probe,) = cut_probes(gpt2, [long], "generation")
    assert len(probe.answer) < len(long.answer)
    Pool(Asking(gpt2, "generation"), [(probe.prompt, probe.answer)]).ask()
    with pytest.raises(DataError, match="the prompt alone fills"):
        cut_probes(gpt2, [AskedProbe("upstream", "Mira lives in Velden. " * 40, "Yes")], "generation")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model and a lifelong data set, as the workflow lays them out."""
    folder = tmp_path_factory.mktemp("world")
    model = tiny_model("t5")
    model.network.save_pretrained(folder / "model")
    model.tokenizer.save_pretrained(folder / "model")
    write_edits(folder / "data" / "edits.jsonl", items("qa", 8))
    lines = [{"set": p.split, "prompt": p.prompt, "answer": p.answer, "edit": p.edit} for p in probes("qa")]
    write_text(folder / "data" / "probes.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    write_json(folder / "data" / "manifest.json", {"task": "qa"})
    return folder


def spec(**changes):
    options = {"sample": "file_order", "checkpoint_every_batch": True, **changes.pop("options", {})}
    base = {"run": "toy", "protocol": "lifelong", "dataset": "toy", "model": "tiny", "editor": "ft"}
    settings = {
        "layer": 2,
        "steps": 20,
        "learning_rate": 1e-2,
        "epsilon": None,
        "loss": "own",
        "stop": "argmax",
    }
    return {
        **base,
        "settings": settings,
        "edits": 6,
        "batch_size": 1,
        "snapshot_every": 3,
        "options": options,
    } | changes


def test_a_whole_run(world, tmp_path, monkeypatch):
    from palimpsest.editors import editor_class

    execute(spec(), 0, RunFiles(world / "model", world / "data"), tmp_path / "whole")
    content = results.read_run(tmp_path / "whole")
    assert content["spec"]["options"]["sample"] == "file_order" and content["edits_requested"] == 6
    assert set(content["seconds"]) == {"ask", "edit", "evaluate", "total"}
    history = content["history"]
    assert len(history["edit_seconds"]) == len(history["edited"]) == content["edits_applied"]
    edits, upstream = (
        [one for one in history["examples"] if one["split"] == split] for split in ("edit", "upstream")
    )
    assert 1 <= len(edits) <= 3 and len(upstream) >= 1
    assert all({"prompt", "answer", "before", "after"} <= set(one) for one in edits + upstream)
    assert any(one["before"] != one["after"] for one in edits)
    metrics = results.read_metrics(tmp_path / "whole")
    success = metrics[(metrics.metric == "edit_success") & (metrics.step == 6)]
    before = metrics[(metrics.split == "stream") & (metrics.metric == "token_f1")]
    assert success.value.iloc[0] > before.value.iloc[0]
    kind = editor_class("ft")
    monkeypatch.setattr(kind, "apply", breaking_off(kind.apply, 4))
    with pytest.raises(KeyboardInterrupt):
        execute(spec(), 0, RunFiles(world / "model", world / "data"), tmp_path / "broken")
    execute(spec(), 0, RunFiles(world / "model", world / "data"), tmp_path / "broken")
    for read in (results.read_metrics, results.read_records):
        pd.testing.assert_frame_equal(read(tmp_path / "broken"), read(tmp_path / "whole"), check_exact=True)


def test_the_plain_way_gives_the_same_rows(world, tmp_path, monkeypatch):
    """GRACE with its shortcuts (values trained ahead, written-out blocks, only changed pairs asked) and with none of them."""
    used = []
    monkeypatch.setattr(Grace, "prepare", lambda self, coming: used.append(coming))
    monkeypatch.setattr(
        Grace,
        "deciding",
        (lambda plain: lambda self, rows: used.append(rows) or plain(self, rows))(Grace.deciding),
    )
    grace = spec(editor="grace", settings={"layer": 2, "radius": 1.0, "steps": 5})
    execute(grace, 0, RunFiles(world / "model", world / "data"), tmp_path / "fast")
    assert used
    used.clear()
    plain = grace | {"options": {**grace["options"], "plain": True}}
    execute(plain, 0, RunFiles(world / "model", world / "data"), tmp_path / "plain")
    assert not used
    fast, slow = (results.read_metrics(tmp_path / name) for name in ("fast", "plain"))
    pd.testing.assert_frame_equal(fast, slow, rtol=1e-4, atol=1e-5)


def test_a_run_is_refused(world, tmp_path):
    for the_spec, message in (
        (spec(batch_size=2), "one by one, give 1"),
        (spec(options={"task": "chess"}), "option 'task' is 'chess'"),
        (spec(options={"task": "generation"}), "is of the task 'qa'"),
        (spec(edits=9), "9 edits are requested, but only 8"),
    ):
        with pytest.raises((SettingsError, DataError), match=message):
            execute(the_spec, 0, RunFiles(world / "model", world / "data"), tmp_path)
    assert not list(tmp_path.iterdir())
