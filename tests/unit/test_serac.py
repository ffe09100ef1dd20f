"""SERAC in every pass of the house: gated rows are the counterfactual model's, all others are the base's, bit for bit."""

from __future__ import annotations

import pytest
import torch
import transformers
from memory_editors import PROMPTS, answers_for, edits_for, logits, open_exactly, serac, trained
from tiny import ALL_FAMILIES, FAMILIES, configuration, tiny_model

from palimpsest.editors import make_editor
from palimpsest.editors.base import load_state, save_state
from palimpsest.editors.serac import Settings
from palimpsest.edits import Edit
from palimpsest.errors import ModelError, PalimpsestError, SettingsError
from palimpsest.learning.artefact import TrainedError
from palimpsest.metrics.asked import AskedPairs
from palimpsest.metrics.evaluation import Evaluation
from palimpsest.models.batching import Batching
from palimpsest.models.loading import AUTO
from palimpsest.models.objectives import encode, judge, row_losses, say, target_places

EVERY = pytest.mark.parametrize("family", ALL_FAMILIES)


def rows_of(model, prompts, answers):
    """Row of each answer token in `logits`."""
    return target_places(encode(model, prompts, answers))[0]


@EVERY
def test_an_empty_memory_is_the_base(family):
    """Spec section 10: identical logits, before any edit and after the last one was taken back."""
    model = tiny_model(family)
    answers = answers_for(model, PROMPTS)
    before, said = logits(model, PROMPTS, answers), say(model, PROMPTS, 4)
    editor = serac(model=model)
    editor.router.attach()
    assert torch.equal(logits(model, PROMPTS, answers), before) and say(model, PROMPTS, 4) == said
    edit = edits_for(model)[0]
    editor.edit([edit])
    assert not torch.equal(logits(model, PROMPTS, answers), before)
    editor.undo(edit)
    assert torch.equal(logits(model, PROMPTS, answers), before) and say(model, PROMPTS, 4) == said


@EVERY
def test_rows_in_scope_are_the_other_model_s_and_the_rest_is_untouched(family):
    """In one padded batch; the other model's numbers are computed here by itself, one unpadded row at a time."""
    model = tiny_model(family)
    answers = answers_for(model, PROMPTS)
    before, rows = logits(model, PROMPTS, answers), rows_of(model, PROMPTS, answers)
    editor = serac(model=model)
    editor.edit(edits_for(model))
    after = logits(model, PROMPTS, answers)
    inside = torch.isin(rows, torch.tensor([0, 1]))
    assert torch.equal(after[~inside], before[~inside])
    for row in (0, 1):
        edit = edits_for(model)[row]
        expected = alone(editor.reader.model, edit, PROMPTS[row], answers[row])
        own = after[rows == row]
        assert torch.allclose(own[:, : expected.shape[1]], expected, atol=1e-4)
        assert torch.isinf(own[:, expected.shape[1] :]).all()  # tokens that only the base's head has
    editor.remove()
    assert torch.equal(logits(model, PROMPTS, answers), before)
    assert model.take_fingerprint() == model.fingerprint


@torch.no_grad()
def alone(model, edit, prompt, answer, segments=True):
    """Logits of the answer's tokens by the counterfactual model, from text; one made here tells edit and input apart."""
    tokens = model.tokenizer
    written = tokens(f"{edit.prompt} {edit.target} ", add_special_tokens=False)["input_ids"]
    if model.kind == "decoder":
        asked = tokens(prompt)["input_ids"]
        both = tokens(f"{prompt} {answer}")["input_ids"]
        found = model.network(torch.tensor([[*written, *both]])).logits[0]
        return found[len(written) + len(asked) - 1 :]
    ids = tokens(prompt)["input_ids"]
    if model.kind == "encoder":
        kinds = torch.tensor([[0] * (1 + len(written)) + [int(segments)] * (len(ids) - 1)])
        return model.network(torch.tensor([[ids[0], *written, *ids[1:]]]), token_type_ids=kinds).logits
    said = [0, *tokens(answer)["input_ids"][:-1]]
    return model.network(torch.tensor([[*written, *ids]]), decoder_input_ids=torch.tensor([said])).logits[0]


