"""FEVER claims: MEND's form (`fever-{train,dev}-kilt.jsonl`, De Cao's release) and the one of EREN's release.

The base is a classifier of claims as SUPPORTS or REFUTES. MEND's edits flip what the model says about a claim (spec 3.3; set
`keep_answer: 0.5` for its no-op half). EREN's records edit a statement to be true: scope texts labelled yes ask for the
same, those labelled no contradict it and must then be refuted. Its `edit_scope_true_ans` does not belong to the texts item
by item and is not read.
"""

from __future__ import annotations

from palimpsest.data.records import Record, RecordReader, Schema
from palimpsest.data.zsre import page_of
from palimpsest.edits import Edit, Probe

LABELS = ("SUPPORTS", "REFUTES")
WORDS = {"yes": LABELS[0], "no": LABELS[1]}


def label_of(record: Record, value: object, name: str) -> str:
    """A label, however written in capitals; others are refused."""
    text = record.checked(value, name)
    if text.upper() not in LABELS:
        raise record.error(f"expected {' or '.join(LABELS)}, found {text!r}", name)
    return text.upper()


def kilt(record: Record) -> Edit:
    """MEND's form: flip the model's own prediction."""
    claim, said = record.text("input"), label_of(record, record.get("prediction"), "prediction")
    labels = [label_of(record, text, "alternatives") for text in record.texts("alternatives")]
    if said in labels:
        raise record.error(f"the model's own prediction {said} is among them", "alternatives")
    rephrasings = record.texts("filtered_rephrases")
    return record.edit(
        prompt=claim,
        target=labels[0],
        subject=page_of(record, claim) if record.has("output") else None,
        truth=said,
        rephrasings=tuple(text for text in dict.fromkeys(rephrasings) if text != claim),
    )


def statements(record: Record) -> Edit:
    """EREN's form: the statement becomes true; its opposite is what was held before."""
    statement = record.text("edit_statement")
    same: dict[str, None] = {}
    contrary: dict[str, None] = {}
    for number, item in enumerate(record.items(record.get("edit_scope"), "edit_scope")):
        label = f"edit_scope[{number}]"
        pair = record.items(item, label)
        if len(pair) != 2 or pair[1] not in WORDS:
            raise record.error("expected [text, yes or no]", label)
        (same if pair[1] == "yes" else contrary)[record.checked(pair[0], label)] = None
    if statement in contrary:
        raise record.error("the statement itself is labelled no", "edit_scope")
    return record.edit(
        prompt=statement,
        target=LABELS[0],
        truth=LABELS[1],
        rephrasings=tuple(text for text in same if text != statement),
        portability=tuple(Probe(text, LABELS[1], "implied") for text in contrary if text not in same),
    )


READER = RecordReader(
    "fever",
    "fever",
    (
        Schema("fever-kilt", frozenset({"input", "prediction", "alternatives", "filtered_rephrases"}), kilt),
        Schema("fever-statements", frozenset({"edit_statement", "edit_scope"}), statements),
    ),
)
