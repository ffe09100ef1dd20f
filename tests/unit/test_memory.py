"""Micro-batches from free memory, and placement on devices."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import replace

import pytest
import torch
from tiny import random_statistics, some_edits, tiny_model

from palimpsest.editors import make_editor
from palimpsest.editors.shared import target_vectors
from palimpsest.editors.shared.keys import KeyWalk
from palimpsest.editors.shared.target_sequences import build_sequences
from palimpsest.editors.shared.target_vectors import Search, pass_bytes, search_target_vectors
from palimpsest.errors import ModelError
from palimpsest.learning.train import train_editor
from palimpsest.models import memory, placement
from palimpsest.models.loading import load_model
from palimpsest.models.placement import refuse_elsewhere
from palimpsest.models.tokens import encode_prompts

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


def group(folder, limit, used):
    """A control group of version 2."""
    return {
        f"{folder}memory.{name}": text
        for name, text in (("max", f"{limit}\n"), ("current", f"{used}\n"), ("stat", "anon 1\n"))
    }


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
        (  # a scheduler's job: the limit of its step, of the job above it, and none at the top
            MEMINFO
            | {"proc/self/cgroup": "0::/slurm/job_7/step_0\n"}
            | group(V2 + "slurm/job_7/step_0/", 3000, 1000)
            | group(V2 + "slurm/job_7/", 2500, 1000),
            1500,
        ),
        (
            MEMINFO
            | {"proc/self/cgroup": "9:cpu:/a\n4:cpuset,memory:/slurm/job_7\n0::/\n"}
            | {
                V1 + "slurm/job_7/memory.limit_in_bytes": "5000",
                V1 + "slurm/job_7/memory.usage_in_bytes": "4000",
                V1 + "slurm/job_7/memory.stat": "total_inactive_file 10\n",
            },
            1010,
        ),
        # a path that this process is not shown, and a file of another form
        (MEMINFO | {"proc/self/cgroup": "0::/../../other\nodd\n"} | group(V2, 700, 200), 500),
    ],
)
def test_free_memory_is_what_the_kernel_and_the_container_leave(tmp_path, files, free):
    assert memory.free_memory("cpu", tree(tmp_path, files)) == free


def test_the_peak_is_that_of_the_models_gpu(monkeypatch):
    peaks = {torch.device("cuda", 0): 7, torch.device("cuda", 1): 123}
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", peaks.get)
    assert memory.peak_on_gpu("cuda:1") == 123
    assert memory.peak_on_gpu("cpu") is None and memory.peak_on_gpu(torch.device("meta")) is None


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


def test_parts_are_halved_until_one_fits(monkeypatch, caplog):
    """By what is free, and by what a device says; parts that were done are not done again."""
    monkeypatch.setattr(memory, "free_memory", lambda device: 120)
    assert memory.in_parts(5, 100, "cpu", "keys", lambda part: part) == [slice(0, 3), slice(3, 5)]
    monkeypatch.setattr(memory, "free_memory", lambda device: None)
    tried = []

    def run(part):
        tried.append(part.stop - part.start)
        if tried[-1] > 2:
            raise torch.OutOfMemoryError("no room")
        return tried[-1]

    assert memory.in_parts(5, 100, "cpu", "keys", run) == [2, 2, 1]
    assert tried == [5, 3, 2, 2, 1] and "out of memory, now 2 share a pass" in caplog.text
    with pytest.raises(torch.OutOfMemoryError):
        memory.in_parts(1, 1, "cpu", "keys", lambda _: (_ for _ in ()).throw(torch.OutOfMemoryError()))


def rows_of_passes(model, run):
    """(what a function gives, rows of each pass of the first block)."""
    seen = []
    handle = model.block(0).register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    try:
        return run(), seen
    finally:
        handle.remove()


def test_short_memory_changes_no_key(monkeypatch):
    """Edits in parts, from block to block; where all fit, one pass for all."""
    model, edits = tiny_model("gpt2"), some_edits(6)

    shapes = []

    def walk():
        made = KeyWalk(model, edits, [["", "Because I"], ["So"]], 1, cut=True)
        shapes.append(made.apart.rest.input_ids.shape)
        first = made.keys_and_state(3)
        made.advance(2)
        return first + made.keys_and_state(3)

    whole, passes = rows_of_passes(model, walk)
    assert passes == [18]
    monkeypatch.setattr(memory, "free_memory", lambda device: memory.block_bytes(model, *shapes[0]))
    parts, passes = rows_of_passes(model, walk)
    assert passes == [9, 9]
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(whole, parts, strict=True))


@pytest.mark.parametrize("padding", ["masked", "official"])
def test_short_memory_changes_no_threshold(monkeypatch, padding):
    """COMEBA-HK in parts, also where padding counts: rows keep the padding of the whole batch."""
    records = []
    for free in (None, 1):
        monkeypatch.setattr(memory, "free_memory", lambda device, free=free: free)
        model = tiny_model("gpt2")
        settings = {"layers": [1, 2], "steps": 4, "context_texts": [[""]], "target_search": "plain"}
        statistics = random_statistics(model, (1, 2))
        editor = make_editor("comeba_hk", model, {**settings, "padding": padding}, statistics)
        records.append(editor.edit(some_edits(4), record=True).record)
        tokens = encode_prompts(model, [edit.prompt for edit in some_edits(4)])
        _, passes = rows_of_passes(model, lambda e=editor, t=tokens: e._watch(e.hooked, t))
        assert passes == [4] if free is None else [1] * 4
        editor.remove()
    first, second = records
    assert first["alpha"] == pytest.approx(second["alpha"], rel=1e-4)
    for layer in (1, 2):
        assert torch.equal(first["swapped"][layer], second["swapped"][layer])
        assert torch.allclose(first["z_scores"][layer], second["z_scores"][layer], atol=1e-3)


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


def test_no_editor_works_on_a_model_that_is_spread(monkeypatch):
    """Nobody has ever executed one there; a sentence is better than a failing index hours later."""
    model = tiny_model("gpt2")
    make_editor("grace", model, {"layer": 1})
    monkeypatch.setattr(placement, "devices_of", lambda model: ["cuda:0", "cuda:1"])
    for make in (
        lambda: make_editor("grace", model, {"layer": 1}),
        lambda: train_editor("mend", model, []),
    ):
        with pytest.raises(ModelError, match=r"never tried .*cuda:0, cuda:1.*`device: cuda:0`"):
            make()


def test_weights_that_are_not_at_hand_are_refused():
    model = tiny_model("gpt2")
    refuse_elsewhere(model)
    model.network.transformer.h[2].to("meta")
    with pytest.raises(ModelError, match="does not fit onto the devices.*Use dtype bfloat16"):
        refuse_elsewhere(model)