@EVERY
def test_answers_do_not_depend_on_how_they_are_asked_for(family):
    """Batches, one by one, with and without kept keys and values, and the library's own generation."""
    model = tiny_model(family)
    editor = serac(model=model)
    editor.edit(edits_for(model))
    together = say(model, PROMPTS, 5)
    assert [say(model, [prompt], 5)[0] for prompt in PROMPTS] == together
    if model.kind == "decoder":
        assert say(model, PROMPTS, 5, cached=False) == together
    texts = [said.text for said in together]
    assert [text.strip() for text in editor.generate(PROMPTS, 5)] == texts
    assert [editor.generate(prompt, 5)[0].strip() for prompt in PROMPTS] == texts
    editor.remove()
    assert [said.text for said in say(model, PROMPTS, 5)] != texts


@EVERY
def test_losses_in_a_padded_batch_are_those_of_single_rows(family):
    """Rows in scope and out of it, of different lengths."""
    model = tiny_model(family)
    answers = answers_for(model, PROMPTS)
    editor = serac(model=model)
    editor.edit(edits_for(model))
    inputs = encode(model, PROMPTS, answers)
    with torch.no_grad():
        together = judge(model, inputs)
        for row, (prompt, answer) in enumerate(zip(PROMPTS, answers, strict=True)):
            single = judge(model, encode(model, [prompt], [answer]))
            assert torch.allclose(single.losses[0], together.losses[row], atol=1e-4)
            assert bool(single.right[0]) == bool(together.right[row])


@EVERY
def test_a_soft_gate_mixes_probabilities(family):
    """log((1 - s) p_f + s p_h + 1.19e-7) for every input, with s = g of the best edit."""
    model = tiny_model(family)
    answers = answers_for(model, PROMPTS)
    own, rows = logits(model, PROMPTS, answers), rows_of(model, PROMPTS, answers)
    hard, soft = serac(model=model), serac(model=model, settings={"gate": "soft"})
    hard.edit(edits_for(model))
    other = logits(model, PROMPTS, answers)
    hard.remove()
    soft.edit(edits_for(model))
    mixed = logits(model, PROMPTS, answers).exp()
    s = torch.tensor(-0.1).exp()
    expected = (1 - s) * own.softmax(1) + s * other.softmax(1)
    inside = rows < 2
    assert torch.allclose(mixed[inside], expected[inside], atol=1e-5)
    assert torch.allclose(mixed.sum(1), torch.ones(len(mixed)), atol=1e-3)
    assert not torch.equal(mixed[~inside], own.softmax(1)[~inside])


def test_the_threshold_is_strict():
    """g must be larger than .5: at .5 the base answers."""
    model = tiny_model()
    editor = serac(model=model)
    editor.edit(edits_for(model))
    for log_g, fired in ((torch.tensor(0.5).log().item(), False), (-0.69, True), (float("nan"), False)):
        open_exactly(editor, log_g)
        assert [row["fired"] for row in editor.inspect(PROMPTS)] == [fired, fired, False, False]


@EVERY
def test_the_grouping_of_edits_changes_nothing(family):
    """A batch of k is k single appends, and memory grows by one text an edit (C18)."""
    model = tiny_model(family)
    edits = edits_for(model)
    one, many = (serac(model=tiny_model(family), exact=False) for _ in range(2))
    one.edit(edits)
    for number, edit in enumerate(edits, start=1):
        many.edit([edit])
        assert len(many.memory) == number
    assert one.state().plain == many.state().plain and not one.state().tensors
    for mine, other in zip(one.inspect(PROMPTS), many.inspect(PROMPTS), strict=True):
        assert mine["edit"] == other["edit"] and mine["score"] == pytest.approx(other["score"], rel=1e-4)


@pytest.mark.parametrize("classifier", ["embedding", "cross"])
def test_undo_is_as_if_it_had_never_been(classifier):
    edits = edits_for(tiny_model())
    editor, fresh = (serac(settings={"classifier": classifier}, exact=False) for _ in range(2))
    editor.edit(edits)
    editor.inspect(PROMPTS)
    assert editor.undo("edit-1").target == edits[1].target
    fresh.edit([edits[0], *edits[2:]])
    assert editor.state().plain == fresh.state().plain
    for mine, other in zip(editor.inspect(PROMPTS), fresh.inspect(PROMPTS), strict=True):
        assert mine["edit"] == other["edit"] and mine["score"] == pytest.approx(other["score"], rel=1e-4)
    with pytest.raises(PalimpsestError, match="holds no edit 'edit-1'.*3 are stored"):
        editor.undo(edits[1])


