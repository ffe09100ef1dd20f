"""What every editor owes its caller: states and matrices not its own, edits that break off, names, texts that just fit."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny import breaking_off, random_statistics, some_edits, tiny_model, tokenizer
from tokenizers import processors

from palimpsest.editors import make_editor
from palimpsest.editors.base import EditorState
from palimpsest.editors.shared import key_value
from palimpsest.editors.shared.contexts import longest_context, put_before, sample_contexts
from palimpsest.editors.shared.stored_targets import StoredTargets, keys_of
from palimpsest.editors.shared.target_vectors import TargetVectors
from palimpsest.edits import Edit
from palimpsest.errors import ModelError, PalimpsestError
from palimpsest.files import read_json, write_json
from palimpsest.models.loading import LanguageModel
from palimpsest.models.tokens import encode_prompts, tokenise
from palimpsest.protocols import lifelong_notes
from palimpsest.runs.inputs import Options, batching_of, choose_edits

QUICK = {"layers": [1, 2], "steps": 3, "learning_rate": 0.4, "context_texts": [[""], ["So"]]}
OWN = {"ft": {"layer": 1, "loss": "own", "steps": 2}, "ft_ewc": {"layer": 1, "steps": 2}}
OWN |= {"ft_retrain": {"layer": 1, "steps": 2}, "grace": {"layer": 1, "steps": 2}}
WITHOUT_HOOKS = {"hooks": False}


def writer(model, name, **extra):
    """A key-value editor, or FT, on layers of a tiny model."""
    if name == "ft":
        return make_editor(
            "ft", model, {"layer": 1, "learning_rate": 1e-2, "epsilon": None, "steps": 3} | extra
        )
    chosen = QUICK | ({"layers": [1]} if name == "rome" else {"lam": 5.0}) | extra
    return make_editor(name, model, chosen, random_statistics(model, (0, 1, 2)))


def weights(model):
    return {name: tensor.clone() for name, tensor in model.network.state_dict().items()}


def same(model, before):
    return all(torch.equal(tensor, before[name]) for name, tensor in model.network.state_dict().items())


def full(model, prompt="Ada Tolvek lives in the city of", target="Velden") -> Edit:
    """An edit whose prompt and target fill the context to the last token."""
    while True:
        longer = f"so {prompt}"
        if len(model.tokenizer(f"{longer} {target}")["input_ids"]) > model.context:
            break
        prompt = longer
    while len(model.tokenizer(f"{prompt} {target}")["input_ids"]) < model.context:
        prompt = f"{prompt[0]}{prompt}"
    return Edit(prompt, target, "Ada Tolvek", identifier="full")


# states and matrices ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "extra"),
    [("memit", {}), ("comeba_hk", {}), ("comeba_hk", WITHOUT_HOOKS), ("rome", {}), ("ft", {})],
)
def test_a_state_of_other_layers_is_refused_whole(name, extra):
    """Not the part of it that fits, and not half of it; a state without all its parts neither."""
    model = tiny_model("gpt2")
    before, saved = weights(model), writer(model, name, **extra).state()
    tensors = {name: tensor + 0.01 for name, tensor in saved.tensors.items()}
    own = {"layer": 0} if name == "ft" else {"layers": [0] if name == "rome" else [2]}
    wider = [{"layers": [0, 1, 2]}] if name in ("memit", "comeba_hk") else []
    for layers in (own, *wider):
        other = writer(model, name, **extra, **layers)
        with pytest.raises(PalimpsestError, match="this state holds .*1 32 x 48.* but the editor has"):
            other.load_state(EditorState(tensors, saved.plain))
        assert same(model, before) and not any(tensor.any() for tensor in other.state().tensors.values())
    used = writer(model, name, **extra)
    cut = {key: tensor[:-1] for key, tensor in tensors.items()}
    with pytest.raises(PalimpsestError, match="1 31 x 48"):
        used.load_state(EditorState(cut, saved.plain))
    if name != "ft":
        with pytest.raises(KeyError):  # `load_state(editor, folder)` makes a sentence of it
            used.load_state(EditorState(tensors, {k: v for k, v in saved.plain.items() if k != "contexts"}))
    assert same(model, before) and not any(tensor.any() for tensor in used.state().tensors.values())
    used.load_state(EditorState(tensors, saved.plain))
    assert all(torch.equal(used.state().tensors[key], tensor) for key, tensor in tensors.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("names", [("ft", "memit"), ("memit", "ft")])
def test_two_editors_of_one_matrix_do_not_corrupt_each_other(names, dtype):
    """The one below refuses until the other is removed; in the reverse order both go, and the model is untouched."""
    model, edits = tiny_model("gpt2", dtype), some_edits(4)
    before = weights(model)
    first, idle = (writer(model, name) for name in names)
    assert not first.edit(edits[:2]).failed
    one = weights(model)
    with pytest.raises(PalimpsestError, match="another editor has changed it"):
        idle.edit(edits[2:])
    idle.remove()  # it has written nothing: nothing to take back
    assert same(model, one)
    second = writer(model, names[1])
    assert not second.edit(edits[2:]).failed
    both, state = weights(model), first.state()
    for refused in (lambda: first.edit(edits), first.remove, lambda: first.load_state(state)):
        with pytest.raises(PalimpsestError, match="remove\\(\\) the other one first"):
            refused()
        assert same(model, both)
    second.remove()
    assert same(model, one)
    assert not first.edit(edits[2:]).failed
    first.remove()
    assert same(model, before)


def test_an_interrupt_within_a_write_is_no_other_editor():
    """Between the matrix and the note of it: what is half noted can still be taken back."""
    model = tiny_model("gpt2")
    before, used = weights(model), writer(model, "memit").weights

    class Interrupted(dict):
        def __setitem__(self, key, value):
            raise KeyboardInterrupt

    noted = used.updates
    used.updates = Interrupted(noted)
    with pytest.raises(KeyboardInterrupt):
        used.add(2, torch.ones_like(noted[2]))
    assert not same(model, before)
    used.updates = dict(noted)
    used.restore()
    assert same(model, before)


@pytest.mark.parametrize("name", ["memit", "comeba_hk", "rome"])
def test_remove_forgets_the_contexts_of_a_loaded_state(name):
    model = tiny_model("gpt2")
    used, other = writer(model, name), writer(model, name, context_texts=[[""], ["I say"]])
    own = used.contexts
    used.load_state(other.state())
    assert used.contexts == other.contexts != own
    used.remove()
    assert used.contexts == own


# what fails, and what breaks off ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OWN)
def test_the_end_token_counts_where_the_own_loss_does(name):
    """A text that fills the context fails alone: neither its whole batch nor what is prepared."""
    model = tiny_model("gpt2")
    used, edits = make_editor(name, model, OWN[name]), [*some_edits(2), full(model)]
    used.prepare(edits)
    report = used.edit(edits)
    assert [failure.edit for failure in report.failed] == ["full"] and len(report.applied) == 2
    assert f"reads at most {model.context}" in report.failed[0].reason
    assert (
        make_editor("ft", model, {"layer": 1}).margin() == 0
    )  # the losses of FT-L and FT-M end with the target


@pytest.mark.parametrize(
    ("protocol", "left"), [("simultaneous", "edit-0"), ("lifelong", "edit-0"), ("single_round", "full")]
)
def test_a_record_that_leaves_no_room_for_the_end_token_is_dropped(protocol, left):
    """Where the protocol's rows carry one: encoding them would end the run."""
    model = tiny_model("gpt2")
    spec, options = {"edits": 1, "protocol": protocol, "editor": "grace"}, Options(sample="file_order")
    sample = choose_edits(spec, 0, options, [full(model), *some_edits(1)], model, None, "edits.jsonl")
    assert [edit.identifier for edit in sample.edits] == [left]


