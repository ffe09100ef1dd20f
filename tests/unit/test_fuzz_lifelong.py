"""Broken files of the lifelong tasks: only the house's own errors come out, and no file of the data set stays."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fuzz import QUICK, broken, damaged

from palimpsest.data.lifelong import build_lifelong
from palimpsest.data.lifelong_source import build_lifelong_source
from palimpsest.errors import PalimpsestError

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
    "before.csv": "text,label\na b,0\ne f,1\n",
    "cases.csv": "\n".join([",facts,term,issue_area", *CASES]) + "\n",
}


def build(task: str, folder: Path, bad_records: str, out: Path) -> None:
    """A data set of the task from the files in a folder."""
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
        build_lifelong(
            {**common, "file": path["shifted.csv"], "upstream": {"file": path["before.csv"]}}, None, out
        )


def written(content) -> bytes:
    lines = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
    return lines.encode()


TASKS = {
    "lives.jsonl": "generation", "names.txt": "generation", "web.txt": "generation", "asked.jsonl": "qa",
    "upstream.jsonl": "qa", "shifted.csv": "classification", "before.csv": "classification",
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
                build(TASKS[name], folder, data.draw(st.sampled_from(("refuse", "skip"))), out)
        except PalimpsestError as error:
            assert len(str(error)) > 15
            assert not out.exists() or not any(path.is_file() for path in out.rglob("*"))