def test_the_newer_of_two_equal_matches_speaks():
    """Two edits of one prompt both stay; replace_same_prompt keeps the new one only."""
    model = tiny_model()
    first, second = Edit(PROMPTS[2], "Velden"), Edit(PROMPTS[2], "Marrin")
    editor = serac(model=model)
    editor.edit([first])
    editor.edit([second])
    assert len(editor.memory) == 2 and editor.inspect(PROMPTS[2])[0]["taught"] == "Marrin"
    assert editor.undo(PROMPTS[2]).target == "Marrin"
    assert editor.inspect(PROMPTS[2])[0]["taught"] == "Velden"
    only = serac(settings={"replace_same_prompt": True})
    only.edit([first, Edit(PROMPTS[0], "so")])
    only.edit([second, first])
    assert [(one.prompt, one.target) for one in only.memory] == [(PROMPTS[0], "so"), (PROMPTS[2], "Velden")]
    assert only.reader.memory == only.scope.edits == [(PROMPTS[0], "so"), (PROMPTS[2], "Velden")]


def test_a_memory_of_the_last_batch_only():
    """Spec E9: sequential edits are those of one batch."""
    editor = serac(settings={"memory": "last_batch"})
    edits = edits_for(editor.model)
    editor.edit(edits[:2])
    editor.edit(edits[2:])
    assert [one.name for one in editor.memory] == ["edit-2", "edit-3"]
    assert not editor.inspect(PROMPTS[0])[0]["fired"]


def test_texts_as_released():
    """Spec E3: g is given prompt and answer without their last word, and queries with the answer in them."""
    editor = serac(settings={"texts": "released"}, exact=False)
    editor.edit([Edit("Mira lives in", "Port Velden Bay")])
    assert editor.scope.edits == [("Mira lives in Port Velden",)]
    made = editor.classifier
    assert made.ids(editor.scope.edits)[0].count(made.between) == 1  # no part for the answer
    assert editor.reader.memory == [("Mira lives in", "Port Velden Bay")]
    asked = []
    editor.scope.log_scope = lambda queries: asked.append(queries) or torch.full((len(queries), 1), -9.0)
    row_losses(editor.model, encode(editor.model, ["Mira lives in"], ["Marrin"]))
    assert asked[0][0].startswith("Mira lives in Marrin")


@EVERY
def test_states_are_text_and_come_back(family, tmp_path):
    model = tiny_model(family)
    editor = serac(model=model, exact=False)
    editor.edit(edits_for(model))
    said = say(model, PROMPTS, 3)
    save_state(editor, tmp_path)
    state = editor.state()
    assert not state.tensors and set(state.plain) == {"memory", "belongs_to"}
    editor.remove()
    assert editor.memory == [] and model.take_fingerprint() == model.fingerprint
    other = make_editor("serac", model, trained=editor.trained)
    load_state(other, tmp_path)
    assert other.state().plain == state.plain and say(model, PROMPTS, 3) == said


def test_memories_of_others_are_refused():
    """Another training, another editor, a damaged file: said, and nothing changes."""
    model = tiny_model()
    editor = serac(model=model)
    editor.edit(edits_for(model)[:1])
    elsewhere = make_editor("serac", tiny_model(), trained=trained(model, seed=1))
    elsewhere.edit(edits_for(model)[1:2])
    with pytest.raises(PalimpsestError, match="was saved for training"):
        elsewhere.load_state(editor.state())
    retrieval = make_editor("retrieval", tiny_model())
    with pytest.raises(PalimpsestError, match="was saved for editor 'serac'"):
        retrieval.load_state(editor.state())
    damaged = editor.state()
    damaged.plain["memory"] = [{"name": "edit-0"}]
    with pytest.raises(PalimpsestError, match="damaged"):
        editor.load_state(damaged)
    assert [one.name for one in editor.memory] == ["edit-0"]
    assert [one.name for one in elsewhere.memory] == ["edit-1"]


