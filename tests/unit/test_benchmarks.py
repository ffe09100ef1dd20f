"""The speed comparisons: formulas held to a counter, pieces that run and resume, a page that tells what is missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import bench  # noqa: E402
import flops  # noqa: E402
import report  # noqa: E402
import report_rows  # noqa: E402
import shapes  # noqa: E402
from measure import operations  # noqa: E402

STEPS = 3


@pytest.fixture
def small(monkeypatch):
    """A shape that takes no time, of GPT-2's kind."""
    shape = shapes.SHAPES["mini"] | {
        "width": 32, "inner": 96, "heads": 2, "vocabulary": 1500, "blocks": 4, "cpu_blocks": 4, "cpu_layers": (0, 1)
    }  # fmt: skip
    monkeypatch.setitem(shapes.SHAPES, "mini", shape)
    return shape


def test_formulas_of_the_search_are_what_is_counted(small):
    """The plain form, and the fast one of a batch of five, to the last operation."""
    from palimpsest.editors.shared.target_sequences import build_sequences
    from palimpsest.editors.shared.target_vectors import Search, search_target_vectors
    from palimpsest.editors.shared.target_vectors_plain import search_target_vectors_plain

    model, batch, texts = shapes.random_model("mini"), shapes.edits(5), list(shapes.CONTEXTS[:3])
    model.network.config._attn_implementation = "eager"  # the counter does not know the fused kernel
    search = Search(layer=1, steps=STEPS, learning_rate=0.1, stop_loss=0.0, early_stop=False)
    size = flops.sizes(small, 4, 1)
    rows = build_sequences(model, batch[:1], texts).tokens.input_ids
    plain = operations(lambda: search_target_vectors_plain(model, batch[:1], texts, search))
    assert flops.search_plain(size, *rows.shape, STEPS) == pytest.approx(plain, rel=1e-9)
    fast = operations(lambda: search_target_vectors(model, batch, texts, search))
    counts = flops.count_search(model, batch, texts, 1)
    assert flops.search_fast(size, counts, STEPS) == pytest.approx(fast, rel=1e-9)


def test_formulas_give_the_numbers_of_the_specification():
    """Operations per token of GPT2-XL and GPT-J, and of their solves (comeba_hk 8.1, 8.3)."""
    xl = flops.sizes(shapes.SHAPES["gpt2-xl"], 48, 17)
    gptj = flops.sizes(shapes.SHAPES["gpt-j"], 28, 8)
    assert xl.block / 1e6 == pytest.approx(61.4, rel=0.01) and xl.head / 1e6 == pytest.approx(161, rel=0.01)
    assert gptj.block / 1e6 == pytest.approx(403, rel=0.01) and gptj.head / 1e6 == pytest.approx(
        413, rel=0.01
    )
    assert 5 * flops.solve(6400, 10, "lu") / 1e12 == pytest.approx(0.878, rel=0.02)
    assert 5 * flops.solve(6400, 10, "cholesky") / 1e12 == pytest.approx(0.441, rel=0.02)
    assert 5 * flops.solve(6400, 10, "woodbury") / 1e12 == pytest.approx(0.0082, rel=0.02)
    assert xl.upper == 30 and gptj.upper == 19


def test_prompts_differ_and_have_the_promised_lengths():
    found = shapes.edits(10_000)
    assert len({edit.prompt for edit in found}) == 10_000
    assert all(edit.prompt.count(str(edit.subject)) == 1 for edit in found[:300])


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("writer", ["memit", "mini", 4, 2, 3]),
        ("writer", ["comeba_hk", "mini", 3, 1, 3]),
        ("writer", ["rome", "mini", 2, 1, 3]),
        ("writer", ["rome_rounds", "mini", 3, 2, 3]),
        ("tuner", ["grace", "mini", 3, 2, 3]),
        ("tuner", ["ft", "mini", 2, 2, 3]),
        *(("other", [name, "mini", 2, 3]) for name in bench.OTHER_EDITORS),
        ("covariance", ["mini", 200]),
        ("probes", ["mini", 12, 4]),
        ("solving", [40, 3, True]),
        ("batch_growth", ["memit", 3]),
        ("stream_growth", ["comeba_hk", 30]),
        ("stream_growth", ["grace", 30]),
        ("grace_stream", ["mini-t5", 4, 2, 3]),
    ],
)
def test_pieces_measure_the_same_work_in_both_forms(small, monkeypatch, tmp_path, kind, arguments):
    """Each piece at a size of no interest; what both forms computed agrees."""
    name = "some-piece"
    monkeypatch.setattr(bench, "pieces", lambda device: {name: (kind, arguments)})
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    monkeypatch.setattr("stream_piece.EARLIER", 4)
    monkeypatch.setattr("other_pieces.stream_growth.__defaults__", (2,))
    for module in ("edit_pieces", "other_editors", "other_pieces"):
        monkeypatch.setattr(f"{module}.product_rate", lambda *_: 1e9)
    measured = bench.measure(name, "cpu", "float32", 1, None)["measured"]
    json.dumps(measured, allow_nan=False)
    for key in ("difference_of_z", "difference_of_updates", "difference_of_losses", "difference"):
        assert measured.get(key) is None or measured[key] < 1e-3, key
    assert measured.get("same_answers", True) and not measured.get("failed")
    for form in ("plain", "fast"):
        assert form not in measured or measured[form]["seconds"] > 0


