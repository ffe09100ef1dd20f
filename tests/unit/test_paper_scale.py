"""What the scales of the papers' own models say, which no test can run: settings that differ, trainings that are shared, pins."""

from __future__ import annotations

from pathlib import Path

import pytest

from palimpsest import experiments
from palimpsest.config import ConfigError, read_yaml
from palimpsest.figures.editing_table import deviations_without_effect, second_model_words
from palimpsest.figures.read import Method, Run

ROOT = Path(__file__).resolve().parents[2]
SCALES = {"paper": "gpt2-xl", "small": "gpt2"}


@pytest.fixture(scope="module", params=SCALES)
def scale(request) -> tuple[experiments.Plan, str]:
    return experiments.plan(ROOT / "config" / f"{request.param}.yaml", ROOT), SCALES[request.param]


def settings_of(plan: experiments.Plan, figure: str, **wanted) -> dict[str, dict]:
    """Variant -> settings of the runs of a figure."""
    specs = [plan.runs[name].spec for name in plan.figures[figure].runs]
    return {
        s["variant"]: s["settings"] for s in specs if all(s[key] == value for key, value in wanted.items())
    }


def test_a_look_up_has_half_and_twice_the_presets_own_distance(scale):
    plan, model = scale
    found = settings_of(plan, "serac_thresholds", model=model)
    key = "radius_ratio" if found["default"]["radius_ratio"] is not None else "radius"
    half, own, double = (found[variant][key] for variant in ("half", "default", "double"))
    assert (half, double) == (own / 2, own * 2)


def test_every_preset_of_the_look_up_with_a_half_has_its_own_half():
    content = read_yaml(ROOT / "config" / "editors" / "lu.yaml")
    for variant, factor in (("half", 0.5), ("double", 2.0)):
        for preset, stated in content["variants"][variant]["models"].items():
            assert stated == {
                key: factor * value for key, value in content["models"][preset]["settings"].items()
            }


def test_a_short_training_is_a_fifth_of_the_published_one(scale):
    plan, model = scale
    found = settings_of(plan, "serac_batches", model=model, editor="serac")
    short, full = found["short"], found["default"]
    assert short["steps"] * 5 == full["steps"] == 1_000_000
    assert (short["cf_steps"], short["patience"]) == (short["steps"], None)


def test_a_variant_that_is_trained_as_the_default_shares_its_training(scale):
    """The published negatives are those of `diagonal`: a second week of training would give the same weights."""
    plan, model = scale
    runs = [plan.runs[name] for name in plan.figures["serac_batches"].runs]
    trained = {run.spec["variant"]: run.training.name for run in runs if run.spec["editor"] == "serac"}
    assert trained["diagonal"] == trained["default"] == f"{model}-zsre-serac-default"
    assert len(set(trained.values())) == len(trained) - 1
    assert [note for note in plan.notes if "serac and serac:diagonal are one and the same" in note]


def test_where_settings_differ_a_training_is_its_own():
    """At scale mini the default learns from every pair; in smoke runs all have few steps, and that makes none another."""
    for name in ("mini", "smoke"):
        plan = experiments.plan(ROOT / "config" / f"{name}.yaml", ROOT)
        runs = [plan.runs[one] for one in plan.figures["serac_batches"].runs]
        trained = {run.spec["variant"]: run.training.name for run in runs if run.training}
        assert len(set(trained.values())) == len(trained) and plan.notes == []