@pytest.mark.parametrize("method", ["lu", "retrieval", "serac"])
def test_a_memory_that_cannot_be_loaded_leaves_the_old_one(method):
    """While another editor answers on the model."""
    model = tiny_model()
    editor = serac(model=model) if method == "serac" else make_editor(method, model)
    editor.edit(edits_for(model)[:2])
    state, prompt = editor.state(), PROMPTS[0]
    editor.undo("edit-1")
    editor.router.detach()
    other = make_editor("retrieval", model)
    other.edit(edits_for(model)[:1])
    with pytest.raises(ModelError, match="Call its `remove"):
        editor.load_state(state)
    assert [one.name for one in editor.memory] == ["edit-0"]
    other.remove()
    assert editor.inspect(prompt)[0]["edit"] == "edit-0"
    editor.load_state(state)
    assert [one.name for one in editor.memory] == ["edit-0", "edit-1"]


def test_editing_needs_a_training_of_this_model_and_these_settings():
    model = tiny_model()
    with pytest.raises(SettingsError, match="palimpsest train-editor"):
        make_editor("serac", model)
    found = trained(model)
    with pytest.raises(TrainedError, match="was trained on model tiny-gpt2"):
        make_editor("serac", tiny_model(seed=3), trained=found)
    with pytest.raises(TrainedError, match="trained with scope_width = 16, but 64"):
        make_editor("serac", model, {"scope_width": 64}, trained=found)
    make_editor(
        "serac", model, {"gate": "soft", "threshold": 0.9}, trained=found
    )  # these only say how to edit
    del found.tensors["scope.encoder.embeddings.LayerNorm.bias"]
    with pytest.raises(TrainedError, match=r"scope.encoder.embeddings.LayerNorm.bias of shape None"):
        make_editor("serac", model, trained=found)
    for wrong in (
        {"gate": "half"},
        {"threshold": 1.0},
        {"scope_heads": 3},
        {"template": "{answer}"},
        {"freeze": 0},
    ):
        with pytest.raises(SettingsError, match=next(iter(wrong))):
            Settings(**wrong)


def test_only_its_own_weights_are_learned():
    """The state dict holds no base weights; "retrieve and prompt" has no second model (spec Q16)."""
    model = tiny_model()
    editor = serac(model=model)
    own = {tensor.data_ptr() for tensor in model.network.state_dict().values()}
    learned = editor.trained.tensors
    assert not own & {tensor.data_ptr() for tensor in learned.values()}
    assert {name.partition(".")[0] for name in learned} == {"scope", "counterfactual", "steps", "right"}
    prompting = serac(model=model, settings={"counterfactual": "base"})
    assert not [name for name in prompting.trained.tensors if name.startswith("counterfactual")]
    prompting.edit(edits_for(model))
    assert prompting.reader.model is model and prompting.state_bytes() < editor.state_bytes()


@EVERY
def test_retrieve_and_prompt_is_the_base_on_the_longer_text(family):
    """With `counterfactual: base` the answer is what the base says to the edit and the prompt."""
    model = tiny_model(family)
    edit, answers = edits_for(model)[0], answers_for(model, PROMPTS)
    expected = alone(model, edit, PROMPTS[0], answers[0], segments=False)
    editor = serac(model=model, settings={"counterfactual": "base"})
    editor.edit([edit])
    assert torch.allclose(logits(model, PROMPTS[:1], answers[:1]), expected, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "t5", "bert"])
