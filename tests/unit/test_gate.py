"""The gate: recall, ceiling, state swap, verdict, and the files it writes."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from palimpsest.edits import Edit, write_edits
from palimpsest.errors import DataError, ModelError, SettingsError
from palimpsest.files import read_json
from palimpsest.models.critical_path import TracedQuestion, prepare, state_swap, target_vector_ceiling
from palimpsest.models.gate import GateSettings, exact, examine, majority_baseline, reasons
from palimpsest.models.loading import load_model
from palimpsest.models.manifest import describe_model
from palimpsest.models.tokens import join

NAMES = ["Ada Tolvek", "Ono Tolvek", "Ada Rimsk", "Ono Rimsk"]
EDITS = [
    Edit(
        f"The city of {name} is",
        "Tolburg",
        name,
        f"e{number}",
        truth="Rimburg" if number % 2 else "Old Velburg",
        rephrasings=(f"In the city of {name}, called",),
    )
    for number, name in enumerate(NAMES)
]


@pytest.fixture(scope="module", params=["gpt2", "gptj", "llama"])
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    corpus = folder / "corpus.txt"
    corpus.write_text(
        "\n".join([f"{e.prompt} {t}." for e in EDITS for t in ("Tolburg", "Rimburg", "Old Velburg")] * 2)
    )
    describe_model(
        {
            "kind": "random",
            "family": request.param,
            "width": 32,
            "blocks": 3,
            "heads": 2,
            "inner": 64,
            "rotary": 8,
            "context": 48,
            "vocabulary": 400,
            "corpus": str(corpus),
            "initial_range": 0.2,
        },
        folder / "model",
    )
    write_edits(folder / "data" / "edits.jsonl", EDITS)
    return folder


def questions(answer=None):
    return [TracedQuestion(e.prompt, e.subject, answer or e.truth) for e in EDITS]


def test_exact_match_is_that_of_one_by_one_argmax(folder):
    model = load_model(folder / "model")
    pairs = [(e.prompt, e.truth) for e in EDITS] + [("The city", "of")]
    for (prompt, answer), found in zip(pairs, exact(model, pairs, rows_at_once=3), strict=True):
        ids = model.tokenizer(join(prompt, answer), return_tensors="pt")["input_ids"]
        first = len(model.tokenizer(prompt)["input_ids"])
        top = model.network(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].argmax(-1)
        assert found == bool((top[first - 1 : -1] == ids[0, first:]).all())


def test_a_vector_where_the_answer_is_read_reaches_everything_but_not_without_room(folder):
    model = load_model(folder / "model")
    ends_with_subject = [TracedQuestion(f"The city of {name}", name, "Tolburg") for name in NAMES]
    rows = prepare(model, ends_with_subject)
    now = sum(exact(model, [(q.prompt, q.answer) for q in ends_with_subject])) / len(NAMES)
    for layer in range(model.n_blocks):
        assert target_vector_ceiling(model, rows, layer, clamp=1e-9, steps=3) == now
        assert target_vector_ceiling(model, rows, layer, clamp=50.0, step_ratio=0.1, steps=40) == 1.0


def test_a_vector_in_the_last_block_changes_nothing_behind_it(folder):
    model = load_model(folder / "model")
    rows = prepare(model, questions("Tolburg"))
    now = sum(exact(model, [(e.prompt, "Tolburg") for e in EDITS])) / len(EDITS)
    assert target_vector_ceiling(model, rows, model.n_blocks - 1, clamp=50.0) == now


def test_swapping_in_ones_own_state_changes_nothing(folder):
    model = load_model(folder / "model")
    rows = prepare(model, questions())
    now = sum(exact(model, [(e.prompt, e.truth) for e in EDITS])) / len(EDITS)
    assert all(state_swap(model, rows, rows, layer) == now for layer in range(model.n_blocks))


def test_examine_writes_verdict_and_known_facts(folder):
    spec = {"edits": 3, "steps": 2, "model": "m", "dataset": "d", "mode": "refuse"}
    content = examine(
        spec, folder / "model", folder / "data", None, folder / "gate.json", folder / "known.json"
    )
    assert content == read_json(folder / "gate.json")
    assert content["verdict"] == "fail" and content["reasons"] and content["layers"] == [0]
    assert set(content["ceiling"]) == set(content["state_swap"]) == {"0", "1", "2"}
    assert (content["model"], content["dataset"], content["n"], content["probed"]) == ("m", "d", 4, 3)
    assert content["recall_trained_phrasings"] is None and content["majority_baseline"] == 0.5
    known = read_json(folder / "known.json")
    assert known["checked"] == 4 and len(known["known"]) == content["recall"] * 4
    assert content["clamp"] == (1.5 if content["family"] == "gptj" else 0.75)


def test_bad_specs_and_data_are_refused(folder, tmp_path):
    where = (folder / "data", None, tmp_path / "gate.json", tmp_path / "known.json")
    with pytest.raises(SettingsError, match="'recal'"):
        examine({"recal": 1}, folder / "model", *where)
    with pytest.raises(ModelError, match="layer 9"):
        examine({"layers": [9]}, folder / "model", *where)
    write_edits(tmp_path / "edits.jsonl", [dataclasses.replace(edit, truth=None) for edit in EDITS])
    with pytest.raises(DataError, match="truth"):
        examine({}, folder / "model", tmp_path, None, *where[2:])
    assert not (tmp_path / "gate.json").exists()


def test_verdicts_say_why():
    content = {"recall": 0.99, "ceiling": {"0": 1.0, "2": 0.9}, "state_swap": {"0": 0.4, "2": 0.1}}
    assert reasons(content, GateSettings(), [0, 2]) == []
    found = reasons(
        {**content, "recall": 0.5, "ceiling": {"2": 0.1}, "state_swap": {"2": 0.0}}, GateSettings(), [0, 2]
    )
    assert len(found) == 3 and "block 2" in found[1] and "elsewhere" in found[1]
    assert reasons({**content, "state_swap": {}}, GateSettings(), [0, 2]) == []


def test_the_baseline_is_the_most_frequent_answer_of_each_relation():
    assert majority_baseline(EDITS) == 0.5
    assert majority_baseline([dataclasses.replace(edit, relation=edit.identifier) for edit in EDITS]) == 1.0
