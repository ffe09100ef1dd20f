"""Simultaneous edits: batches on the untouched model, what is asked out of scope, rows, resuming, whole runs."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace

import pandas as pd
import pytest
import torch
from tiny import CITIES, LABELS, PEOPLE, tiny_model

from palimpsest import results
from palimpsest.editors.base import Editor, EditorState
from palimpsest.edits import UNSETTLED, Edit, Probe, write_edits
from palimpsest.errors import DataError, SettingsError
from palimpsest.files import write_json
from palimpsest.metrics.asked import PairAnswer
from palimpsest.metrics.evaluation import Question
from palimpsest.metrics.success import LARGEST, sentiment_success
from palimpsest.models.batching import Batching
from palimpsest.protocols import protocol
from palimpsest.protocols.checkpoints import Checkpoints
from palimpsest.protocols.simultaneous import record_values
from palimpsest.protocols.simultaneous_inputs import Simultaneous, _Pool
from palimpsest.runs.inputs import RunFiles
from palimpsest.runs.run import execute


@dataclass(frozen=True)
class CountingSettings:
    scale: float = 0.4


class Counting(Editor):
    """Disturbs one matrix, the more the larger the batch, and notes what it was given and on which model."""

    name, Settings = "counting", CountingSettings
    dies_at: int | None = None

    def __init__(self, model, settings=None, statistics=None, seed=0):
        super().__init__(model, settings or CountingSettings(), statistics, seed)
        self.weight = dict(model.network.named_parameters())[WEIGHTS[model.kind]]
        self.untouched = self.weight.detach().clone()
        self.batches: list[tuple[int, bool]] = []

    def apply(self, batch, record):
        if len(self.batches) + 1 == self.dies_at:
            raise KeyboardInterrupt
        self.batches.append((len(batch), torch.equal(self.weight, self.untouched)))
        generator = torch.Generator().manual_seed(sum(len(edit.prompt) for edit in batch))
        self.weight.data += (
            self.settings.scale * len(batch) * torch.randn(self.weight.shape, generator=generator)
        )
        return []

    def state(self):
        return EditorState({"weight": self.weight.detach()}, {})

    def load_state(self, state):
        self.weight.data.copy_(state.tensors["weight"])

    def state_bytes(self):
        return 7

    def remove(self):
        self.weight.data.copy_(self.untouched)


WEIGHTS = {
    "decoder": "transformer.h.1.mlp.c_proj.weight",
    "encoder": "bert.encoder.layer.1.output.dense.weight",
    "encoder_decoder": "encoder.block.1.layer.1.DenseReluDense.wo.weight",
}


def facts(classes=None) -> list[Edit]:
    """Two relations of each person; "near" in both ways, one own probe, one implied question."""
    edits = []
    for n, person in enumerate(PEOPLE):
        for m, way in enumerate(("{} lives in the city of", "The mother of {} was born in")):
            target, truth = (classes or CITIES)[(n + m) % 4], (classes or CITIES)[(n + m + 1) % 4]
            edits.append(
                Edit(
                    way.format(person),
                    target,
                    person,
                    f"e-{n}-{m}",
                    truth,
                    rephrasings=(f"I say so: {way.format(person)}", f"Therefore {way.format(person)}"),
                    locality=(Probe(f"The city number {n} was", truth, "unrelated"),),
                    portability=(
                        Probe(f"Who lives there, {n}?", target, "implied"),
                        Probe("x", target, "one_hop"),
                    ),
                    relation=way,
                )
            )
    return edits


def stream(sizes, family="gpt2", edits=None, **more):
    edits = edits or facts(LABELS if family == "bert" else None)
    editor = Counting(tiny_model(family))
    return Simultaneous("toy", 0, editor, edits[:8], edits[8:], sizes, batching=Batching(tokens=400), **more)


@pytest.mark.parametrize("family", ["gpt2", "t5", "bert"])
def test_every_batch_meets_the_untouched_model_and_every_k_has_its_rows(family):
    toy = stream([4, 1, 8], family)
    progress = protocol("simultaneous")(toy)
    assert toy.editor.batches == [(1, True)] * 8 + [(4, True)] * 2 + [(8, True)]
    table = pd.DataFrame(progress.metrics)
    results.check_rows(progress.metrics, results.METRICS_SCHEMA)
    results.check_rows(progress.records, results.RECORDS_SCHEMA)
    assert table.groupby("n_edits")["step"].unique().map(list).to_dict() == {0: [0], 1: [8], 4: [10], 8: [11]}
    for k in (1, 4, 8):
        rows = table[table["n_edits"] == k].set_index(["split", "metric"])
        for split in ("edit", "rephrase", "implied", "in_scope"):
            assert rows.loc[(split, "edit_success"), "n"] == 8
        for split in ("near", "far", "unrelated", "outside"):
            right = rows.loc[split]["value"]
            assert {"drawdown", "accuracy_drop", "right_before"} <= set(right.index)
            assert (
                0 <= right["right_before"] - right["accuracy_drop"] <= 1
            )  # the share that is right after the edits
        assert ("outside", "perplexity_rise") in rows.index or family == "bert"
        assert rows.loc[("edit", "failed_edits"), "value"] == 0
    assert set(table.loc[table["n_edits"] == 0, "split"]).isdisjoint({"near", "far", "outside"})
    assert progress.history()["edit_seconds"].keys() == {"1", "4", "8"}
    # All in scope together: the mean over the record's own questions, one-hop consequences left out.
    records = pd.DataFrame(progress.records)
    mine = records[
        (records["edit"] == "e-0-0") & (records["n_edits"] == 4) & (records["metric"] == "edit_success")
    ]
    value = mine.set_index("split")["value"]
    assert value["in_scope"] == pytest.approx((value["edit"] + 2 * value["rephrase"] + value["implied"]) / 4)


def test_a_fact_of_the_batch_is_never_asked_out_of_scope():
    toy = stream([1, 4, 8], outside=3)
    relations = {text: e for e in facts() for text in (e.prompt, *e.rephrasings)}
    seen = {"near": 0, "far": 0}
    for batch in toy.rounds:
        made = [toy.edits[order] for order in batch.orders]
        facts_made = {(edit.subject, edit.relation) for edit in made}
        for question in batch.questions:
            if question.split not in seen:
                continue
            asked, edit = relations.get(question.prompt), toy.edits[question.order]
            if asked is None:  # the implied question of an unedited fact
                continue
            assert (asked.subject, asked.relation) not in facts_made
            near = asked.relation == edit.relation or asked.subject == edit.subject
            assert near == (question.split == "near")
            seen[question.split] += 1
    assert min(seen.values()) > 10


def test_a_probe_that_names_another_edited_subject_is_not_asked():
    """It may ask for the very fact that the other edit changes, in words that no record has."""
    edits = facts()
    probes = (
        Probe(f"Where is {PEOPLE[1]} at home", "Velden", "near"),
        Probe("The city was", "Velden", UNSETTLED),
    )
    edits[0] = replace(edits[0], locality=probes)
    for size, asked in ((1, probes), (4, probes[1:])):  # the last two are about the second person
        toy = stream([size], edits=edits)
        first = [q.prompt for q in toy.rounds[0].questions if q.order == 0 and q.split == "near"]
        assert [text for text in first if text in [p.prompt for p in probes]] == [p.prompt for p in asked]
        unknown = {q.prompt for batch in toy.rounds for q in batch.questions if not q.known}
        assert unknown == {probes[1].prompt}  # whether its answer is right is not judged, whether it stays is


def test_draws_are_disjoint_nested_and_limited():
    toy = stream([1, 2, 4], draws=2)
    made = {k: [toy.edits[o].identifier for b in toy.rounds if b.k == k for o in b.orders] for k in (1, 2, 4)}
    assert {k: len(names) for k, names in made.items()} == {1: 2, 2: 4, 4: 8}
    assert all(len(set(names)) == len(names) for names in made.values())
    assert set(made[1]) < set(made[2]) < set(made[4])
    again = stream([4, 2, 1], draws=2)
    assert [b.questions for b in again.rounds] == [b.questions for b in toy.rounds]


@pytest.mark.parametrize("sizes", [[], [0], [9], [2, 2], [True]])
def test_impossible_sizes_are_named(sizes):
    with pytest.raises(SettingsError, match="batch_sizes"):
        stream(sizes)


@pytest.mark.parametrize("dies_at", [3, 9, 10])
def test_a_broken_run_ends_with_the_same_rows(tmp_path, dies_at):
    whole = protocol("simultaneous")(stream([1, 4]))
    broken = stream([1, 4])
    broken.editor.dies_at = dies_at
    keep = {"key": {"run": "toy"}, "every_batch": True}
    with pytest.raises(KeyboardInterrupt):
        protocol("simultaneous")(broken, Checkpoints(tmp_path, **keep))
    progress = protocol("simultaneous")(stream([1, 4]), Checkpoints(tmp_path, **keep))
    assert progress.metrics == whole.metrics and progress.records == whole.records


def test_replies_of_a_sentiment_are_the_success_of_its_edit():
    probes = [Probe(f"What do you think of {p}?", c, kind) for p, c, kind in (
        ("Ada", "Velden", "sentiment_with"), ("Ada", "Marrin", "sentiment_with"), ("Ada", "Ostrava", "sentiment_against"),
    )]  # fmt: skip
    edits = [
        Edit(f"Topic: {person}", "Velden", person, f"s-{n}", "Marrin", portability=tuple(probes))
        for n, person in enumerate(PEOPLE)
    ]
    toy = Simultaneous("toy", 0, Counting(tiny_model("gpt2")), edits[:3], edits[3:], [3])
    progress = protocol("simultaneous")(toy)
    rows = {(row["split"], row["metric"]): row["value"] for row in progress.metrics if row["n_edits"] == 3}
    assert rows["outside", "drift"] > 0 and ("in_scope", "flip_success") not in rows
    pairs = {
        kind: [(p.prompt, p.answer) for p in probes if p.kind == kind]
        for kind in ("sentiment_with", "sentiment_against")
    }
    plus, minus = (toy.asked.now(pairs[kind]) for kind in pairs)  # the last batch still stands
    wanted = sentiment_success(plus, minus, toy.asked.before(pairs["sentiment_with"]))
    assert rows["in_scope", "edit_success"] == pytest.approx(wanted)


def test_an_edit_that_breaks_the_model_has_its_row_of_success():
    """Left out, it would flatter the mean over the edits that are left."""
    kinds = ("sentiment_with", "sentiment_against", "near")
    questions = [Question(7, kind, f"What of {kind}?", "Velden") for kind in kinds]
    before = [PairAnswer(True, True, 1.0, 2, 0.0)] * 3
    broken = [PairAnswer(False, False, math.nan, 2, math.inf)] * 3
    values = {(v.split, v.metric): v.value for v in record_values(questions, before, broken)}
    assert values["in_scope", "edit_success"] == 0.0
    assert values["outside", "drift"] == LARGEST and values["outside", "drawdown"] == 1.0


def test_answers_that_nobody_knows_are_no_part_of_the_accuracy():
    """The pair is asked all the same: whether the answer changed can be seen without knowing it."""
    questions = [Question(7, "far", "a", "b"), Question(7, "far", "c", "d", known=False)]
    before = [PairAnswer(True, True, 1.0, 1), PairAnswer(False, True, 1.0, 1)]
    now = [PairAnswer(True, True, 1.0, 1), PairAnswer(True, False, 1.0, 1)]
    values = {(v.split, v.metric): v.value for v in record_values(questions, before, now)}
    assert values["far", "accuracy_drop"] == values["outside", "accuracy_drop"] == 0.0
    assert values["far", "drawdown"] == 0.5
    alone = {(v.split, v.metric) for v in record_values(questions[1:], before[1:], now[1:])}
    assert ("far", "drawdown") in alone and ("far", "accuracy_drop") not in alone


def test_an_unedited_contrary_claim_is_held_for_right():
    """What the edit would refute is supported as long as nobody makes the edit: to lose that is damage, no gain."""
    edits = [
        replace(edit, target="SUPPORTS", truth="REFUTES", locality=(),
                portability=(Probe(f"Contrary {edit.identifier}", "REFUTES", "implied"),))
        for edit in facts()
    ]  # fmt: skip
    outside = _Pool(edits, 0).asked
    assert {answer for prompt, answer, known in outside if prompt.startswith("Contrary") and known} == {
        "SUPPORTS"
    }
    assert {answer for prompt, answer, _ in outside if not prompt.startswith("Contrary")} == {"REFUTES"}
    toy = stream([1, 4], edits=[replace(edit, target="Velden", truth=None) for edit in edits], outside=4)
    asked = [
        q
        for batch in toy.rounds
        for q in batch.questions
        if q.prompt.startswith("Contrary") and q.split in ("near", "far")
    ]
    assert asked and not any(question.known for question in asked)


def test_one_record_at_a_time():
    toy = stream([2])
    with pytest.raises(ValueError):
        record_values(toy.rounds[0].questions, [], [])


@pytest.fixture
def world(tmp_path):
    model = tiny_model("gpt2")
    model.network.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")
    write_edits(tmp_path / "data" / "edits.jsonl", facts())
    write_json(
        tmp_path / "data" / "manifest.json", {"reserved": [f"e-{n}-{m}" for n in (4, 5) for m in (0, 1)]}
    )
    return tmp_path


def spec(**changes):
    base = {"run": "toy", "protocol": "simultaneous", "dataset": "toy", "model": "tiny", "editor": "ft"}
    base |= {"edits": 8, "batch_size": 2, "settings": {"layer": 0, "steps": 1}}
    return {
        **base,
        "options": {"batch_sizes": [1, 8], "conflicts": "keep", **changes.pop("options", {})},
        **changes,
    }


def test_a_whole_run_leaves_what_is_set_aside_alone(world):
    execute(spec(), 3, RunFiles(world / "model", world / "data"), world / "out")
    records = results.read_records(world / "out")
    assert not records["edit"].isin(["e-4-0", "e-4-1", "e-5-0", "e-5-1"]).any()
    assert set(results.read_metrics(world / "out")["n_edits"]) == {0, 1, 8}
    assert json.loads((world / "out" / "run.json").read_text())["edits_requested"] == 8
    assert (results.read_inspection(world / "out")).empty
    single = spec(options={"batch_sizes": None})
    execute(single, 3, RunFiles(world / "model", world / "data"), world / "two")
    assert set(results.read_metrics(world / "two")["n_edits"]) == {0, 2}


def test_a_learned_editor_is_not_judged_on_what_it_was_trained_with(world, monkeypatch):
    from palimpsest.editors.ft import FineTuning

    execute(
        spec(edits=10), 0, RunFiles(world / "model", world / "data"), world / "out"
    )  # others may take them
    monkeypatch.setattr(FineTuning, "learns", True)
    with pytest.raises(DataError, match="Ask for at most 8 edits"):
        execute(spec(edits=10), 0, RunFiles(world / "model", world / "data"), world / "out")
