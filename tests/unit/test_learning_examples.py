"""What editors are trained on: the file, its refusals, and what a training step is given."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import some_examples, tiny_model, write_examples

from palimpsest.errors import DataError, SettingsError
from palimpsest.learning.examples import (
    LearningExample,
    Outside,
    Sampler,
    digest_of_examples,
    read_examples,
)
from palimpsest.learning.train import fitting

EXAMPLES = some_examples()
IMPLIED = (("Who lives in {}?", "Ada Tolvek"), ("In {} lives who?", "Ada Tolvek"))
STATED = (("True or false: Ada lives in {}", "True"),)


def test_a_file_gives_back_what_was_written(tmp_path):
    examples = [replace(EXAMPLES[0], implied=IMPLIED, true_false=STATED, subject=None), *EXAMPLES[1:]]
    write_examples(tmp_path / "learning.jsonl", examples)
    read = read_examples(tmp_path / "learning.jsonl")
    assert read == examples
    assert digest_of_examples(read) == digest_of_examples(examples) != digest_of_examples(EXAMPLES)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("prompt", "  ", "empty"),
        ("prompt", 3, "expected a text"),
        ("answer", None, "expected a text"),
        ("alternatives", [], "answer to edit to"),
        ("alternatives", ["Velden"], "the answer itself"),
        ("alternatives", "Velden", "expected a list"),
        ("rephrasings", ["Where does Ada Tolvek live?"], "its own rephrasings"),
        ("rephrasings", [""], "empty"),
        ("subject", "Jon", "does not occur"),
        ("implied", [["one text"]], "question, answer"),
        ("opposed", [["one text"]], "question, answer"),
        ("true_false", [["one text"]], "question, answer"),
        ("opposed", [["what?", " "]], "empty"),
        ("outside", [{"prompt": "a"}], "prompt, answer, near"),
        ("outside", [{"prompt": "a", "answer": "b", "near": "yes"}], "prompt, answer, near"),
        ("outside", [{"prompt": "a", "answer": "b", "known": 1}], "known or not"),
        ("split", "dev", "train, valid, test"),
        ("identifier", "fact-1", "used twice"),
    ],
)
def test_a_bad_record_is_refused_with_line_and_field(field, value, words, tmp_path):
    contents = [example.to_dict() for example in EXAMPLES]
    at = 2 if field == "identifier" else 0
    contents[at][field] = value
    path = tmp_path / "learning.jsonl"
    path.write_text("".join(json.dumps(content) + "\n" for content in contents))
    with pytest.raises(
        DataError, match=rf"learning.jsonl, record line {at + 1}, field '{field}': .*{words}.*again"
    ):
        read_examples(path)


def test_files_that_cannot_be_learned_from(tmp_path):
    path = tmp_path / "learning.jsonl"
    with pytest.raises(DataError, match="does not exist"):
        read_examples(path)
    path.write_text("{\n")
    with pytest.raises(DataError, match="line 1: not valid JSON"):
        read_examples(path)
    path.write_text("[]\n")
    with pytest.raises(DataError, match="expected an object"):
        read_examples(path)
    write_examples(path, [replace(example, rephrasings=()) for example in EXAMPLES])
    with pytest.raises(DataError, match="no record has a rephrasing.*rephrase: false"):
        read_examples(path)
    assert len(read_examples(path, rephrase=False)) == len(EXAMPLES)  # the remedy works


def crossed(number: int) -> LearningExample:
    """A fact whose out-of-scope prompts are those of its two neighbours, of 8 in a ring."""
    return LearningExample(
        identifier=str(number),
        prompt=f"question {number}",
        subject=None,
        answer="yes",
        alternatives=("no", "perhaps"),
        rephrasings=(f"rephrased {number}", f"again {number}"),
        outside=(
            Outside(f"question {(number + 1) % 8}", "yes", near=True),
            Outside(f"again {(number + 7) % 8}", "yes"),
        ),
    )


@settings(deadline=None)  # a busy machine is no failure
@given(seed=st.integers(0, 1000), k=st.integers(1, 7), share=st.sampled_from([0.0, 0.5, 1.0]))
def test_a_draw_is_of_different_facts_and_nothing_outside_is_one_of_them(seed, k, share):
    """Q12: out-of-scope prompts may be other facts of the file, but not those edited in the same step."""
    examples = [crossed(number) for number in range(8)]
    draws = Sampler(examples, seed, hard_share=share).draw(k)
    edited = {draw.edit.identifier for draw in draws}
    assert len(edited) == len(draws) == k
    texts = {text for one in examples if one.identifier in edited for text in one.in_scope()}
    for draw in draws:
        example = examples[int(draw.edit.identifier)]
        assert draw.query in example.rephrasings and draw.query_answer == draw.edit.target
        assert draw.edit.target in example.alternatives and draw.edit.truth == "yes"
        assert draw.outside.prompt not in texts


def test_the_nth_draw_depends_on_the_seed_and_on_n_alone():
    sampler = Sampler(EXAMPLES, 3)
    draws = [sampler.draw(2) for _ in range(5)]
    again = Sampler(EXAMPLES, 3)
    again.drawn = 3
    assert [again.draw(2), again.draw(2)] == draws[3:]
    assert len({str(draw) for draw in draws}) == 5
    assert Sampler(EXAMPLES, 4).draw(2) != draws[0]


def test_near_and_far_prompts_come_in_the_wanted_share():
    def near(share):
        sampler = Sampler(EXAMPLES, 0, hard_share=share)
        groups = [[draw.outside.near for draw in sampler.draw(3)] for _ in range(200)]
        assert all(len(set(group)) == 1 for group in groups)  # whole draws, as released
        return sum(group[0] for group in groups)

    assert near(0.0) == 0 and near(1.0) == 200 and 70 < near(0.5) < 130


def test_what_is_in_scope_follows_the_settings():
    own = Sampler(EXAMPLES, 0, rephrase=False).draw(4)
    assert all(draw.query == draw.edit.prompt for draw in own)
    kept = Sampler(EXAMPLES, 0, no_op_share=1.0).draw(4)
    assert all(draw.edit.target == draw.edit.truth == draw.query_answer for draw in kept)


def test_the_four_types_of_hard_questions_come_equally_often():
    """Spec 3.1: uniformly from prompt, rephrasing, implied question, true or false; a share of prompts is not drawn before."""
    hard = replace(EXAMPLES[0], implied=IMPLIED, true_false=STATED)
    sampler = Sampler([hard, EXAMPLES[1]], 0, prompt_share=0.9)
    draws = [draw for _ in range(800) for draw in sampler.draw(2) if draw.edit.identifier == "fact-0"]
    implied = [draw for draw in draws if draw.query.startswith(("Who", "In "))]
    stated = [draw for draw in draws if draw.query.startswith("True")]
    own = [draw for draw in draws if draw.query == draw.edit.prompt]
    for kind in (own, implied, stated, [draw for draw in draws if draw.query in hard.rephrasings]):
        assert len(kind) / len(draws) == pytest.approx(0.25, abs=0.05)
    assert {draw.query_answer for draw in implied} == {"Ada Tolvek"}
    assert all(draw.edit.target in draw.query and "{}" not in draw.query for draw in implied)
    said = {answer: [draw for draw in stated if draw.query_answer == answer] for answer in ("True", "False")}
    assert all(draw.edit.target in draw.query for draw in said["True"])
    assert not any(draw.edit.target in draw.query or "{}" in draw.query for draw in said["False"])
    assert len(said["True"]) / len(stated) == pytest.approx(0.5, abs=0.12)


def test_edits_of_one_prompt_are_not_drawn_together():
    """Both sentiments of an entity, or a question that the file has twice: they would contradict each other."""
    pair = [
        replace(EXAMPLES[0], identifier=f"fact-0{mark}", alternatives=(new,), implied=((f"{new}?", new),),
                opposed=((f"{old}?", old),))
        for mark, new, old in (("+", "good", "bad"), ("-", "bad", "good"))
    ]  # fmt: skip
    assert [one.fact for one in (*pair, EXAMPLES[1])] == ["fact-0", "fact-0", "fact-1"]
    sampler = Sampler([*pair, *EXAMPLES[1:3]], 0, no_op_share=0.5)
    assert len(sampler) == 3
    draws = [sampler.draw(3) for _ in range(60)]
    assert all(len({draw.edit.prompt for draw in group}) == 3 for group in draws)
    seen = [draw for group in draws for draw in group if draw.edit.prompt == EXAMPLES[0].prompt]
    assert {draw.edit.target for draw in seen} == {"good", "bad"}
    assert all(
        draw.query_answer == draw.edit.target != draw.opposite for draw in seen
    )  # no edit to what is so
    with pytest.raises(SettingsError, match="4 different edits.*from 3 prompts"):
        sampler.draw(4)
    twin = replace(EXAMPLES[0], identifier="twin", rephrasings=("another wording",), outside=())
    alone = replace(EXAMPLES[0], outside=(Outside("another wording", "Velden"), Outside("far", "x")))
    twice = Sampler([alone, twin, EXAMPLES[1]], 0)
    drawn = [draw for _ in range(60) for draw in twice.draw(1) if draw.edit.identifier == "fact-0"]
    assert drawn and {draw.outside.prompt for draw in drawn} == {
        "far"
    }  # the twin's wordings are this fact's too


def test_a_statement_about_an_edited_fact_is_not_out_of_scope_of_another_edit_of_the_same_step():
    """Q12: the file has statements with a place for the answer, but where they stand out of scope they say one."""
    said = "True or false: Ada lives in"
    stated = replace(EXAMPLES[0], true_false=((f"{said} {{}}", "True"),))
    asking = replace(
        EXAMPLES[1],
        outside=(
            Outside(f"{said} {stated.answer}", "True"),
            Outside(f"{said} {stated.alternatives[0]}", "False"),
            Outside("far", "x"),
        ),
    )
    sampler = Sampler([stated, asking], 0)
    draws = [draw for _ in range(40) for draw in sampler.draw(2) if draw.edit.identifier == "fact-1"]
    assert {draw.outside.prompt for draw in draws} == {"far"}
    alone = [draw for _ in range(60) for draw in sampler.draw(1) if draw.edit.identifier == "fact-1"]
    assert {draw.outside.prompt for draw in alone} == {other.prompt for other in asking.outside}


def test_only_answers_that_are_not_known_are_marked():
    content = replace(EXAMPLES[0], outside=(Outside("a", "b"), Outside("c", "d", True, False))).to_dict()
    assert list(content["outside"]) == [
        {"prompt": "a", "answer": "b", "near": False},
        {"prompt": "c", "answer": "d", "near": True, "known": False},
    ]
    read = LearningExample.from_dict(content)
    assert [other.known for other in read.outside] == [True, False]
    cut = fitting(tiny_model("bert"), [read])[0]
    assert [other.known for other in cut.outside] == [True, False]


def test_implied_questions_fit_the_edit_that_was_drawn():
    """None for an edit to what is so already, none whose wording holds the new answer as another one's."""
    implied = (("Does Ada live in {}?", "Yes"), ("Does Ada live in Marrin?", "No"))
    example = replace(EXAMPLES[0], implied=implied)
    assert {"Marrin", "Ostrava"} <= set(example.alternatives)
    draws = [
        draw
        for sampler in [Sampler([example, EXAMPLES[3]], 0)]
        for _ in range(300)
        for draw in sampler.draw(1)
    ]
    asked = {
        (draw.edit.target, draw.query, draw.query_answer) for draw in draws if draw.query.startswith("Does")
    }
    assert {target for target, *_ in asked} == set(example.alternatives)
    assert ("Ostrava", "Does Ada live in Marrin?", "No") in asked
    assert ("Marrin", "Does Ada live in Marrin?", "Yes") in asked
    assert ("Marrin", "Does Ada live in Marrin?", "No") not in asked
    idle = Sampler([example], 0, no_op_share=1.0)
    assert not any(idle.draw(1)[0].query.startswith("Does") for _ in range(50))


