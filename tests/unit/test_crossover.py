"""What neither paper has: codebooks under COMEBA-HK's protocols, and key-value writers under the lifelong one."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from tiny import LABELS, PEOPLE, TEXTS, breaking_off, random_statistics, some_edits, tiny_model

from palimpsest import results
from palimpsest.editors import editor_class, make_editor
from palimpsest.edits import Edit, write_edits
from palimpsest.files import write_text
from palimpsest.models.loading import load_model
from palimpsest.runs.inputs import RunFiles
from palimpsest.runs.run import execute

SETTINGS = {
    "comeba_hk": {"layers": [0, 1], "steps": 3},
    "memit": {"layers": [0, 1], "steps": 3},
    "rome": {"layers": [1], "steps": 3},
    "ft": {"layer": 1, "steps": 10, "loss": "own", "stop": "argmax", "learning_rate": 0.01, "epsilon": None},
    "ft_ewc": {"layer": 1, "steps": 10},
    "ft_retrain": {"layer": 1, "steps": 10, "retrain_frequency": 2},
    "grace": {
        "layer": 2,
        "site": "mlp_in",
        "replacement": "prompt",
        "steps": 60,
        "radius": None,
        "radius_ratio": 0.3,
    },
    "defer": {"layer": 2, "steps": 10},
    "memory": {"layer": 2, "steps": 10},
    "retrieval": {},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A decoder with single facts, and a classifier with a stream."""
    folder = tmp_path_factory.mktemp("world")
    for family in ("gpt2", "bert"):
        model = tiny_model(family)
        model.network.save_pretrained(folder / family)
        model.tokenizer.save_pretrained(folder / family)
        if family == "gpt2":
            random_statistics(model, (0, 1)).save(folder / "statistics")
    write_edits(folder / "facts" / "edits.jsonl", some_edits(6))
    (folder / "text.txt").write_text("\n".join(TEXTS))
    documents = [Edit(prompt=f"{p} sued {q}", target=LABELS[i % 4], identifier=f"case-{i}{j}")
                 for i, p in enumerate(PEOPLE) for j, q in enumerate(PEOPLE[:2])]  # fmt: skip
    write_edits(folder / "cases" / "edits.jsonl", documents)
    probes = [{"set": "upstream", "prompt": f"{p} won", "answer": LABELS[0], "edit": None} for p in PEOPLE]
    write_text(folder / "cases" / "probes.jsonl", "".join(json.dumps(probe) + "\n" for probe in probes))
    return folder


def run(world, out, editor, protocol, data="facts", model="gpt2", **changes):
    lifelong = protocol == "lifelong"
    spec = {
        "run": f"{editor}-{protocol}",
        "protocol": protocol,
        "dataset": data,
        "model": model,
        "editor": editor,
        "settings": SETTINGS[editor],
        "edits": 5,
        "batch_size": 1 if lifelong else 2,
        "snapshot_every": 2,
        "options": {"conflicts": "keep", "checkpoint_every_batch": True, **changes},
    }
    files = {"text": world / "text.txt"}
    if editor_class(editor).needs_statistics:
        files["statistics"] = world / "statistics"
    execute(spec, 0, RunFiles(world / model, world / data, **files), out)
    return results.read_metrics(out), results.read_run(out)


@pytest.mark.parametrize("editor", SETTINGS)
def test_every_editor_in_the_lifelong_protocol_on_a_decoder(world, tmp_path, editor):
    metrics, content = run(world, tmp_path, editor, "lifelong")
    assert {"upstream", "holdout", "edit", "stream", "text"} <= set(metrics.split)
    assert {"token_f1", "squad_f1", "exact_match", "edit_success", "edits_made"} <= set(metrics.metric)
    assert not content["edits_failed"] and content["spec"]["editor"] == editor
    assert content["checks"]["identity"] and content["checks"]["unwrapping_restores"]
    assert content["checks"]["weights_unchanged"] is (
        editor in ("grace", "defer", "memory", "comeba_hk", "retrieval")
    )
    assert ("reversible" in content["checks"]) is (editor == "grace") and content["checks"].get(
        "reversible", True
    )
    books = content["history"]["codebook"]
    assert [entry["step"] for entry in books] == ([0, 2, 4, 5] if editor == "grace" else [])
    assert ("key_distances" in content) is (editor == "grace")
    if editor == "grace":
        noted = content["key_distances"]  # by hand, on the model as it was
        used = make_editor(
            "grace", load_model(world / "gpt2"), {**SETTINGS["grace"], "radius_ratio": None, "radius": 1.0}
        )
        asked = [used.queries([e.prompt, *e.rephrasings[:5]]).double() for e in some_edits(6)]
        far = [float((a[0] - b[0]).norm()) for i, a in enumerate(asked) for b in asked[:i]]
        close = [float(d) for a in asked for d in (a[1:] - a[0]).norm(dim=1)]
        assert noted["questions"] == 5 and min(far) <= noted["different"] <= max(far)
        assert min(close) <= noted["paraphrases"] <= max(close)
        assert noted["ratio"] == pytest.approx(noted["paraphrases"] / noted["different"])
        assert set(metrics[metrics.metric == "keys"].step) == {0, 2, 4, 5}
        assert books[-1]["keys"] == sum(books[-1]["events"].get(name, 0) for name in ("add", "init", "split"))
        assert books[-1]["first_radius"] > 0 and len(books[-1]["radii"]) == 7


@pytest.mark.parametrize(
    ("editor", "protocol"),
    [(editor, "consecutive") for editor in ("grace", "defer", "memory", "ft_ewc", "ft_retrain", "retrieval")]
    + [("grace", "single_round")],
)
def test_codebooks_in_the_protocols_of_comeba_hk(world, tmp_path, editor, protocol):
    metrics, content = run(world, tmp_path, editor, protocol)
    end = metrics[(metrics.step == metrics.step.max()) & (metrics.split == "edit")].set_index("metric").value
    start = metrics[(metrics.step == 0) & (metrics.split == "edit")].set_index("metric").value
    assert not content["edits_failed"] and "reliability" in end.index
    assert content["edits_applied"] == 5
    if editor == "grace":
        assert end["reliability"] > start["reliability"] and end["swap_rate"] == 1.0
        assert end["generation_match"] >= end["exact_match"] - 0.21


def test_a_killed_stream_of_a_classifier_goes_on_to_the_same_rows(world, tmp_path, monkeypatch):
    where = {"data": "cases", "model": "bert"}
    whole, content = run(world, tmp_path / "whole", "grace", "lifelong", **where)
    assert content["spec"]["settings"]["radius_ratio"] == 0.3
    kind = editor_class("grace")
    monkeypatch.setattr(kind, "apply", breaking_off(kind.apply, 2))
    with pytest.raises(KeyboardInterrupt):
        run(world, tmp_path / "broken", "grace", "lifelong", **where)
    broken, _ = run(world, tmp_path / "broken", "grace", "lifelong", **where)
    pd.testing.assert_frame_equal(broken, whole, check_exact=True)
    records = [results.read_records(tmp_path / name) for name in ("whole", "broken")]
    pd.testing.assert_frame_equal(*records, check_exact=True)


def test_ways_of_asking_agree_for_a_codebook(world, tmp_path):
    kept, _ = run(world, tmp_path / "kept", "grace", "lifelong")
    again, _ = run(world, tmp_path / "again", "grace", "lifelong", kept_mb=0)
    pd.testing.assert_frame_equal(kept, again, rtol=1e-4)
