"""Files exported from the hub: made-up rows in the hub's columns become files that the lifelong readers take."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from palimpsest.config import read_yaml
from palimpsest.data.lifelong import build_lifelong
from palimpsest.edits import read_edits
from palimpsest.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location("export_hub_files", ROOT / "workflow" / "export_hub_files.py")
exports = importlib.util.module_from_spec(_spec)
sys.modules["export_hub_files"] = exports  # dataclasses look their module up
_spec.loader.exec_module(exports)


def lifelong(name):
    """Settings of `config/paper.yaml` for one task."""
    entry = read_yaml(ROOT / "config" / "paper.yaml")["datasets"][name]
    return {key: entry[key] for key in ("task", "file")} | entry["lifelong"]


def test_cases_are_read_as_the_papers_scale_reads_them(tmp_path, monkeypatch):
    monkeypatch.setenv("PALIMPSEST_DATA", str(tmp_path))
    opinion = 'The "court", in\n1992,\u2028 held\r\nthat'
    for split in ("train", "test"):
        rows = [{"text": f"{opinion} {split} {k}", "label": k % 11, "more": None} for k in range(22)]
        exports.export(f"scotus-{split}", iter(rows), tmp_path)
    manifest = build_lifelong(lifelong("lifelong_labels"), None, tmp_path / "out")
    edits = read_edits(tmp_path / "out" / "edits.jsonl")
    assert len(edits) == 22 and manifest["skipped"] == []
    assert [edit.target for edit in edits[:3]] == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert edits[3].prompt == f"{opinion} test 3"


def test_biographies_and_web_text_are_read_as_the_papers_scale_reads_them(tmp_path, monkeypatch):
    monkeypatch.setenv("PALIMPSEST_DATA", str(tmp_path))
    judged = ["accurate", "major_inaccurate", "minor_inaccurate"]
    rows = [
        {
            "gpt3_text": "unused", "gpt3_sentences": [f"She was {k}.", "She ran.", "She\nwon."], "annotation": judged,
            "wiki_bio_text": f"Person {k} was a runner.\nShe never won.", "wiki_bio_test_idx": k, "gpt3_text_samples": ["unused"],
        }
        for k in range(4)
    ]  # fmt: skip
    exports.export("wikibio", rows, tmp_path)
    (tmp_path / "wikibio" / "wiki_bio_concepts.txt").write_text("".join(f"person {k}\n" for k in range(4)))
    page = "Paragraph one of a page on the web.\n\nParagraph two,\twith\u2028more of it."
    exports.export("openwebtext", ({"text": f"{page} {k}"} for k in range(1200)), tmp_path)
    lines = (tmp_path / "text" / "openwebtext-10k-first-1000.txt").read_text().splitlines()
    assert len(lines) == 1000 and lines[7] == " ".join(page.split()) + " 7"
    build_lifelong(lifelong("lifelong_lives"), None, tmp_path / "out")
    edits = read_edits(tmp_path / "out" / "edits.jsonl")
    assert len(edits) == 8 and edits[0].target == "She never won."
    assert edits[0].prompt == "This is a Wikipedia passage about person 0. She was 0."
    probes = [json.loads(line) for line in (tmp_path / "out" / "probes.jsonl").read_text().splitlines()]
    assert sum(probe["set"] == "upstream" for probe in probes) == 1000


def test_a_missing_column_is_named_and_nothing_is_written(tmp_path):
    with pytest.raises(DataError, match="tomh/grace-scotus.*'label'.*EXPORTS"):
        exports.export("scotus-test", [{"text": "a", "category": 1}], tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_command_refuses_what_is_no_commit(tmp_path, capsys):
    with pytest.raises(SystemExit):
        exports.main(["wikibio", "--revision", "main", "--out", str(tmp_path)])
    assert "40 hexadecimal digits" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_every_exported_file_is_one_that_the_papers_scale_names():
    text = (ROOT / "config" / "paper.yaml").read_text()
    documented = (ROOT / "docs" / "real_data.md").read_text()
    for name, wanted in exports.EXPORTS.items():
        assert wanted.file in text and wanted.id in documented and f"export_hub_files.py {name}" in documented