def test_what_cannot_be_drawn_is_said():
    with pytest.raises(SettingsError, match="7 different edits.*from 6 prompts.*k_train"):
        Sampler(EXAMPLES, 0).draw(7)
    with pytest.raises(DataError, match="none has a rephrasing"):
        Sampler([replace(EXAMPLES[0], rephrasings=())], 0)
    alone = replace(EXAMPLES[0], outside=(Outside(EXAMPLES[0].prompt, "Velden"),))
    with pytest.raises(DataError, match="fact-0.*'outside'.*smaller `k_train`"):
        Sampler([alone], 0).draw(1)
    other = Sampler([replace(EXAMPLES[0], outside=()), EXAMPLES[1]], 0)
    draws = [draw for _ in range(20) for draw in other.draw(1) if draw.edit.identifier == "fact-0"]
    assert draws and {draw.outside.answer for draw in draws} == {EXAMPLES[1].answer}


def test_only_what_the_model_reads_is_learned_from():
    long = "so " * 60
    gpt2, bert = tiny_model("gpt2"), tiny_model("bert")
    examples = [
        replace(
            EXAMPLES[0],
            rephrasings=(f"{long}?", "short"),
            outside=(Outside(long, "x"), EXAMPLES[0].outside[0]),
        ),
        replace(EXAMPLES[1], prompt=f"{long}{EXAMPLES[1].prompt}"),
    ]
    examples[0] = replace(examples[0], outside=(*examples[0].outside, Outside("Word", "")))
    (kept,) = fitting(gpt2, examples)
    assert kept.rephrasings == ("short",) and kept.outside == EXAMPLES[0].outside[:1]
    assert fitting(gpt2, EXAMPLES) == EXAMPLES
    classes = {"answer": "class 0", "alternatives": ("class 1",), "implied": ((long, "class 2"),)}
    cut = fitting(bert, [replace(one, **classes) for one in examples])
    ((question, answer),) = cut[0].implied
    assert len(bert.tokenizer(question)["input_ids"]) <= bert.context and answer == "class 2"
    assert all(
        other.answer for one in cut for other in one.outside
    )  # a classifier has no answer to leave out
    assert len(cut) == 2 and len(bert.tokenizer(cut[1].prompt)["input_ids"]) <= bert.context
    assert cut[1].prompt == examples[1].prompt[: len(cut[1].prompt)] and cut[1].subject is None
