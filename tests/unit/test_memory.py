"""Micro-batches from free memory, and placement on devices."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import replace

import pytest
import torch
from tiny import some_edits, tiny_model

from palimpsest.editors.shared import target_vectors
from palimpsest.editors.shared.target_sequences import build_sequences
from palimpsest.editors.shared.target_vectors import Search, pass_bytes, search_target_vectors
from palimpsest.errors import ModelError
from palimpsest.models import memory
from palimpsest.models.loading import load_model
from palimpsest.models.placement import refuse_elsewhere

SEARCH = Search(layer=1, steps=3, learning_rate=0.3)
CONTEXTS = ["", "Because I"]


def tree(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


MEMINFO = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    4000 kB\n"}
V2 = "sys/fs/cgroup/"
V1 = "sys/fs/cgroup/memory/"


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, None),
        (MEMINFO, 4000 * 1024),
        ({"proc/meminfo": "MemAvailable: many kB\n"}, None),
        (MEMINFO | {V2 + "memory.max": "max\n", V2 + "memory.current": "5\n"}, 4000 * 1024),
        (
            MEMINFO
            | {
                V2 + "memory.max": "1000000",
                V2 + "memory.current": "900000",
                V2 + "memory.stat": "anon 7\ninactive_file 50000\n",
            },
            150_000,
        ),
        (
            {
                V1 + "memory.limit_in_bytes": "1000",
                V1 + "memory.usage_in_bytes": "2000",
                V1 + "memory.stat": "total_inactive_file 0\n",
            },
            0,
        ),
    ],
)
def test_free_memory_is_what_the_kernel_and_the_container_leave(tmp_path, files, free):
    assert memory.free_memory("cpu", tree(tmp_path, files)) == free


def test_nobody_knows_about_other_devices():
    assert memory.free_memory("meta") is None
    assert memory.that_fit(7, 10**18, "meta", "anything") == 7


@pytest.mark.parametrize(("free", "chosen"), [(10**9, 64), (1001, 64), (999, 32), (400, 16), (1, 1)])
def test_a_pass_is_halved_until_it_fits(monkeypatch, caplog, free, chosen):
    """500 bytes for 64 items, half of the free memory: what was chosen is said, aloud when it is less than wanted."""
    monkeypatch.setattr(memory, "free_memory", lambda device: free)
    monkeypatch.setattr(memory, "_said", set())
    with caplog.at_level(logging.INFO):
        assert memory.that_fit(64, 500, "cpu", "target vectors") == chosen
    record = caplog.records[-1]
    assert f"{chosen} " in record.getMessage() and "free" in record.getMessage()
    assert record.levelname == ("INFO" if chosen == 64 else "WARNING")
    memory.that_fit(64, 500, "cpu", "target vectors")
    assert caplog.records[-1] is record, "said once"


def test_short_memory_changes_no_target_vector(monkeypatch, caplog):
    model, edits = tiny_model("gpt2"), some_edits(6)
    whole = search_target_vectors(model, edits, CONTEXTS, SEARCH)
    needed = pass_bytes(model, build_sequences(model, edits, CONTEXTS), SEARCH)
    monkeypatch.setattr(memory, "_said", set())
    monkeypatch.setattr(memory, "free_memory", lambda device: needed)  # half of it may be used
    parts = search_target_vectors(model, edits, CONTEXTS, SEARCH)
    assert "3 instead of 6 share a pass" in caplog.text
    assert torch.allclose(whole.z, parts.z, atol=1e-5) and len(parts.losses) == 6


def test_a_device_that_runs_out_of_memory_gets_half(monkeypatch, caplog):
    model, edits, asked = tiny_model("gpt2"), some_edits(5), []
    whole = search_target_vectors(model, edits, CONTEXTS, SEARCH)
    plain = target_vectors._search

    def small(model, sequences, search):
        asked.append(sequences.n_edits)
        if sequences.n_edits > 2:
            raise torch.OutOfMemoryError("no room")
        return plain(model, sequences, search)

    monkeypatch.setattr(target_vectors, "_search", small)
    parts = search_target_vectors(model, edits, CONTEXTS, SEARCH)
    assert asked == [5, 3, 2, 2, 1] and "out of memory" in caplog.text
    assert torch.allclose(whole.z, parts.z, atol=1e-5)
    monkeypatch.setattr(target_vectors, "_search", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError()))
    with pytest.raises(torch.OutOfMemoryError):
        search_target_vectors(model, edits, CONTEXTS, SEARCH)


def test_the_estimate_grows_with_what_it_is_made_of():
    model, edits = tiny_model("gpt2"), some_edits(6)
    one, six = (pass_bytes(model, build_sequences(model, edits[:n], CONTEXTS), SEARCH) for n in (1, 6))
    assert 4 * one < six < 9 * one
    deeper = pass_bytes(model, build_sequences(model, edits, CONTEXTS), replace(SEARCH, layer=3))
    assert deeper < six
    half = tiny_model("gpt2", torch.bfloat16)
    assert pass_bytes(half, build_sequences(half, edits, CONTEXTS), SEARCH) < six


def saved(folder):
    model = tiny_model("gpt2")
    model.network.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


def test_auto_without_accelerate_says_what_to_install(tmp_path, monkeypatch):
    plain = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "accelerate" else plain(name, *more)
    )
    with pytest.raises(ModelError, match=r"needs accelerate.*palimpsest\[placement\]"):
        load_model(saved(tmp_path), device="auto")


def test_auto_places_the_model_and_changes_no_answer(tmp_path):
    pytest.importorskip("accelerate", reason="the extra `placement` (accelerate) is not installed")
    folder = saved(tmp_path)
    named, placed = load_model(folder, device="cpu"), load_model(folder, device="auto")
    assert placed.fingerprint == named.fingerprint
    found = [search_target_vectors(model, some_edits(2), CONTEXTS, SEARCH) for model in (named, placed)]
    if placed.device.type == "cpu":
        assert torch.equal(found[0].z, found[1].z)


def test_weights_that_are_not_at_hand_are_refused():
    model = tiny_model("gpt2")
    refuse_elsewhere(model)
    model.network.transformer.h[2].to("meta")
    with pytest.raises(ModelError, match="does not fit onto the devices.*Use dtype bfloat16"):
        refuse_elsewhere(model)