def test_a_batch_that_breaks_off_leaves_no_part_of_itself():
    """GRACE and its relatives make one edit after the other; no report would say which of them stand."""
    model = tiny_model("gpt2")
    used, edits = make_editor("grace", model, OWN["grace"]), some_edits(6)
    used.edit(edits[:2])
    before, tables, names = used.state(), used.codebook.tensors(), used.codebook.plain()
    used._teach = breaking_off(used._teach, 3)
    with pytest.raises(KeyboardInterrupt):
        used.edit(edits[2:])
    assert used.codebook.plain() == names and torch.equal(
        used.generator.get_state(), before.tensors["generator"]
    )
    assert all(torch.equal(tables[name], tensor) for name, tensor in used.codebook.tensors().items())


def test_arithmetic_that_fails_in_one_edit_fails_that_edit():
    model = tiny_model("gpt2")
    used, edits = make_editor("grace", model, OWN["grace"]), some_edits(4)
    teach = used._teach

    def failing(edit, record):
        if edit is edits[2]:
            raise ZeroDivisionError("by zero")
        teach(edit, record)

    used._teach = failing
    report = used.edit(edits)
    assert [failure.edit for failure in report.failed] == ["edit-2"] and len(used.codebook) == 3
    assert report.applied == ["edit-0", "edit-1", "edit-3"]


def test_two_edits_of_one_name_fail_one_by_one():
    """Without an identifier the prompt is the name, and one prompt may be edited twice."""
    model = tiny_model("gpt2")
    prompt = some_edits(1)[0].prompt
    batch = [Edit(prompt, "Velden"), Edit(prompt, "Velden " * 70), Edit(prompt, "Marrin")]
    report = make_editor("ft", model, {"layer": 1, "steps": 1}).edit(batch)
    assert report.applied == [prompt, prompt] and [one.edit for one in report.failed] == [prompt]


