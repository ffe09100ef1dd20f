"""Scores: their definitions, and that padded batches give the same numbers as one record at a time."""

from __future__ import annotations

import math
import random
import tracemalloc

import pytest
import torch
from tiny import TEXTS, random_statistics, some_edits, tiny_model

from palimpsest.editors import make_editor
from palimpsest.edits import Edit, Probe
from palimpsest.errors import DataError
from palimpsest.metrics.answers import Batching, predict_answers
from palimpsest.metrics.evaluation import Evaluation, aggregate, questions_of
from palimpsest.metrics.generation import as_text, generate_tokens
from palimpsest.metrics.perplexity import TextLoss, held_out_passages, text_loss, token_rows
from palimpsest.metrics.scores import exact_match, generation_match, mean, token_accuracy

PAIRS = [(question.prompt, question.answer) for edit in some_edits() for question in questions_of(0, edit)]


@pytest.fixture(scope="module", params=["gpt2", "gptj", "llama"])
def model(request):
    return tiny_model(request.param)


def test_definitions():
    assert token_accuracy([1, 2, 3], [1, 5, 3]) == pytest.approx(2 / 3)
    assert exact_match([1, 2], [1, 2]) == 1.0 and exact_match([1, 2], [1, 3]) == 0.0
    assert generation_match(" Velden", "Velden ") == 1.0 and generation_match("Vel", "Velden") == 0.0
    assert mean([0.1] * 10) == 0.1
    with pytest.raises(ValueError, match="predicted"):
        token_accuracy([1], [1, 2])
    with pytest.raises(ValueError, match="predicted"):
        exact_match([], [])
    with pytest.raises(ValueError, match="no values"):
        mean([])


@pytest.mark.parametrize("size", [1, 40, 4096])
def test_groups_hold_every_row_once_and_keep_the_budget(size):
    lengths = [5, 9, 5, 30, 1, 9]
    for equal in (False, True):
        groups = list(Batching(size, equal).groups(lengths))
        assert sorted(row for group in groups for row in group) == list(range(6))
        for group in groups:
            assert len(group) == 1 or len(group) * max(lengths[row] for row in group) <= size
            assert not equal or len({lengths[row] for row in group}) == 1


def test_predictions_are_those_of_the_plain_pass(model):
    for (prompt, answer), found in zip(PAIRS, predict_answers(model, PAIRS), strict=True):
        ids = model.tokenizer(f"{prompt} {answer}")["input_ids"]
        start = len(model.tokenizer(prompt)["input_ids"])
        with torch.no_grad():
            logits = model.network(
                input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))
            ).logits[0]
        assert found.wanted == tuple(ids[start:])
        assert found.predicted == tuple(logits[start - 1 : -1].argmax(dim=-1).tolist())


def test_batches_give_the_same_answers_as_one_by_one(model):
    alone = [predict_answers(model, [pair])[0] for pair in PAIRS]
    for batching in (Batching(4096), Batching(50), Batching(4096, equal_length=True)):
        assert predict_answers(model, PAIRS, batching) == alone


def test_only_needed_logits_are_computed(model, monkeypatch):
    rows = []
    handle = model.head.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[:-1].numel()))
    try:
        answers = predict_answers(model, PAIRS)
    finally:
        handle.remove()
    assert sum(rows) == sum(len(answer.wanted) for answer in answers)


def test_empty_answers_are_refused(model):
    with pytest.raises(DataError, match="no token"):
        predict_answers(model, [("A prompt", "")])
    assert predict_answers(model, []) == []


def test_generation_is_greedy_and_the_same_in_batches(model):
    prompts, counts = [prompt for prompt, _ in PAIRS], [1 + i % 4 for i in range(len(PAIRS))]
    found = generate_tokens(model, prompts, counts, Batching(60))
    for prompt, count, tokens in zip(prompts, counts, found, strict=True):
        ids = model.tokenizer(prompt)["input_ids"]
        for _ in range(count):
            with torch.no_grad():
                logits = model.network(
                    input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))
                ).logits
            ids = [*ids, int(logits[0, -1].argmax())]
        assert tokens == tuple(ids[-count:])
    assert as_text(model, model.tokenizer(" Velden")["input_ids"]) == "Velden"


