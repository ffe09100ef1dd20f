"""Two edits of one prompt match it equally well, to the bit, whatever batches they were stored and are asked in."""

from __future__ import annotations

import pytest
import torch
from memory_editors import serac
from tiny import tiny_model

from palimpsest.editors import make_editor
from palimpsest.editors.shared.text_keys import Keys
from palimpsest.edits import Edit

ASKED = "Mira Sorn lives in the city of"
LONG = "The mother of Ada Tolvek was born in the city of Port Velden Bay therefore I say so"
COMPANY = ([], ["Mira"], [LONG], [LONG, "Ada"])  # rows of other lengths: another padding, other rounding
OLD, NEW = Edit(ASKED, "Velden", identifier="old"), Edit(ASKED, "Marrin", identifier="new")


def test_the_table_of_keys_grows_in_place():
    keys, rows = Keys(3, torch.float32, torch.device("cpu")), torch.randn(200, 3)
    for number in range(200):
        keys.append([number], lambda some, number=number: rows[[number + place for place in some]])
    assert torch.equal(keys.rows, rows)
    keys.keep([5, 1])
    assert torch.equal(keys.rows, rows[[5, 1]])


def test_a_text_is_embedded_once():
    """Its entries share a row, which stays as long as one of them does."""
    keys, asked = Keys(1, torch.float32, torch.device("cpu")), []

    def embed(texts):
        return lambda some: (
            asked.append([texts[place] for place in some])
            or torch.tensor([[float(ord(texts[place]))] for place in some])
        )

    for texts in ("aba", "cb", "a"):
        keys.append(texts, embed(texts))
    assert asked == [["a", "b"], ["c"]] and keys.rows[:, 0].tolist() == [97, 98, 99]
    assert keys.spread(keys.rows.T)[0].tolist() == [97, 98, 97, 99, 98, 97]
    keys.keep([4, 3, 0])
    assert keys.spread(keys.rows.T)[0].tolist() == [98, 99, 97]
    keys.keep([1, 2])
    keys.append("bc", embed("bc"))
    assert asked[2:] == [["b"]] and keys.spread(keys.rows.T)[0].tolist() == [99, 97, 98, 99]
    with pytest.raises(ZeroDivisionError):
        keys.append("ad", lambda _: 1 / 0)
    assert keys.spread(keys.rows.T)[0].tolist() == [99, 97, 98, 99] and len(keys.rows) == 3


def settings_of(method, folder):
    """Settings of LU, or of retrieval with this embedding; an encoder comes from the folder."""
    if method != "encoder":
        return {"radius": 0.1} if method == "lu" else {"embedding": "base"}
    other = tiny_model("bert", seed=2)
    other.network.save_pretrained(folder)
    other.tokenizer.save_pretrained(folder)
    return {"embedding": str(folder)}


@pytest.mark.parametrize("method", ["lu", "base", "encoder"])
def test_the_newer_edit_of_a_prompt_speaks_in_every_batch(method, tmp_path):
    """Stored alone or in company, asked alone or in company, taken back, saved and loaded."""
    model, chosen = tiny_model(), settings_of(method, tmp_path)
    name = "lu" if method == "lu" else "retrieval"

    def speaking(editor):
        return {editor.inspect([ASKED, *company])[0]["edit"] for company in COMPANY}

    for company in COMPANY:
        editor = make_editor(name, model, chosen)
        editor.edit([OLD])
        editor.edit([NEW, *(Edit(prompt, "so") for prompt in company)])
        assert speaking(editor) == {"new"}
        state = editor.state()
        editor.edit([Edit(ASKED, "so", identifier="newest"), Edit(LONG, "so")])
        assert speaking(editor) == {"newest"}
        editor.undo("newest")
        assert speaking(editor) == {"new"}
        editor.load_state(state)
        assert speaking(editor) == {"new"}
        editor.undo("new")
        assert speaking(editor) == {"old"}
        editor.remove()
        again = make_editor(name, model, chosen)
        again.load_state(state)
        assert speaking(again) == {"new"}
        again.remove()


@pytest.mark.parametrize("classifier", ["embedding", "cross"])
def test_edits_that_are_one_text_to_the_classifier_score_equally(classifier):
    """Spec E3: as released, both are cut to their prompt. Corrected, their answers tell them apart."""
    shape = {"classifier": classifier, "pooling": "mean", "scope_width": 64, "initial_range": 0.05}
    queries = [ASKED, "Mira Karel", LONG, "Ada Sorn lives in"]
    for texts in ("released", "corrected"):
        for company in COMPANY:
            editor = serac(settings={**shape, "texts": texts}, exact=False)
            with torch.no_grad():  # scores that are not all alike
                for parameter in editor.classifier.network["head"].parameters():
                    parameter.mul_(10)
            editor.edit([OLD])
            for query in queries:
                editor.scope.log_scope([query])
            editor.edit([NEW, *(Edit(prompt, "so") for prompt in company)])
            scores = editor.scope.log_scope(queries)
            assert scores.shape == (4, 2 + len(company))
            assert torch.equal(scores[:, 0], scores[:, 1]) == (texts == "released")
            editor.undo("new")
            left = editor.scope.log_scope(queries)
            assert torch.allclose(left, scores[:, [0, *range(2, scores.shape[1])]], atol=1e-4)
            editor.remove()