def test_a_variant_without_values_for_a_model_is_refused():
    """It would be drawn as another method and be the default."""
    small = read_yaml(ROOT / "config" / "small.yaml")
    small["experiments"] = {
        name: small["experiments"][name] for name in ("serac_batches", "serac_thresholds")
    }
    small["models"]["gpt2"]["settings"]["serac"] = {"counterfactual": "scratch"}
    experiments.plan(small, ROOT)
    small["models"]["gpt2"]["preset"] = "mini-gpt2-bio"
    with pytest.raises(ConfigError) as problems:
        experiments.plan(small, ROOT)
    short, half, double = problems.value.problems
    assert "experiments.serac_batches: serac and serac:short are one and the same on gpt2" in short
    assert "variants.short has no settings for the preset 'mini-gpt2-bio'" in short and "`without`" in short
    assert "lu and lu:half are" in half and "lu and lu:double are" in double
    small["settings"] = {"serac:short": {"steps": 5}, "lu:half": {"radius": 1.0}}
    small["experiments"]["serac_thresholds"]["without"] = ["lu:double"]
    experiments.plan(small, ROOT)


def test_no_scale_that_comes_with_the_project_has_a_variant_without_values():
    for path in (ROOT / "config").glob("*.yaml"):
        experiments.plan(path, ROOT)


def test_grace_as_published_has_the_released_number_of_steps(scale):
    plan, model = scale
    for figure in ("crossover_table", "crossover_curves"):
        found = settings_of(plan, figure, model=model, editor="grace")
        assert found["published"]["steps"] == 100
        if figure == "crossover_curves":
            assert found["default"]["steps"] == 200


def test_models_without_tokenizer_files_name_one_that_is_pinned(scale):
    plan, _ = scale
    models = plan.scale["models"]
    assert models["scotus-bert"]["tokenizer"].startswith("google-bert/bert-base-cased@")
    assert models["scotus-bert"]["settings"]["serac"]["counterfactual"] == models["scotus-bert"]["tokenizer"]
    if "gpt2-xl-bio" in models:
        whole = models["gpt2-xl"]
        assert models["gpt2-xl-bio"]["tokenizer"] == f"{whole['id']}@{whole['revision']}"
    assert not [one for one in plan.unpinned() if one.place.endswith(".tokenizer")]


def test_one_bad_record_of_a_real_file_refuses_no_stream(scale):
    plan, _ = scale
    for name in ("lifelong_qa", "lifelong_labels", "lifelong_lives"):
        assert plan.scale["datasets"][name]["bad_records"] == "skip", name
    for name in ("lifelong_qa", "lifelong_labels"):
        assert plan.scale["datasets"][name]["lifelong"]["upstream"]["bad_records"] == "skip", name


def run(editor: str, batch_size: int = 30, **settings) -> Run:
    spec = {"run": "r", "editor": editor, "variant": "v", "batch_size": batch_size, "settings": settings}
    return Run(ROOT, {"spec": spec, "seed": 0})


def test_a_caption_says_which_deviation_does_nothing_here():
    """Batches of 30 lose nothing to an executor that edits the last 128."""
    method = Method("mend", "v", "MEND (MEMIT's executor)")
    said = deviations_without_effect([run("mend", last_chunk_only=128)], [method])
    assert said == [
        "MEND (MEMIT's executor): batches of 30 are no larger than its chunk of 128, so that no edit is dropped."
    ]
    for other in (run("mend", 200, last_chunk_only=128), run("mend", last_chunk_only=None), run("serac")):
        assert deviations_without_effect([other], [method]) == []


def test_where_the_executor_is_drawn_it_drops_edits_or_the_caption_says_so(scale):
    plan, model = scale
    specs = [plan.runs[name].spec for name in plan.figures["learned_deviations"].runs]
    (spec,) = [spec for spec in specs if spec["variant"] == "memit_executor"]
    acts = spec["settings"]["last_chunk_only"] < spec["batch_size"]
    assert acts is (model == "gpt2")


def test_a_caption_says_which_model_answers_in_place_of_the_papers():
    said = second_model_words(
        [run("serac", counterfactual=f"gpt2@{'a' * 40}"), run("mend"), run("serac", counterfactual="scratch")]
    )
    assert said.startswith(
        "SERAC's second model starts from gpt2; that of the printed rows is a random GPT-J toy"
    )
    assert second_model_words([run("serac", counterfactual="scratch"), run("ft")]) == ""