# what is kept for later ------------------------------------------------------------------------------------------------


def test_what_was_searched_for_one_subject_is_not_taken_for_another(monkeypatch, tmp_path):
    """z stands at the subject's last token: the same prompt and target with another subject is another search."""
    sizes, plain = [], key_value.SEARCHES["fast"]
    monkeypatch.setitem(key_value.SEARCHES, "fast", lambda *a: (sizes.append(len(a[1])), plain(*a))[1])
    model, edits = tiny_model("gpt2"), some_edits(2)
    rome, shorter = writer(model, "rome"), replace(edits[0], subject=edits[0].subject.split()[0])
    rome.prepare(edits)
    rome.edit(edits[:1])
    assert sizes == [2]
    rome.reset()
    rome.edit([shorter])
    assert sizes == [2, 1]

    z, initial = torch.ones(2, 4), torch.zeros(2, 4)
    vectors = TargetVectors(z, initial, [[], []], torch.ones(2, dtype=torch.bool))
    StoredTargets(vectors, keys_of(edits), {}).save(tmp_path)
    stored = StoredTargets.load(tmp_path)
    assert len(stored.look_up(edits, model.device).z) == 2
    with pytest.raises(PalimpsestError, match="lack 1 edits"):
        stored.look_up([shorter], model.device)
    content = read_json(tmp_path / "targets.json")
    content["edits"] = [key[:3] for key in content["edits"]]  # as files of earlier versions have it
    write_json(tmp_path / "targets.json", content)
    with pytest.raises(PalimpsestError, match="not noted by name, prompt, target, subject.*make it again"):
        StoredTargets.load(tmp_path)


def test_contexts_of_a_tokenizer_that_starts_every_text_hold_no_start_token(monkeypatch):
    """As Llama's: prompts would start with two of them, and it would count as one of the context's tokens."""
    tiny = tiny_model("llama")
    words = tokenizer()
    start = (words.bos_token, words.bos_token_id)
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{words.bos_token} $A", special_tokens=[start]
    )
    model = LanguageModel(tiny.network, words, tiny.family, "tiny-llama")
    assert words("The")["input_ids"][0] == words.bos_token_id
    passes, logits = [], LanguageModel.logits
    monkeypatch.setattr(LanguageModel, "logits", lambda *given: (passes.append(1), logits(*given))[1])
    groups = sample_contexts(model, ((6, 1),), 0)
    assert len(passes) == 6 - len(words("The", add_special_tokens=False)["input_ids"])
    (context,) = groups[1]
    assert context.startswith("The") and words.bos_token not in context
    (row,) = tokenise(model, [put_before(context, "Ada Tolvek lives in")])
    assert row.ids.count(words.bos_token_id) == 1
    (bare,) = tokenise(model, ["Ada Tolvek lives in"])
    assert len(row.ids) <= len(bare.ids) + longest_context(model, groups) < len(row.ids) + 3


# what runs ask -----------------------------------------------------------------------------------------------------------


def test_passes_noted_within_a_note_leave_the_outer_one():
    model = tiny_model("gpt2")
    used, edits = writer(model, "comeba_hk"), some_edits(2)
    used.edit(edits)
    with used.watching() as acted:
        assert used.inspect(edits[0].prompt)
        model.hidden(encode_prompts(model, [edits[0].prompt]))
        assert acted() is not None
    assert used.hooked.decisions is None


def test_an_editor_s_own_attributes_mean_nothing_to_a_run():
    """What a run asks stands in the contract: `keyed`, `padding_counts`, `put_in_place`, `use_targets`."""
    model, edits = tiny_model("gpt2"), some_edits(4)
    used = writer(model, "ft")
    used.codebook, used.adapter, used.radius = ["words"], "cable", "wide"
    checks = lifelong_notes.Checks(model, edits)
    checks.built(used)
    checks.edited(used)
    assert checks.found == {"identity": True, "weights_unchanged": True} and checks.distances is None
    assert lifelong_notes.keys_of(used) is lifelong_notes.codebook_note(used) is None
    used.settings = SimpleNamespace(padding="official")
    assert not batching_of(used, Options()).equal_length
    official = writer(model, "comeba_hk", padding="official", target_search="plain")
    assert batching_of(official, Options()).equal_length
    grace = make_editor("grace", model, OWN["grace"])
    checks.built(grace)
    assert grace.adapter.is_attached and lifelong_notes.keys_of(grace) == 0
    assert lifelong_notes.codebook_note(grace)["first_radius"] == 1.0 and checks.distances


def test_a_model_names_no_editor():
    with pytest.raises(ModelError, match="needs a decoder-only") as refused:
        tiny_model("bert").need_decoder("the gate")
    assert not any(name in str(refused.value) for name in ("grace", "defer", "memory", "ft,"))
