"""Retrieval: the nearest stored edit by plain likeness of texts, read by the frozen base."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_editors import PROMPTS, answers_for, edits_for, logits
from tiny import ALL_FAMILIES, tiny_model

from palimpsest.editors import make_editor
from palimpsest.editors.base import load_state, save_state
from palimpsest.editors.retrieval import WordIndex
from palimpsest.edits import Edit
from palimpsest.errors import ModelError, SettingsError
from palimpsest.models.objectives import say

WORDS = st.lists(
    st.sampled_from(["Mira", "mira", "Sorn", "city", "of", "lives", "Velden"]), min_size=1, max_size=6
)
TEXTS = WORDS.map(" ".join)


@settings(deadline=None, max_examples=60)
@given(stored=st.lists(TEXTS, min_size=1, max_size=6), asked=TEXTS)
def test_likeness_is_the_cosine_of_weighted_counts(stored, asked):
    """Against dense vectors over all words; case does not count, and a text is most like itself."""
    index = WordIndex()
    index.append(stored)
    lower = [text.lower().split() for text in stored]
    words = sorted({word for text in [*lower, asked.lower().split()] for word in text})
    n = len(stored)
    weight = [math.log((1 + n) / (1 + sum(word in text for text in lower))) + 1 for word in words]

    def vector(text):
        return torch.tensor(
            [text.count(w) * x for w, x in zip(words, weight, strict=True)], dtype=torch.float64
        )

    expected = [torch.cosine_similarity(vector(asked.lower().split()), vector(text), dim=0) for text in lower]
    assert torch.allclose(index.likeness(asked), torch.stack(expected), atol=1e-9)
    assert float(index.likeness(stored[0])[0]) == pytest.approx(1.0)
    index.keep([0])
    assert float(index.likeness(stored[0])[0]) == pytest.approx(1.0)


@torch.no_grad()
def longer_logits(model, prefix, prompt, answer):
    """Logits of an answer and its end token, of a decoder that reads `prefix` before the prompt."""
    asked = [*model.tokenizer(f"{prompt} {answer}")["input_ids"], model.end_token]
    said = len(asked) - len(model.tokenizer(prompt)["input_ids"])
    return model.network(torch.tensor([[*prefix, *asked]])).logits[0, -said - 1 : -1]


@pytest.mark.parametrize("family", ALL_FAMILIES)
@pytest.mark.parametrize("embedding", ["tfidf", "base"])
def test_the_base_reads_the_nearest_edit_first(family, embedding):
    """Decoders: the same numbers as the longer text by itself. A prompt that resembles nothing is left alone."""
    model, edits = tiny_model(family), edits_for(tiny_model(family))
    answers = answers_for(model, PROMPTS)
    before = logits(model, PROMPTS, answers)
    longer = [
        f"{edit.prompt} {edit.target}. {prompt}" for edit, prompt in zip(edits, PROMPTS[:2], strict=False)
    ]
    plain = logits(model, longer, answers[:2])
    asked = {"embedding": embedding, "template": "{prompt} {target}.", "threshold": 0.999}
    editor = make_editor("retrieval", model, asked)
    editor.edit(edits)
    assert [row["edit"] for row in editor.inspect(PROMPTS) if row["fired"]] == ["edit-0", "edit-1"]
    after = logits(model, PROMPTS, answers)
    assert torch.equal(after[len(plain) :], before[len(plain) :])
    assert not torch.allclose(after[: len(plain)], before[: len(plain)], atol=1e-3)
    said = say(model, PROMPTS, 4)
    assert [say(model, [prompt], 4)[0] for prompt in PROMPTS] == said
    assert [text.strip() for text in editor.generate(PROMPTS, 4)] == [one.text for one in said]
    if model.kind == "decoder":
        assert say(model, PROMPTS, 4, cached=False) == said
    prefixes = [editor.reader.prefix(edit.prompt, edit.target) for edit in edits[:2]]
    editor.remove()
    if model.kind == "decoder":  # by token: the tokenizer may cut the joined text elsewhere
        whole = [longer_logits(model, *row) for row in zip(prefixes, PROMPTS[:2], answers[:2], strict=True)]
        assert torch.allclose(after[: len(plain)], torch.cat(whole), atol=1e-4)
    assert torch.equal(logits(model, PROMPTS, answers), before)


def test_what_is_too_long_loses_the_beginning_of_the_edit():
    """The prompt is kept whole, and of the edit the answer, which stands last (spec Q15)."""
    model = tiny_model()
    editor = make_editor("retrieval", model, {"separator": "."})
    edit = Edit("Mira lives in the city of " * 6 + "Port", "Velden")
    prompt = "Mira Sorn lives in the city of " * 5 + "Velden"
    editor.edit([edit])
    ids = model.tokenizer(prompt)["input_ids"]
    prefix = editor.reader.prefix(edit.prompt, edit.target)
    assert len(prefix) + len(ids) > model.context
    spliced, places = editor.reader._spliced(ids, prefix)
    assert len(spliced) == model.context and spliced[places[0] :] == ids
    assert model.tokenizer.decode(spliced[: places[0]]).endswith("Velden.")
    say(model, [prompt], 2)


def test_thresholds_and_places_of_encoders():
    model = tiny_model()
    for threshold, fired in ((0.0, [True, True, True, True]), (0.999, [True, True, False, False])):
        editor = make_editor("retrieval", model, {"threshold": threshold})
        editor.edit(edits_for(model))
        assert [row["fired"] for row in editor.inspect(PROMPTS)] == fired
        editor.remove()
    for wrong in (
        {"threshold": 1.0},
        {"template": "the answer is {answer}"},
        {"template": "{"},
        {"embedding": ""},
    ):
        with pytest.raises(SettingsError, match=f"setting {next(iter(wrong))}"):
            make_editor("retrieval", model, wrong)
    with pytest.raises(ModelError, match="there is no directory ./nowhere"):
        make_editor("retrieval", model, {"embedding": "./nowhere"})
    with pytest.raises(SettingsError, match="needs no training"):
        make_editor("retrieval", model, trained="anything")


def test_an_encoder_of_its_own(tmp_path):
    """From a directory, with its own tokenizer; the state comes back as text."""
    model, other = tiny_model(), tiny_model("bert", seed=2)
    other.network.save_pretrained(tmp_path / "encoder")
    other.tokenizer.save_pretrained(tmp_path / "encoder")
    settings = {"embedding": str(tmp_path / "encoder"), "threshold": 0.9999}
    editor = make_editor("retrieval", model, settings)
    editor.edit(edits_for(model))
    rows = editor.inspect(PROMPTS)
    assert [row["edit"] for row in rows[:2]] == ["edit-0", "edit-1"] and all(row["fired"] for row in rows[:2])
    assert rows[0]["score"] == pytest.approx(1.0, abs=1e-5)
    save_state(editor, tmp_path / "state")
    said = say(model, PROMPTS, 3)
    editor.remove()
    again = make_editor("retrieval", model, settings)
    load_state(again, tmp_path / "state")
    assert say(model, PROMPTS, 3) == said
    assert again.undo("edit-0").name == "edit-0" and again.inspect(PROMPTS[0])[0]["edit"] != "edit-0"