def test_only_what_is_missing_is_measured(tmp_path, monkeypatch, capsys):
    """A piece with a result is left alone; --again and other names are told apart; an unknown name is refused."""
    started = []

    def run(command, **_):
        started.append(command[command.index("--here") + 1] if "--here" in command else "report")
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(bench.subprocess, "run", run)
    (tmp_path / "solve-1024-10.json").write_text("{}")

    def call(*more):
        started.clear()
        monkeypatch.setattr(
            sys, "argv", ["bench.py", "--only", "solve-1024-*", "--out", str(tmp_path), *more]
        )
        bench.main()
        return list(started)

    assert call("--no-report") == ["solve-1024-100"]
    assert call() == ["solve-1024-100", "report"]
    assert call("--again", "--no-report") == ["solve-1024-10", "solve-1024-100"]
    assert call("--list") == [] and "solve-1024-10  (done)" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["bench.py", "--only", "nothing-*"])
    with pytest.raises(SystemExit):
        bench.main()
    assert "no piece is called nothing-*" in capsys.readouterr().err


def fabricated(folder: Path) -> None:
    """A few results with round numbers."""
    machine = {"processor": "P", "cores": 2, "threads": 1, "torch": "2", "load": 0.1, "device": "cpu"}
    form = {"seconds": 10.0, "wall": 12.0, "peak_bytes": 2**30}
    edit = {
        "edits": 100, "plain_edits": 2, "steps": 20, "blocks": 12, "layers": 3, "plain": form,
        "fast": form | {"seconds": 0.4}, "flops": {"plain_search": 4e12, "fast_search": 3e11}, "plain_search": 9.0,
        "fast_search": 0.3, "plain_write": 1.0, "fast_write": 0.1, "factor_of_c0": 2.0, "share_plain": 0.35,
        "share_fast": 0.31, "difference_of_z": 1e-6,
    }  # fmt: skip
    found = {
        "edit-gpt2-small-memit": ("writer", ["memit", "gpt2-small", 100, 2, 20], edit),
        "edit-gpt2-xl-memit": (
            "writer", ["memit", "gpt2-xl", 8, 1, 4],
            edit | {"blocks": 3, "share_fast": 0.6, "extrapolated": {"plain": 90.0, "fast": 9.0}},
        ),
        "edit-gpt-j-memit": (
            "writer", ["memit", "gpt-j", 4, 1, 3], edit | {"blocks": 2, "extrapolated": {"plain": 80.0, "fast": 8.0}},
        ),
        "edit-gpt2-xl-memit-gpu": ("writer", ["memit", "gpt2-xl", 100, 2, 20], edit | {"blocks": 48}),
        "batch-memit-10": ("batch_growth", ["memit", 10], {"edits": 10, "fast": form}),
        "stream-grace-10": ("stream_growth", ["grace", 10], {"fast": form}),
        "stream-grace-10000": ("stream_growth", ["grace", 10000], {"fast": form | {"seconds": 20.0}}),
    }  # fmt: skip
    for name, (kind, arguments, measured) in found.items():
        content = {"piece": name, "kind": kind, "arguments": arguments, **machine, "measured": measured}
        (folder / f"{name}.json").write_text(json.dumps(content))


def test_the_page_says_what_was_measured_extrapolated_and_missing(tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    fabricated(results)
    page = report.write(results, tmp_path / "docs").read_text()
    assert "| gpt2-small, memit | 2 / 100 | 10 | 0.4 | **25** | – |" in page
    assert "| 35 % / 31 % |" in page and "| MEMIT, GPT-2-small shape, CPU | 20 x | 25 x | reached |" in page
    assert "| 90 / 9 |" in page and "0.4 s, 25 x |" in page, "extrapolated, and measured on a GPU"
    assert "| 40 % | 31 % | **missed** |" in page and "| at most 1.2 x | 2 x | **missed** |" in page
    assert "80 / 8" not in page, "a third of its time is products: the formulas say nothing about the rest"
    assert "gpt-j, rome" not in page and "pieces have no result yet" in page
    rows = (tmp_path / "docs/benchmarks/speed.csv").read_text().splitlines()
    assert "edit-gpt2-small-memit,cpu,P,1,0.1,2,fast.seconds,0.4" in rows
    assert (tmp_path / "docs/benchmarks/growth.png").stat().st_size < 60_000
    again = report.write(results, tmp_path / "docs").read_text()
    assert again == page


def test_a_page_without_results_claims_nothing(tmp_path):
    (tmp_path / "none").mkdir()
    page = report.write(tmp_path / "none", tmp_path / "docs").read_text()
    assert "reached" not in page.replace("reached |", "") and "missed" not in page
    assert "| MEMIT, GPT2-XL shape, GPU | 20 x | not measured | not measured |" in page
    assert "## Probes\n\nNot measured.\n" in page and len(page.splitlines()) < 80


def test_numbers_as_people_read_them():
    shown = [report_rows.number(value) for value in (0, 0.12345, 3.14159, 123.4, 4321.0, 2.5e-7, None)]
    assert shown == ["0", "0.123", "3.14", "123", "4,320", "2.5e-07", "–"]