def test_a_second_model_with_a_shorter_context_reads_the_end_of_long_inputs(family, tmp_path, caplog):
    """Said when it is read, no end of a run: a row keeps its newest tokens, and the base's logits further back (spec Q15)."""
    model = tiny_model(family)
    config = configuration(family, 32, 4, 48, True)
    field = "n_positions" if hasattr(config, "n_positions") else "max_position_embeddings"
    setattr(config, field, 16)
    getattr(transformers, AUTO[model.kind]).from_config(config).save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    editor = serac(model=model, settings={"counterfactual": str(tmp_path)})
    assert f"reads at most 16 tokens, but tiny-{family} reads 64" in caplog.text
    long, short = "Mira Sorn lives in the city of Port Velden Bay, " * 2 + "Ada Tolvek", PROMPTS[0]
    ids, (answer, other) = model.tokenizer(long)["input_ids"], answers_for(model, [long, short])
    assert len(ids) > 20
    own, own_logits = model.network, logits(model, [long, short], [answer, other])
    with torch.no_grad():
        named = {"input_ids": torch.tensor([ids])}
        base = own(**named).logits[0] if family == "gpt2" else None
        editor.edit([Edit(long, answer), Edit(short, other)])
        read = editor.reader.model.network
        if family == "gpt2":
            over, found = len(ids) - 16, own(**named).logits[0]
            expected = read(input_ids=torch.tensor([ids[over:]])).logits[0]
            assert torch.equal(found[:over], base[:over])
            assert torch.allclose(found[over:], expected, atol=1e-4)
        else:
            lead = editor.reader.lead
            cut = {"input_ids": torch.tensor([ids[:lead] + ids[lead - 16 :]])}
            if family == "t5":
                said = model.tokenizer(answer)["input_ids"]
                cut["decoder_input_ids"] = torch.tensor([[0, *said[:-1]]])
            expected = read(**cut).logits.flatten(0, -2)
            found = logits(model, [long, short], [answer, other])[: len(expected)]
            assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(logits(model, [long, short], [answer, other]), own_logits, atol=1e-3)
    say(model, [long, short], 6)
    if family == "gpt2":
        with pytest.raises(ModelError, match="an answer is longer than the 16 tokens"):
            editor.reader.judge([(short, other)], encode(model, [short], ["Port Velden Bay " * 8]))


def test_watching_and_protocol_parts_need_no_special_case():
    """Evaluation counts on which questions the gate was open; a lifelong pool asks the whole model."""
    model = tiny_model()
    edits = edits_for(model)
    evaluation = Evaluation(model, edits, batching=Batching(tokens=40))
    editor = serac(model=model)
    assert editor.lowest_block() is None and not editor.reads_whole_rows
    editor.edit(edits)
    values = {(v.order, v.split, v.metric): v.value for v in evaluation.after(range(4), editor.watching)}
    assert [values[order, "edit", "swap_rate"] for order in range(4)] == [1.0] * 4
    assert values[0, "rephrase", "swap_rate"] == 0.0
    assert all(
        value == 1.0
        for (_, split, metric), value in values.items()
        if metric == "locality" and "edit" in split
    )
    # Passes in which nothing is in scope count as well: two of the four prompts are, whatever shares a pass.
    pairs = list(zip(PROMPTS, answers_for(model, PROMPTS), strict=True))
    for tokens in (1, 4096):
        editor.router.detach()
        asked = AskedPairs(model, pairs, Batching(tokens=tokens))
        editor.router.attach()
        assert [one.acted for one in asked.now(pairs, editor.watching)] == [True, True, False, False]
    assert [one.acted for one in asked.now(pairs)] == [None] * 4
    with editor.watching() as acted:
        assert acted is not None and acted() is None
        logits(model, PROMPTS, answers_for(model, PROMPTS))
        found = acted()
        assert found is not None and found.tolist() == [True, True, False, False] and acted() is None


@pytest.mark.parametrize("family", FAMILIES)
def test_a_base_in_another_precision_keeps_its_rows(family):
    """The other network stays in float32; closed rows of a bfloat16 base are its own, bit for bit."""
    model = tiny_model(family, torch.bfloat16)
    answers = answers_for(model, PROMPTS)
    before, rows = logits(model, PROMPTS, answers), rows_of(model, PROMPTS, answers)
    editor = serac(model=model)
    editor.edit(edits_for(model))
    after = logits(model, PROMPTS, answers)
    assert after.dtype == torch.float32 and torch.equal(after[rows >= 2], before[rows >= 2].float())


def test_passes_that_cannot_be_followed_are_refused():
    """Embeddings instead of tokens, and a step whose rows nobody knows."""
    model = tiny_model()
    editor = serac(model=model)
    editor.edit(edits_for(model))
    with pytest.raises(ModelError, match="Give input_ids"):
        model.network(inputs_embeds=torch.zeros(1, 3, model.width))
    ids = torch.tensor([model.tokenizer(PROMPTS[0])["input_ids"]])
    kept = model.network.base_model(input_ids=ids, use_cache=True).past_key_values
    kept.batch_repeat_interleave(2)
    with pytest.raises(ModelError, match="has 2 rows, but the prompts' pass had 1"):
        model.network.base_model(input_ids=ids[:, :1].repeat(2, 1), past_key_values=kept)
