"""Broken files of the lifelong tasks: only the house's own errors come out, and no file of the data set stays."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fuzz import QUICK, broken, damaged, junk

from palimpsest.data.lifelong import build_lifelong
from palimpsest.data.lifelong_source import build_lifelong_source
from palimpsest.edits import read_edits
from palimpsest.errors import DataError, PalimpsestError

SENTENCES = ["Ada was a pilot.", "She lived.", "She sang."]
LIFE = {
    "wiki_bio_text": "Ada B. Sorn (born 1 May 1900) was a Dr. of law. She lived. She died.",
    "gpt3_sentences": SENTENCES,
    "annotation": ["major_inaccurate", "accurate", "minor_inaccurate"],
}
ASKED = [
    {
        "input": f"Who is {n}?", "prediction": "A", "alternatives": ["B"], "filtered_rephrases": [f"who {n}", f"which {n}"],
        "output": [{"answer": answer}],
    }
    for n, answer in ((1, "C"), (2, "D"))
]  # fmt: skip
UPSTREAM = [{"question": "who sleeps", "answer": ["Bob"]}, {"question": "who eats", "answer": ["Al"]}]
YEARS = [(1970, "A")] * 8 + [(1975, "B")] * 8 + [(1985, "A")] * 2 + [(1995, "B")]
CASES = [f"{n},<p>Facts {n}</p>,{year},{area}" for n, (year, area) in enumerate(YEARS)]
FILES = {
    "lives.jsonl": [LIFE, LIFE],
    "names.txt": "ada sorn\nbob\n",
    "web.txt": "One two three four five.\n" * 3,
    "asked.jsonl": ASKED,
    "upstream.jsonl": UPSTREAM,
    "shifted.csv": 'text,label\n"x, y z",1\nq,0\n',
    "shifted.jsonl": [{"text": "x, y z", "label": "1"}, {"text": "q", "label": 0}],
    "before.csv": "text,label\na b,0\ne f,1\n",
    "cases.csv": "\n".join([",facts,term,issue_area", *CASES]) + "\n",
}


def build(task: str, folder: Path, bad_records: str, out: Path, stream: str = "shifted.csv") -> None:
    """A data set of the task from the files in a folder; `stream` is that of documents."""
    path = {name: str(folder / name) for name in FILES}
    common = {"task": task, "bad_records": bad_records}
    if task == "qa":
        build_lifelong(
            {**common, "file": path["asked.jsonl"], "upstream": {"file": path["upstream.jsonl"]}}, None, out
        )
    elif task == "generation":
        upstream = {"file": path["web.txt"], "prompt_words": 2}
        build_lifelong(
            {**common, "file": path["lives.jsonl"], "names": path["names.txt"], "upstream": upstream},
            None,
            out,
        )
    else:
        build_lifelong({**common, "file": path[stream], "upstream": {"file": path["before.csv"]}}, None, out)


def written(content) -> bytes:
    lines = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
    return lines.encode()


TASKS = {
    "lives.jsonl": "generation", "names.txt": "generation", "web.txt": "generation", "asked.jsonl": "qa",
    "upstream.jsonl": "qa", "shifted.csv": "classification", "shifted.jsonl": "classification", "before.csv": "classification",
}  # fmt: skip


def test_the_files_are_whole_before_they_are_broken(tmp_path):
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(written(content))
    for task in dict.fromkeys(TASKS.values()):
        build(task, tmp_path, "refuse", tmp_path / task)
        assert (tmp_path / task / "edits.jsonl").stat().st_size > 0
    build_lifelong_source(
        {"task": "classification", "file": str(tmp_path / "cases.csv"), "fewest": 5}, tmp_path / "cases"
    )
    assert any((tmp_path / "cases").iterdir())


@pytest.mark.parametrize("name", FILES)
@settings(QUICK, max_examples=25)
@given(data=st.data())
def test_a_broken_file_is_refused_whole(name, data):
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for other, content in FILES.items():
            (folder / other).write_bytes(written(content))
        content = FILES[name]
        if isinstance(content, str) or data.draw(st.booleans()):
            (folder / name).write_bytes(damaged(written(content), data))
        else:
            rows = [broken(content[0], data), *content[1:]]
            (folder / name).write_bytes(written(rows))
        out = folder / "out"
        try:
            if name == "cases.csv":
                build_lifelong_source(
                    {"task": "classification", "file": str(folder / name), "fewest": 5}, out
                )
            else:
                stream = name if name.startswith("shifted") else "shifted.csv"
                build(TASKS[name], folder, data.draw(st.sampled_from(("refuse", "skip"))), out, stream)
        except PalimpsestError as error:
            assert len(str(error)) > 15
            assert not out.exists() or not any(path.is_file() for path in out.rglob("*"))


def labelled(folder: Path, label, **spec) -> dict:
    """A stream of documents whose second one has this label."""
    rows = [{"text": "a b", "label": "A"}, {"text": "c d", "label": label}]
    (folder / "stream.jsonl").write_bytes(written(rows))
    (folder / "upstream.jsonl").write_bytes(
        written([{"text": "e f", "label": "A"}, {"text": "g", "label": "B"}])
    )
    upstream = {"file": str(folder / "upstream.jsonl")}
    return {"task": "classification", "file": str(folder / "stream.jsonl"), "upstream": upstream, **spec}


@pytest.mark.parametrize(
    ("label", "labels", "words"),
    [
        ("\ud800", None, "half a character"),
        ("\ud800", ["A", "B"], "half a character"),
        ("²", ["A", "B"], "class '²' is outside the label set"),
        ("٣", ["A", "B"], "class '٣' is outside the label set"),
        ("9" * 5000, ["A", "B"], f"class {'9' * 20} is outside the label set of 2 classes"),
        (2, ["A", "B"], "class 2 is outside the label set of 2 classes"),
        ([], None, "expected a text or a number, found list"),
        (True, None, "expected a text or a number, found bool"),
        (None, None, "the record has no label"),
        (" ", None, "the record has no label"),
    ],
)
def test_a_label_that_is_none_is_refused_by_name_or_left_out(tmp_path, label, labels, words):
    spec = labelled(tmp_path, label, labels=labels)
    with pytest.raises(DataError, match=words) as refusal:
        build_lifelong(spec, None, tmp_path / "out")
    assert refusal.value.field == "label" and not (tmp_path / "out").exists()
    manifest = build_lifelong(
        {**spec, "bad_records": "skip", "outside_labels": "drop"}, None, tmp_path / "out"
    )
    assert (manifest["edits"], len(manifest["skipped"]) + manifest["outside_labels"]) == (1, 1)


@pytest.mark.parametrize(("label", "name"), [("1", "B"), (1, "B"), ("0001", "B"), (" 0 ", "A"), ("B", "B")])
def test_a_number_names_a_class(tmp_path, label, name):
    build_lifelong(labelled(tmp_path, label, labels=["A", "B"]), None, tmp_path / "out")
    assert read_edits(tmp_path / "out" / "edits.jsonl")[1].target == name


DIGITS = st.text(st.characters(categories=["Nd", "No", "Cs"]), min_size=1, max_size=3)


@settings(QUICK, max_examples=40)
@given(
    label=DIGITS | junk, labels=st.sampled_from((None, ["A", "B"])), bad=st.sampled_from(("refuse", "skip"))
)
def test_any_label_makes_a_whole_data_set_or_none(label, labels, bad):
    with tempfile.TemporaryDirectory() as place:
        folder, out = Path(place), Path(place) / "out"
        spec = labelled(folder, label, labels=labels, bad_records=bad, outside_labels="drop")
        try:
            manifest = build_lifelong(spec, None, out)
        except PalimpsestError as error:
            assert len(str(error)) > 15 and not out.exists()
        else:
            assert len(read_edits(out / "edits.jsonl")) == manifest["edits"] >= 1


def test_half_a_character_in_what_a_model_said_is_a_bad_record(tmp_path):
    rows = [{**ASKED[0], "prediction": "\ud800"}, ASKED[1]]
    for name, content in {**FILES, "asked.jsonl": rows}.items():
        (tmp_path / name).write_bytes(written(content))
    with pytest.raises(DataError, match="half a character") as refusal:
        build("qa", tmp_path, "refuse", tmp_path / "out")
    assert refusal.value.field == "prediction" and not (tmp_path / "out").exists()
    build("qa", tmp_path, "skip", tmp_path / "out")
