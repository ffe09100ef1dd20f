"""SERAC's classifier, its counterfactual model, and how both are trained."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_editors import PROMPTS, SMALL, draws_for, edits_for, serac, trained
from tiny import ALL_FAMILIES, CITIES, PEOPLE, tiny_model, tokenizer

from palimpsest.editors import make_editor
from palimpsest.editors.serac import Serac, Settings
from palimpsest.editors.shared import scope_classifier as scope
from palimpsest.editors.shared.counterfactual import counterfactual_model
from palimpsest.editors.shared.routed_editor import newest_best
from palimpsest.editors.shared.scope_classifier import ScopeClassifier, ScopeShape, _context, log_not
from palimpsest.editors.shared.scope_memory import ScopeMemory
from palimpsest.edits import Edit
from palimpsest.errors import ModelError, SettingsError
from palimpsest.learning.examples import LearningExample, Outside, Sampler
from palimpsest.learning.train import train_editor
from palimpsest.models.objectives import encode, judge

EDITS = [
    ("Mira Sorn lives in", "Velden"),
    ("The mother of Ada Sorn was born in", "Port Velden Bay"),
    ("Mira", "so"),
]
SHAPES = [
    {
        "classifier": form,
        "distance": distance,
        "distance_heads": heads,
        "bounded": bounded,
        "pooling": pooling,
    }
    for form, distance, heads, bounded, pooling in (
        ("embedding", "sq_l2", 1, False, "first"),
        ("embedding", "sq_l2", 4, True, "mean"),
        ("embedding", "l2", 2, False, "first"),
        ("embedding", "cos", 1, False, "mean"),
        ("cross", "sq_l2", 1, False, "first"),
    )
]


def classifier(model=None, **shape) -> ScopeClassifier:
    made = ScopeClassifier(model or tiny_model(), ScopeShape(width=16, heads=2, **shape), seed=0)
    torch.manual_seed(0)
    with torch.no_grad():  # away from the start, where all texts look alike
        for parameter in made.network.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    return made


def learner(family="gpt2", **changes):
    model = tiny_model(family)
    return Serac.learner(model, SMALL | {"k_train": 3} | changes, 0)


@pytest.mark.parametrize("shape", SHAPES)
def test_log_g_is_never_positive_and_does_not_depend_on_company(shape):
    """In padded batches as alone; row by row as in the whole table; the memory's caches change nothing."""
    made = classifier(**shape)
    table = made.log_scope(EDITS, PROMPTS)
    assert table.shape == (4, 3) and (table <= 0).all() and table.std() > 0
    alone = torch.stack([made.log_scope(EDITS, [prompt])[0] for prompt in PROMPTS])
    assert torch.allclose(table, alone, atol=1e-4)
    pairs = [(number, place) for number in range(3) for place in range(4)]
    rows = made.log_scope_of_rows([EDITS[n] for n, _ in pairs], [PROMPTS[p] for _, p in pairs])
    assert torch.allclose(rows, torch.stack([table[p, n] for n, p in pairs]), atol=1e-4)
    memory = ScopeMemory(made)
    memory.append(EDITS[:1])
    memory.log_scope(PROMPTS[:2])
    memory.append(EDITS[1:])
    assert torch.allclose(memory.log_scope(PROMPTS), table, atol=1e-4)
    memory.keep([2, 0])
    assert torch.allclose(memory.log_scope(PROMPTS), table[:, [2, 0]], atol=1e-4)


def test_the_embedding_form_by_hand():
    """log g = -|e - q|^2 of the states at the first token; g > .5 where the squared distance is below ln 2."""
    made = classifier()
    states = made.embed(made.ids([EDITS[0], ("Mira Karel",)]))
    words, marks = made.tokenizer, (made.first, made.between)
    parts = [words(text)["input_ids"] for text in EDITS[0]]
    written = [marks[0], *parts[0], marks[1], *parts[1], marks[1]]
    assert made.ids([EDITS[0]]) == [written]
    by_hand = made.network["encoder"](input_ids=torch.tensor([written])).last_hidden_state[0, 0]
    assert torch.allclose(states[0], by_hand, atol=1e-5)
    distance = (states[0] - states[1]).square().sum()
    assert float(made.log_scope([EDITS[0]], ["Mira Karel"])) == pytest.approx(-float(distance), rel=1e-4)
    halves = classifier(distance_heads=2)
    closest = (states[0] - states[1]).square().view(2, -1).sum(1).min()
    assert float(halves.log_scope([EDITS[0]], ["Mira Karel"])) == pytest.approx(-float(closest), rel=1e-3)


