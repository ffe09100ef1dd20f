"""MEND's editing of a language model on text: a passage is to be continued otherwise (arXiv 2110.11309, Wikitext; spec 3.6).

x_e is a passage, y_e a continuation of ten words that the model would not give, x' the passage with up to half of it cut off
at the front; out of scope are other passages with their own continuations, whose perplexity is the drawdown. The paper takes
y_e from a sample of distilGPT-2. Records are {passage, continuation, new}; of a text file with one passage a line they are
made here, `new` being the end of another line: text of the same kind, without a second model.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from palimpsest.data.records import Record, RecordReader, Schema
from palimpsest.data.sources import Source, digest, locate, open_source, read_bytes, read_text
from palimpsest.edits import Edit
from palimpsest.errors import DataError

CONTINUED = 10  # words of y_e, as many as the paper has tokens
LEAST, MOST = (
    14,
    30,
)  # words of x_e: with fewer there is little to cut, with more a small model's context ends
CUTS = (1 / 6, 1 / 3, 1 / 2)  # shares of x_e that x' lacks


def open_passages(spec: Mapping[str, Any], folder: Any = None) -> Source:
    """Records of a file in the form above, or made of a text with one passage a line (file names that end in .txt).

    Raises:
        DataError: fewer than two lines of the text are long enough.
    """
    name = spec.get("file")
    if not (isinstance(name, str) and name.removesuffix(".gz").endswith(".txt")):
        return open_source(spec, folder)
    path = locate(name, folder)
    lines = [line.split() for line in read_text(path, spec.get("sha256")).splitlines()]
    lines = [words for words in lines if len(words) >= LEAST + CONTINUED]
    if len(lines) < 2:
        raise DataError(
            f"{len(lines)} lines have at least {LEAST + CONTINUED} words; two are needed",
            file=name,
            remedy="Give a text with longer passages, one a line",
        )
    records = []
    for number, words in enumerate(lines):
        other = random.Random(f"passage {number}").randrange(len(lines) - 1)
        new = lines[other if other < number else other + 1][-CONTINUED:]
        passage = words[:-CONTINUED][-MOST:]
        records.append({"passage": passage, "continuation": words[-CONTINUED:], "new": new})
    whole = [{key: " ".join(words) for key, words in record.items()} for record in records]
    return Source(name, whole, digest(read_bytes(path)))


def continued(record: Record) -> Edit:
    """One passage."""
    passage, own, new = (record.text(name) for name in ("passage", "continuation", "new"))
    words = passage.split()
    cut = (" ".join(words[round(share * len(words)) :]) for share in CUTS)
    return record.edit(
        prompt=passage,
        target=new,
        truth=own,
        rephrasings=tuple(text for text in dict.fromkeys(cut) if text and text != passage),
    )


READER = RecordReader(
    "passages",
    "passage",
    (Schema("continuations", frozenset({"passage", "continuation", "new"}), continued),),
)
