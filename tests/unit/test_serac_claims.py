"""SERAC on claims: what the second model of a classifier reads, how it starts from scratch, and what it is asked."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from tiny import LABELS, tiny_model

from palimpsest.editors.serac import Settings
from palimpsest.editors.shared.counterfactual import NEAR_PLACES, EditReader, counterfactual_model
from palimpsest.learning.examples import LearningExample, Outside, Sampler
from palimpsest.models.objectives import encode

SHAPE = {"width": 64, "blocks": 2, "heads": 4, "initial_range": 0.06}
EVIDENCE = ("Mira Sorn lives in the city of Velden", "class 1")


def test_a_classifier_from_scratch_attends_to_equal_words_and_keeps_its_seed():
    base = tiny_model("bert")
    made = counterfactual_model(base, "scratch", SHAPE, 3)
    again = counterfactual_model(base, "scratch", SHAPE, 3).network.state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in made.network.state_dict().items())
    for block in made.network.bert.encoder.layer:
        assert torch.equal(block.attention.self.query.weight, block.attention.self.key.weight)
    embeddings = made.network.bert.embeddings
    sizes = [float(t.weight.std()) for t in (embeddings.word_embeddings, embeddings.position_embeddings)]
    assert sizes[1] == pytest.approx(NEAR_PLACES * sizes[0], rel=0.1)
    # A word and 40 others, then the word again: the second one looks back at the first more than at any other.
    words = torch.randperm(len(base.tokenizer) - 5, generator=torch.Generator().manual_seed(0))[:41] + 5
    ids = torch.cat([words, words[:1]])[None] % len(base.tokenizer)
    with torch.no_grad():
        states = embeddings(ids)
        own = made.network.bert.encoder.layer[0].attention.self
        q, k = (f(states)[0].unflatten(1, (4, -1)) for f in (own.query, own.key))
        share = (torch.einsum("hd,nhd->hn", q[-1], k) / own.attention_head_size**0.5).softmax(dim=1)
    assert bool((share.mean(0)[0] > 3 * share.mean(0)[1:-1].max()).all())


def test_segments_tell_the_edit_from_the_input():
    """Of a classifier from scratch alone; one that was trained before reads one text, as published."""
    base = tiny_model("bert")
    reader = Settings(**{f"cf_{name}": SHAPE[name] for name in ("width", "blocks", "heads")}).reader(base, 0)
    seen = []
    reader.model.network.register_forward_pre_hook(lambda _, __, named: seen.append(named), with_kwargs=True)
    inputs = encode(base, ["Ada Sorn lives in Velden", "Mira"], LABELS[:2])
    reader.target_logits([EVIDENCE, ("Ada", "class 2")], inputs)
    (named,) = seen
    for row, edit in enumerate((EVIDENCE, ("Ada", "class 2"))):
        own = int(inputs.padding[row].sum())
        kept, total = len(reader.prefix(*edit)), int(named["attention_mask"][row].sum())
        marks = named["token_type_ids"][row, :total].tolist()
        assert total == own + kept and marks == [0] * (reader.lead + kept) + [1] * (own - reader.lead)
    for where, family in (("base", "bert"), ("scratch", "gpt2")):
        assert not Settings(counterfactual=where).reader(tiny_model(family), 0).segments
    unlabelled = EditReader(base, reader.model, "{prompt}", "  ")  # spec 1.3: evidence, two blanks, claim
    assert (
        unlabelled.prefix(*EVIDENCE) == unlabelled.prefix(EVIDENCE[0], "class 2") != reader.prefix(*EVIDENCE)
    )
    assert "class" not in base.tokenizer.decode(unlabelled.prefix(*EVIDENCE))
    plain = EditReader(base, reader.model)
    assert not torch.equal(
        plain.target_logits([EVIDENCE], inputs.rows([0])), reader.target_logits([EVIDENCE], inputs.rows([0]))
    )


def claims(implied) -> LearningExample:
    return LearningExample(
        identifier="e",
        prompt="The register says that Ada is a sailor",
        subject="Ada",
        answer="REFUTES",
        alternatives=("SUPPORTS",),
        rephrasings=("Ada is a sailor", "Ada works as a sailor"),
        implied=implied,
        outside=(Outside("Mira is a sailor", "REFUTES"),),
    )


def test_claims_that_evidence_supports_and_refutes_are_drawn_equally_often():
    """Spec 3.4; the evidence itself is asked as often as `prompt_share` says, and not without it."""
    refuted = (("Ada is a baker", "REFUTES"), ("Ada is a pilot", "REFUTES"))
    for share in (0.0, 0.3):
        sampler = Sampler([claims(refuted)], 0, prompt_share=share)
        draws = [sampler.draw(1)[0] for _ in range(600)]
        asked = Counter(d.query_answer for d in draws if d.query != d.edit.prompt)
        own = sum(d.query == d.edit.prompt for d in draws) / 600
        assert own == pytest.approx(share, abs=0.07) and (share or own == 0)
        assert asked["SUPPORTS"] / asked.total() == pytest.approx(0.5, abs=0.08)
    hard = Sampler(
        [claims((("Who is a {}?", "Ada"),))], 0
    )  # says the new answer: QA-hard, the prompt is one of three
    kinds = Counter(hard.draw(1)[0].query for _ in range(600))
    assert kinds["The register says that Ada is a sailor"] / 600 == pytest.approx(1 / 3, abs=0.07)
    idle = Sampler([LearningExample(**{**vars(claims(refuted)), "rephrasings": ()})], 0, no_op_share=1.0)
    assert idle.draw(1)[0].query == "The register says that Ada is a sailor"