def test_the_cross_form_reads_edit_and_input_with_two_separators_between_them():
    """Spec 1.2: x_e [SEP] y_e [SEP], then [SEP] x."""
    made, (asked, answer), query = classifier(classifier="cross"), EDITS[0], "Mira Karel"
    parts = [made.tokenizer(text)["input_ids"] for text in (asked, answer, query)]
    mark = made.between
    written = [made.first, *parts[0], mark, *parts[1], mark, mark, *parts[2], mark]
    found = made.log_scope_of_pairs([written])
    assert torch.allclose(made.log_scope([EDITS[0]], [query])[0], found, atol=1e-5)
    assert torch.allclose(made.log_scope_of_rows([EDITS[0]], [query]), found, atol=1e-5)


def test_chunks_of_edits_change_nothing(monkeypatch):
    made = classifier()
    whole = made.log_scope(EDITS, PROMPTS)
    monkeypatch.setattr(scope, "PAIRS", 70)
    assert torch.equal(made.log_scope(EDITS, PROMPTS), whole)


@settings(deadline=None, max_examples=50)
@given(st.floats(-40, 0, allow_nan=False))
def test_the_logarithm_of_the_complement(log_g):
    """log(1 - g), finite at g = 1."""
    found = float(log_not(torch.tensor(log_g, dtype=torch.float64)))
    assert math.isfinite(found)
    if log_g < -1e-5:
        assert found == pytest.approx(math.log1p(-math.exp(log_g)), rel=1e-6)


def test_too_long_texts_lose_the_edit_first():
    made = ScopeClassifier(tiny_model(), ScopeShape(width=16, heads=2), context=12)
    long, asked = ("Mira lives in the city of Velden", "Port Velden Bay"), "Ada Sorn lives in"
    (ids,) = made.ids([(*long, asked)])
    own = made.tokenizer(asked)["input_ids"]
    answer = made.tokenizer(long[1])["input_ids"]
    assert len(ids) <= 12 and ids[-len(own) - 1 : -1] == own
    assert (
        ids[1:-1] == [*made.tokenizer(long[0])["input_ids"], made.between, *answer, made.between, *own][-10:]
    )
    (cut,) = made.ids([("Mira " * 30,)])
    assert len(cut) == 12 and cut[0] == made.first and cut[-1] == made.between


def test_the_best_score_and_the_newest_that_has_it():
    best, entry = newest_best(torch.tensor([[1.0, 3.0, 3.0], [2.0, 0.0, 1.0], [math.nan, 0.0, 1.0]]))
    assert entry.tolist() == [2, 0, 0] and best[:2].tolist() == [3.0, 2.0]


@pytest.mark.parametrize("form", ["embedding", "cross"])
def test_encoders_that_exist_already(form, tmp_path):
    """A directory with its own tokenizer, whose marks are used; what is missing is named."""
    other = tiny_model("bert", seed=5)
    other.network.save_pretrained(tmp_path)
    other.tokenizer.save_pretrained(tmp_path)
    made = ScopeClassifier(tiny_model(), ScopeShape(classifier=form, encoder=str(tmp_path)))
    assert made.width == 32 and made.first == other.tokenizer.cls_token_id
    weights = other.network.bert.state_dict()["embeddings.word_embeddings.weight"]
    assert torch.equal(made.network["encoder"].state_dict()["embeddings.word_embeddings.weight"], weights)
    assert (made.log_scope(EDITS, PROMPTS) <= 0).all()
    made.train_last(1)
    names = {name for name, p in made.network.named_parameters() if p.requires_grad}
    assert names and all(name.startswith(("encoder.encoder.layer.3.", "head.")) for name in names)
    with pytest.raises(ModelError, match="there is no directory ./nowhere"):
        ScopeClassifier(tiny_model(), ScopeShape(encoder="./nowhere"))


def test_an_encoder_reads_what_its_tokenizer_allows(tmp_path):
    """RoBERTa's configuration counts two positions that no token has; some models state no number at all."""
    other = tiny_model("bert", seed=5)
    positions = other.network.config.max_position_embeddings
    other.tokenizer.model_max_length = positions - 2
    other.network.save_pretrained(tmp_path)
    other.tokenizer.save_pretrained(tmp_path)
    made = ScopeClassifier(tiny_model(), ScopeShape(encoder=str(tmp_path)))
    assert made.context == positions - 2
    assert len(made.ids([("so " * 200,)])[0]) == positions - 2
    endless = SimpleNamespace(model_max_length=int(1e30))
    assert _context(SimpleNamespace(max_position_embeddings=48), endless, "x") == 48
    assert _context(SimpleNamespace(), SimpleNamespace(model_max_length=64), "x") == 64
    with pytest.raises(ModelError, match="encoder x .*how many tokens it reads"):
        _context(SimpleNamespace(), endless, "x")