def test_perplexity_is_that_of_the_plain_pass(model):
    rows = token_rows(model, TEXTS[:5], budget=90)
    assert sum(len(row) for row in rows) <= 90
    losses, count = [], 0
    for row in rows:
        ids = torch.tensor([row])
        with torch.no_grad():
            loss = model.network(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss
        losses.append(float(loss) * (len(row) - 1))
        count += len(row) - 1
    found = text_loss(model, rows)
    assert found.tokens == count
    assert found.loss == pytest.approx(sum(losses) / count, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(found.loss))
    assert TextLoss(1e6, 1).perplexity == math.inf
    with pytest.raises(DataError, match="two tokens"):
        text_loss(model, [])


def test_held_out_text_is_the_last_tenth(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(f"line {i}" for i in range(30)) + "\n\n")
    assert list(held_out_passages(path)) == ["line 27", "line 28", "line 29"]
    path.write_text("\n")
    with pytest.raises(DataError, match="no text"):
        held_out_passages(path)
    with pytest.raises(DataError, match="does not exist"):
        held_out_passages(tmp_path / "absent")


@pytest.mark.parametrize("share", [0.1, 0.34, 1.0])
def test_held_out_text_is_what_it_was_when_the_whole_file_was_read(tmp_path, share):
    """Every character that ends a line for Python, of which some stand inside passages of real text."""
    path, source = tmp_path / "text.txt", random.Random(1)
    for _ in range(40):
        ends = ["\n", "\r\n", "\r", "\u2028", "\x0c", "\x85", "\n\n", " \n", "\n \t\n"]
        text = "".join(f"größe {k}{source.choice(ends)}" for k in range(source.randint(1, 25)))
        path.write_bytes(text.encode())
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        assert list(held_out_passages(path, share)) == lines[-max(1, round(share * len(lines))) :]


def test_the_drift_meter_keeps_little_of_a_large_text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("one passage of a large file, and so on\n" * 100_000)  # 4 MB
    model = tiny_model("gpt2")
    tracemalloc.start()
    rows = token_rows(model, held_out_passages(path), 64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows and peak < 1_000_000


def test_evaluation_before_editing_and_after_a_change():
    model = tiny_model("gpt2")
    edits = some_edits(5)
    evaluation = Evaluation(model, edits)
    before = {(split, metric): (value, n) for split, metric, value, n in aggregate(evaluation.before())}
    assert {split for split, _ in before} == {"edit", "rephrase", "locality"}
    assert before["locality", "locality"] == (1.0, 5)
    assert before["locality", "generation_match"] == (1.0, 5)
    assert evaluation.after(range(5)) == evaluation.before()  # nothing was edited
    with torch.no_grad():
        # Every answer becomes token 7: locality is lost.
        model.network.lm_head.weight = torch.nn.Parameter(model.network.lm_head.weight.clone())
        model.network.transformer.ln_f.weight.zero_()
        model.network.transformer.ln_f.bias.copy_(model.network.lm_head.weight[7])
    after = {(v.split, v.metric): v.value for v in evaluation.after([2])}
    answers = predict_answers(model, [(edits[2].prompt, edits[2].target)])[0]
    assert set(answers.predicted) == {answers.predicted[0]}
    assert after["edit", "reliability"] == token_accuracy(answers.predicted, answers.wanted)
    assert after["locality", "exact_match"] == 0.0
    assert len({v.order for v in evaluation.after([1, 3])}) == 2


def test_several_probes_count_as_one_record():
    model = tiny_model("gpt2")
    edit = Edit(
        prompt="Ada Tolvek lives in the city of",
        target="Velden",
        identifier="a",
        rephrasings=("I say Ada Tolvek lives in", "The mother of Ada Tolvek lives in"),
        locality=(Probe("Ben Tolvek lives in", "Marrin"), Probe("The city of", "Ostrava", "unrelated")),
        portability=(Probe("The brother of Ada Tolvek visits her in", "Velden", "one_hop"),),
    )
    values = Evaluation(model, [edit], generation=False).after([0])
    found = {(v.split, v.metric): v.value for v in values}
    assert len(found) == len(values)
    assert ("portability", "portability") in found  # judged against the answer that follows, not the old one
    assert ("rephrase", "generality") in found and ("unrelated", "locality") in found
    assert not any(metric == "generation_match" for _, metric in found)


def test_swap_rate_is_what_the_hook_layers_did_with_prompt_and_answer():
    model = tiny_model("gpt2")
    settings = {"layers": [0, 1], "steps": 3, "target_search": "plain"}
    editor = make_editor("comeba_hk", model, settings, random_statistics(model, (0, 1)))
    evaluation = Evaluation(model, some_edits(4), generation=True, batching=Batching(tokens=40))
    editor.edit(evaluation.edits)
    seen = [row for q in evaluation.questions for row in editor.inspect([q.text], [None])]
    for layer in (0, 1):  # a threshold that about half of the prompts pass
        editor.hooked.alpha[layer] = sorted(max(row["z"]) for row in seen if row["layer"] == layer)[
            len(seen) // 3
        ]
    found = {
        (v.order, v.split): v.value
        for v in evaluation.after(range(4), editor.watching)
        if v.metric == "swap_rate"
    }
    wanted = {}
    for question in evaluation.questions:
        rows = editor.inspect([question.text], [None])
        wanted.setdefault((question.order, question.split), []).append(
            any(any(row["swapped"]) for row in rows)
        )
    assert found == {key: sum(flags) / len(flags) for key, flags in wanted.items()}
    assert 0 < mean(list(found.values())) < 1


@pytest.mark.parametrize("padding", ["masked", "official"])
def test_hook_layers_give_the_same_answers_in_batches_as_one_by_one(padding):
    model = tiny_model("gpt2")
    settings = {"layers": [0, 1], "steps": 3, "padding": padding, "target_search": "plain"}
    editor = make_editor("comeba_hk", model, settings, random_statistics(model, (0, 1)))
    before = predict_answers(model, PAIRS)
    editor.edit(some_edits(2))
    state = editor.state()
    for name, tensor in state.tensors.items():  # strong and wide enough to change many answers
        if name.startswith("difference"):
            tensor.normal_(generator=torch.Generator().manual_seed(0)).mul_(30.0)
    state.plain["alpha"] = {"0": 0.2, "1": 0.2}
    editor.load_state(state)
    alone = [predict_answers(model, [pair])[0] for pair in PAIRS]
    assert alone != before
    assert predict_answers(model, PAIRS, Batching(4096, equal_length=padding == "official")) == alone
    prompts, counts = [prompt for prompt, _ in PAIRS], [2] * len(PAIRS)
    batching = Batching(100, equal_length=padding == "official")
    one_by_one = [generate_tokens(model, [prompt], [2])[0] for prompt in prompts]
    assert generate_tokens(model, prompts, counts, batching) == one_by_one
    editor.remove()
    assert predict_answers(model, PAIRS) == before