def test_counterfactual_models_that_do_not_fit(tmp_path):
    """Its output takes the place of the base's, so kind and tokens must be the base's."""
    gpt2, t5 = tiny_model(), tiny_model("t5")
    for name, model in (("gpt2", gpt2), ("t5", t5)):
        model.network.save_pretrained(tmp_path / name)
        model.tokenizer.save_pretrained(tmp_path / name)
    assert counterfactual_model(gpt2, str(tmp_path / "gpt2"), {}, 0).kind == "decoder"
    with pytest.raises(ModelError, match="is of kind 'encoder_decoder', but tiny-gpt2 is of kind 'decoder'"):
        counterfactual_model(gpt2, str(tmp_path / "t5"), {}, 0)
    tokenizer("encoder").save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ModelError, match="has other tokens than tiny-gpt2"):
        counterfactual_model(gpt2, str(tmp_path / "gpt2"), {}, 0)
    bert = tiny_model("bert")
    bert.network.save_pretrained(tmp_path / "bert")
    bert.tokenizer.save_pretrained(tmp_path / "bert")
    assert counterfactual_model(bert, str(tmp_path / "bert"), {}, 0).labels == bert.labels
    with pytest.raises(ModelError, match="there is no directory ./nowhere"):
        counterfactual_model(bert, "./nowhere", {}, 0)


@pytest.mark.parametrize("family", ALL_FAMILIES)
@pytest.mark.parametrize("negatives", ["diagonal", "all", "every"])
def test_the_losses_by_hand(family, negatives):
    """Two means of equal weight; h reads the gold edit, whatever g would retrieve."""
    made = learner(family, negatives=negatives)
    draws = draws_for(made.model)
    losses = made.step(draws)
    edits = [(draw.edit.prompt, draw.edit.target) for draw in draws]
    with torch.no_grad():
        g_in = made.classifier.log_scope(edits, [draw.query for draw in draws]).exp().diagonal()
        g_out = made.classifier.log_scope(edits, [draw.outside.prompt for draw in draws]).exp()
        g_out = g_out.diagonal() if negatives == "diagonal" else g_out.flatten()
        if negatives == "every":  # in-scope inputs with the edits of others too
            others = made.classifier.log_scope(edits, [draw.query for draw in draws]).exp()
            g_out = torch.cat([g_out, others[~torch.eye(3, dtype=torch.bool)]])
        assert float(losses["in scope"]) == pytest.approx(float(-g_in.log().mean()), rel=1e-3)
        assert float(losses["out of scope"]) == pytest.approx(float(-(1 - g_out).log().mean()), rel=1e-2)
        inputs = encode(made.model, [draw.query for draw in draws], [draw.query_answer for draw in draws])
        each = [made.reader.judge([edits[row]], inputs.rows([row])).losses[0] for row in range(3)]
        assert float(losses["edit"]) == pytest.approx(float(torch.stack(each).mean()), rel=1e-4)
        expected = 0.1 * losses["edit"] + losses["in scope"] + losses["out of scope"]
        assert float(losses["total"]) == pytest.approx(float(expected), rel=1e-6)
    losses["total"].backward()
    for group in made.groups():
        assert any(p.grad is not None and bool(p.grad.any()) for p in group["params"])
    assert all(p.grad is None for p in made.model.network.parameters())


def test_the_second_model_stops_learning_when_told():
    made = learner(cf_steps=1)
    draws = draws_for(made.model)
    assert "edit" in made.step(draws) and "edit" not in made.step(draws)
    other = learner(cf_steps=1)
    other.load(made.tensors())
    assert "edit" not in other.step(draws) and int(other.tensors()["steps"]) == 3
    enough = learner(cf_right=5)  # draws of three: two steps that are right throughout
    enough._edit_loss = lambda draws: (enough.classifier.log_scope([EDITS[0]], ["so"]).sum(), told.pop(0))
    told = [torch.tensor(row) for row in ([True] * 3, [True, False, True], [True] * 3, [True] * 3)]
    learns = ["edit" in enough.step(draws) for _ in range(5)]
    assert (
        learns == [True] * 4 + [False] and int(enough.tensors()["right"]) == 6
    )  # one wrong answer starts anew
    prompting = learner(counterfactual="base")
    assert len(prompting.groups()) == 1 and "edit" not in prompting.step(draws)
    assert prompting.validate(draws)["edit"] > 0


@pytest.mark.parametrize("family", ["gpt2", "t5", "bert"])
def test_the_mixture_objective(family):
    """Spec E2: NLL of the mixture with the retrieved edit, KL to the base out of scope; no pair is told."""
    made = learner(family, objective="mixture", gate="soft")
    draws = draws_for(made.model)
    losses = made.step(draws)
    assert set(losses) == {"total", "edit", "locality"} and float(losses["locality"].detach()) > 0
    made.classifier.log_scope = lambda edits, queries: torch.full((len(queries), len(edits)), -80.0)
    inputs = encode(made.model, [draw.query for draw in draws], [draw.query_answer for draw in draws])
    with torch.no_grad():
        closed = made.step(draws)
        assert float(closed["edit"]) == pytest.approx(
            float(judge(made.model, inputs).losses.mean()), rel=1e-2
        )
        assert float(closed["locality"]) == pytest.approx(0.0, abs=1e-3)
    assert set(made.validate(draws)) >= {"total", "edit", "locality", "opened", "kept shut"}


def test_settings_that_the_mixture_does_not_use_are_named(caplog):
    """They train nothing there, and the log of the training says so."""
    caplog.set_level("INFO")
    own, plain = {"negatives": "every", "cf_steps": 1}, learner(objective="mixture")
    draws = draws_for(plain.model)
    learner(**own)
    assert "has no effect" not in caplog.text
    made = learner(objective="mixture", **own)
    for name in ("cf_steps = 1", "negatives = 'every'"):
        assert f"objective: mixture: the setting {name} has no effect" in caplog.text
    for _ in range(2):
        assert made.step(draws)["total"].item() == plain.step(draws)["total"].item()


def test_replies_that_the_edit_makes_wrong_become_unlikely():
    """L_h of dialogue sentiment: - log p of the one, - log(1 - p) of the other, token by token (spec 1.5)."""
    made = learner()
    draws = draws_for(made.model)
    plain = made.step(draws)["edit"].detach()
    against = [dataclasses.replace(draw, opposite="Ostrava") for draw in draws]
    edits = [(draw.edit.prompt, draw.edit.target) for draw in draws]
    inputs = encode(made.model, [draw.query for draw in draws], ["Ostrava"] * 3)
    with torch.no_grad():
        p = made.reader.target_logits(edits, inputs).softmax(1)
        wanted = torch.cat([row[row != -100] for row in inputs.targets])
        term = -(1 - p.gather(1, wanted[:, None])[:, 0]).log().mean()
    assert float(made.step(against)["edit"].detach()) == pytest.approx(float(plain + term), rel=1e-4)


def test_inputs_are_met_as_the_base_reads_them():
    """An uncased tokenizer gives back lower case: edits and training texts go the same way."""
    from tokenizers import normalizers

    model = tiny_model("bert")
    model.tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    editor = serac(model=model, exact=False)
    editor.edit(edits_for(model))
    assert editor.scope.edits[1] == ("mira sorn lives in the city of", "class 2")
    assert editor.memory[1].prompt == "Mira Sorn lives in the city of"
    made = Serac.learner(model, SMALL, 0)
    assert made._query_text("Mira Sorn", "so") == "mira sorn"
    asked = []
    editor.scope.log_scope = lambda queries: asked.extend(queries) or torch.zeros(len(queries), 4)
    editor.inspect("Mira Sorn")
    assert asked == ["mira sorn"]
    model = tiny_model()  # one that tidies texts up by itself
    model.tokenizer.clean_up_tokenization_spaces = True
    editor, asked[:] = serac(model=model, exact=False), []
    editor.edit([Edit("Mira 's mother , I say", "so")])
    editor.scope.log_scope = lambda queries: asked.extend(queries) or torch.zeros(len(queries), 1)
    editor.inspect("Mira 's mother , I say ")
    assert asked == ["Mira 's mother , I say"] and editor.scope.edits[0][0] == asked[0]


def test_what_the_sampler_draws_for_it():
    """A share of the inputs in the edit's own words; opposed replies to the same question, where an edit has such."""
    found = examples()
    draws = [d for _ in range(20) for d in Sampler(found, "a", prompt_share=1.0).draw(5)]
    assert all(d.query == d.edit.prompt and d.query_answer == d.edit.target for d in draws)
    plain, none = Sampler(found, "a"), Sampler(found, "a", prompt_share=0.0)
    assert [plain.draw(3) for _ in range(5)] == [none.draw(3) for _ in range(5)]
    asked = {
        "implied": (("Like it?", "yes"), ("Is it bad?", "no")),
        "opposed": (("Like it?", "never"), ("Why?", "so")),
    }
    replies = [dataclasses.replace(example, **asked) for example in found]
    sampler = Sampler([LearningExample.from_dict(example.to_dict()) for example in replies], "a")
    for draw in (d for _ in range(20) for d in sampler.draw(3)):
        assert (draw.query, draw.query_answer) in asked["implied"]
        assert draw.opposite == "never" if draw.query == "Like it?" else draw.opposite in ("never", "so")


def examples() -> list[LearningExample]:
    """Where people live: enough to learn from in seconds."""
    found = []
    for number, person in enumerate(
        [*PEOPLE, *(f"{p} {q}" for p in ("Ira", "Lea") for q in ("Sorn", "Karel", "Tolvek"))]
    ):
        other = PEOPLE[(number + 1) % len(PEOPLE)]
        found.append(
            LearningExample(
                identifier=f"fact-{number}",
                prompt=f"{person} lives in the city of",
                subject=person,
                answer=CITIES[number % 4],
                alternatives=tuple(city for city in CITIES if city != CITIES[number % 4]),
                rephrasings=(f"therefore {person} lives in", f"I say the city of {person} is"),
                outside=(
                    Outside(f"{other} lives in the city of", CITIES[(number + 1) % 4], near=True),
                    Outside("The mother of Ada was born in", CITIES[0]),
                ),
                split="valid" if number % 4 == 3 else "train",
            )
        )
    return found


QUICK = SMALL | {
    "scope_width": 32,
    "cf_width": 32,
    "k_train": 3,
    "steps": 150,
    "accumulate": 1,
    "lr": 3e-3,
    "lr_counterfactual": 3e-3,
    "validate_every": 50,
    "validate_on": 3,
    "hard_share": 0.5,
}


def test_training_opens_the_gate_for_rephrasings_only(tmp_path):
    """Through the training command's function: learned on some people, right about others; the base stays as it is."""
    model = tiny_model()
    found = train_editor("serac", model, examples(), QUICK, tmp_path / "out")
    assert model.take_fingerprint() == model.fingerprint
    assert found.validation["opened"] >= 0.6 and found.validation["kept shut"] >= 0.6
    short = QUICK | {"steps": 10, "validate_every": 10}
    first, second = (train_editor("serac", model, examples(), short) for _ in range(2))
    assert first.fingerprint == second.fingerprint != found.fingerprint  # same seed, same bytes
    editor = make_editor("serac", model, trained=tmp_path / "out")
    assert editor.settings == Settings(**QUICK)
    editor.edit(edits_for(model)[1::2])
    rows = editor.inspect(["therefore Mira Sorn lives in", "I say the city of Ada Sorn is"])
    assert [row["edit"] for row in rows] == ["edit-1", "edit-3"] and all(row["fired"] for row in rows)


def test_settings_that_cannot_be():
    for wrong in (
        {"classifier": "both"},
        {"distance": "l1"},
        {"pooling": "last"},
        {"scale": 0.0},
        {"texts": "all"},
        {"objective": "both"},
        {"negatives": "few"},
        {"c_edit": 0.0},
        {"cf_steps": 0},
        {"cf_heads": 3},
    ):
        with pytest.raises(SettingsError, match=next(iter(wrong))):
            Settings(**wrong)
    with pytest.raises(SettingsError, match="distance_heads = 3"):
        trained(tiny_model(), {"distance_heads": 3})


def test_two_edits_of_one_prompt_are_no_negatives_of_each_other():
    made = learner(negatives="every")
    draws = draws_for(made.model)
    twice = [
        draws[0],
        dataclasses.replace(draws[0], edit=dataclasses.replace(draws[0].edit, target="Marrin")),
        draws[1],
    ]
    edits = [(draw.edit.prompt, draw.edit.target) for draw in twice]
    with torch.no_grad():
        inside = made.classifier.log_scope(edits, [draw.query for draw in twice]).exp()
        outside = made.classifier.log_scope(edits, [draw.outside.prompt for draw in twice]).exp()
    pairs = torch.cat([outside.flatten(), inside[[0, 1, 2, 2], [2, 2, 0, 1]]])
    found = made.step(twice)["out of scope"].detach()
    assert float(found) == pytest.approx(float(-(1 - pairs).log().mean()), rel=1e-2)
