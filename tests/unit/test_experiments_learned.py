"""Trainings of editors that learn, and runs of simultaneous edits, from a scale's file."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from palimpsest import experiments
from palimpsest.config import Config, ConfigError, complete_settings, editor_settings, load_config, read_yaml
from palimpsest.experiments.pins import refused
from palimpsest.experiments.places import belongs, has_gate, rounds_of, sized
from palimpsest.experiments.shared import PlannedTraining, models_in, training_of, training_problems
from palimpsest.results import RUN_NAME

ROOT = Path(__file__).resolve().parents[2]
SCALES = sorted(path.stem for path in (ROOT / "config").glob("*.yaml"))
EDIT_TIME = {
    "mend": ["alpha_order", "end_token", "last_chunk_only", "mask_padding", "reduction"],
    "serac": ["gate", "memory", "replace_same_prompt", "threshold"],
}


@pytest.fixture(scope="module")
def mini() -> experiments.Plan:
    return experiments.plan(ROOT / "config" / "mini.yaml", ROOT)


@pytest.fixture
def config() -> Config:
    return load_config(changed(), ROOT)


def changed(**changes) -> dict:
    return {**copy.deepcopy(read_yaml(ROOT / "config" / "smoke.yaml")), **changes}


def one(**sizes) -> dict:
    """The smoke scale with a single experiment."""
    entry = {"models": ["smoke-gpt2"], "edits": 4, "batch_size": 2, "seeds": [0], **sizes}
    return changed(experiments={"learned_deviations": entry})


def run_spec(config: Config, editor: str, variant: str, **settings) -> dict:
    stated = editor_settings(config, editor, variant, "smoke-gpt2", "single_round")
    whole = complete_settings(config, editor, {**stated, **settings})
    where = {"model": "smoke-gpt2", "dataset": "zsre", "options": {"device": "cpu", "dtype": "float32"}}
    return {"editor": editor, "variant": variant, "settings": whole, **where}


def test_runs_of_all_seeds_and_variants_share_a_training(mini: experiments.Plan):
    """`mean` and `last_batch` say how to edit; nothing is trained for them."""
    name = "mini-gpt2-zsre-mend-default"
    runs = [run for run in mini.runs.values() if run.training and run.training.name == name]
    assert {run.spec["variant"] for run in runs} == {"default", "mean", "memit_executor"}
    assert {run.spec["protocol"] for run in runs} == {"single_round", "consecutive", "simultaneous"}
    assert {seed for run in runs for seed in run.seeds} == {0, 1, 2}
    last = [run for run in mini.runs.values() if run.spec["variant"] == "last_batch"]
    assert last
    assert all(run.training.name.endswith("-serac-default") for run in last)
    assert mini.training_seed == 0


def test_mend_learns_fact_checking_with_edits_that_change_nothing(mini: experiments.Plan):
    """Half of FEVER's edits are to what the model says already (MEND spec 3.3), in tests and in training; no others are."""
    shares = {
        (one.dataset, one.spec["settings"]["no_op_share"])
        for one in mini.trainings().values()
        if one.spec["editor"] == "mend"
    }
    assert {dataset for dataset, share in shares if share} == {"claims"}
    assert ("claims", 0.5) in shares and ("evidence", 0.0) in shares
    assert mini.scale["datasets"]["claims"]["keep_answer"] == 0.5


def test_serac_reads_evidence_without_a_label_and_learns_dialogue_by_fives(mini: experiments.Plan):
    """Spec 1.3 and 1.5."""
    learned = {
        (one.dataset, one.spec["settings"]["template"], one.spec["settings"]["k_train"])
        for one in mini.trainings().values()
        if one.spec["editor"] == "serac" and one.dataset in ("evidence", "opinions", "questions_hard")
    }
    assert learned == {
        ("evidence", "{prompt}", 10),
        ("opinions", "{prompt} {target}", 5),
        ("questions_hard", "{prompt} {target}", 10),
    }


def test_only_editors_that_learn_are_trained(mini: experiments.Plan):
    for run in mini.runs.values():
        assert (run.training is not None) == (run.spec["editor"] in ("mend", "serac")), run.name
    for name, training in mini.trainings().items():
        assert RUN_NAME.fullmatch(name)
        assert (training.name, training.spec["device"]) == (name, "cpu")


@pytest.mark.parametrize("scale", SCALES)
def test_a_run_differs_from_its_training_in_how_it_edits_alone(scale: str):
    for run in experiments.plan(ROOT / "config" / f"{scale}.yaml", ROOT).runs.values():
        if run.training is None:
            continue
        trained = run.training.spec["settings"]
        differ = {key for key, value in run.spec["settings"].items() if trained[key] != value}
        assert differ <= set(EDIT_TIME[run.spec["editor"]]), run.name


def test_a_protocol_is_no_part_of_the_training(mini: experiments.Plan):
    """In streams the end token is part of what is edited; the same training would serve other protocols."""
    run = next(
        run
        for run in mini.runs.values()
        if (run.spec["editor"], run.spec["protocol"], run.spec["model"]) == ("mend", "lifelong", "mini-t5")
    )
    assert run.spec["settings"]["end_token"]
    assert not run.training.spec["settings"]["end_token"]


def test_settings_of_a_training_may_not_change_under_it(config: Config):
    """A variant that borrows a training and changes what was learned would be refused hours later."""
    config.editors["mend"]["variants"]["mean"]["settings"]["lr"] = 1.0
    problems: list[str] = []
    training_of(config, run_spec(config, "mend", "mean"), {}, problems)
    assert len(problems) == 1
    for words in ("mend:mean on smoke-gpt2", " lr ", "reduction", "trained_as"):
        assert words in problems[0]
    config.editors["mend"]["variants"]["mean"]["trained_as"] = "defualt"
    problems.clear()
    assert training_of(config, run_spec(config, "mend", "mean"), {}, problems) is None
    assert "did you mean 'default'" in problems[0]


def test_sweeps_train_anew_only_for_what_is_learned(config: Config):
    plain = training_of(config, run_spec(config, "serac", "default"), {}, [])
    edits_otherwise = {"threshold": 0.9}
    swept = training_of(
        config, run_spec(config, "serac", "default", **edits_otherwise), edits_otherwise, problems := []
    )
    assert swept == plain
    assert not problems
    learned = {"c_scope": 0.5}
    other = training_of(config, run_spec(config, "serac", "default", **learned), learned, problems)
    assert not problems
    assert other.name == f"{plain.name}-c_scope-0p5"
    assert other.spec["settings"]["c_scope"] == 0.5


def test_a_data_set_without_anything_to_learn_from_is_refused():
    broken = one()
    del broken["datasets"]["zsre"]["reserve"]
    with pytest.raises(ConfigError, match="datasets.zsre: mend learns before it edits.*Give `reserve`"):
        experiments.plan(broken, ROOT)
    broken["datasets"]["zsre"]["learning"] = {"file": "other.json"}
    assert experiments.plan(broken, ROOT).trainings()


def test_two_trainings_of_one_name_are_refused():
    first = PlannedTraining("same", "A", "m", "d", {"editor": "mend", "settings": {"lr": 1.0}})
    other = PlannedTraining("same", "A", "m", "d", {"editor": "mend", "settings": {"lr": 2.0}})
    assert training_problems([first, None, first]) == []
    assert "two different trainings are called 'same'" in training_problems([first, other])[0]


def test_settings_of_a_scale_win_over_variants_and_those_of_a_model_do_not():
    own = one(methods=["mend", "mend:k10", "serac:scratch"])
    own["settings"] = {"mend": {"steps": 7}, "mend:k10": {"clip": 9.0}}
    own["models"]["smoke-gpt2"]["settings"] = {
        "mend": {"k_train": 3, "rank": 5},
        "serac": {"encoder": "results/models/smoke-gpt2"},
    }
    found = {run.spec["variant"]: run.spec["settings"] for run in experiments.plan(own, ROOT).runs.values()}
    assert (found["default"]["steps"], found["default"]["k_train"], found["default"]["rank"]) == (7, 3, 5)
    assert (found["k10"]["steps"], found["k10"]["k_train"], found["k10"]["rank"]) == (7, 10, 5)
    assert (found["default"]["clip"], found["k10"]["clip"]) == (100.0, 9.0)
    assert found["scratch"]["encoder"] == "scratch"


def test_settings_of_a_variant_that_is_not_there_are_named():
    with pytest.raises(ConfigError, match=r"settings: mend has no variant 'k11'.*did you mean 'k10'"):
        experiments.plan(changed(settings={"mend:k11": {"steps": 3}}), ROOT)
    broken = changed()
    broken["models"]["smoke-t5"]["settings"] = {"mend:k10": {"steps": 3}}
    with pytest.raises(ConfigError, match=r"models.smoke-t5.settings: 'mend:k10' names a variant"):
        experiments.plan(broken, ROOT)


@pytest.mark.parametrize("scale", SCALES)
def test_what_is_trained_on_batches_has_several_edits_a_step(scale: str):
    """A scale's own settings come after the variant's: one that shortens trainings must leave `k10` what it is."""
    trainings = experiments.plan(ROOT / "config" / f"{scale}.yaml", ROOT).trainings()
    sizes = {name: one.spec["settings"]["k_train"] for name, one in trainings.items() if "-mend-k10" in name}
    assert all(size > 1 for size in sizes.values()), sizes


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"mned": {}}, "settings: 'mned' is not one of `editors`.*did you mean 'mend'"),
        ({"mend": {"stpes": 3}}, "settings.mend: unknown key 'stpes'.*did you mean 'steps'"),
        ({"mend": {"steps": "many"}}, "settings.mend: steps"),
    ],
)
def test_wrong_settings_of_a_scale_are_named(block: dict, words: str):
    with pytest.raises(ConfigError, match=words):
        experiments.plan(changed(settings=block), ROOT)
    broken = changed(settings={})
    broken["models"]["smoke-t5"]["settings"] = block
    with pytest.raises(ConfigError, match=f"models.smoke-t5.{words}"):
        experiments.plan(broken, ROOT)


def test_models_that_an_editor_is_made_of_are_found():
    settings = {"encoder": "results/models/a", "counterfactual": "gpt2", "steps": 3}
    assert models_in(settings, ["a", "b"]) == ["a"]
    rehearsal = experiments.plan(ROOT / "config" / "rehearsal.yaml", ROOT)
    used = {
        model
        for training in rehearsal.trainings().values()
        for model in models_in(training.spec["settings"], rehearsal.scale["models"])
    }
    assert used == {"rehearsal-encoder", "rehearsal-gpt2", "rehearsal-t5"}


def test_numbers_of_simultaneous_edits(mini: experiments.Plan):
    runs = {
        run.spec["variant"]: run
        for name, run in mini.runs.items()
        if name in mini.figures["mend_batches"].runs and run.spec["editor"] == "mend"
    }
    spec = runs["default"].spec
    assert spec["run"] == "simultaneous-mini-gpt2-zsre-mend-default-n200-k1-5-10-25-75-125-200-d30"
    assert spec["options"]["batch_sizes"] == [1, 5, 10, 25, 75, 125, 200]
    assert (spec["options"]["draws"], spec["batch_size"], spec["snapshot_every"]) == (30, 200, None)
    of_table = [mini.runs[name].spec for name in mini.figures["serac_table"].runs]
    assert {spec["batch_size"] for spec in of_table if spec["dataset"] == "opinions"} == {5}
    assert {spec["batch_size"] for spec in of_table if spec["dataset"] != "opinions"} == {10}


def test_every_task_of_serac_is_swept_over_the_number_of_edits(mini: experiments.Plan):
    """Hard questions, fact checking and dialogue over the number of edits; nothing is trained for it alone."""
    figure, table = mini.figures["serac_sweep"], mini.figures["serac_table"]
    assert set(figure.spec["datasets"]) == {"zsre", "questions_hard", "evidence", "opinions"}
    swept = {(run.spec["dataset"], run.spec["editor"]): run for run in map(mini.runs.get, figure.runs)}
    known = {mini.runs[name].training.name for name in table.runs if mini.runs[name].training}
    for dataset in ("questions_hard", "evidence", "opinions"):
        for editor in ("lu", "retrieval", "mend", "serac"):
            run = swept[dataset, editor]
            assert len(run.spec["options"]["batch_sizes"]) >= 4
            assert run.training is None or run.training.name in known
    smoke = experiments.plan(
        ROOT / "config" / "smoke.yaml", ROOT
    )  # no models: the other experiments' runs alone
    shown = {smoke.runs[name].spec["dataset"] for name in smoke.figures["serac_sweep"].runs}
    assert shown == {"zsre"}


def test_numbers_of_simultaneous_edits_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="batch_sizes: more edits at once than the 4 edits of 'smoke-gpt2'"):
        experiments.plan(one(batch_sizes=[2, 5]), ROOT)
    with pytest.raises(ConfigError, match="batch_sizes: no number for the model 'smoke-gpt2'"):
        experiments.plan(one(batch_sizes={"smoke-t5": [2]}), ROOT)
    sizes = {"batch_sizes": {"a": [10, 1], "b": [5]}, "draws": 3}
    assert rounds_of(sizes, "a") == {"batch_sizes": [1, 10], "draws": 3}
    assert sized(sizes, {"protocol": "simultaneous"})["batch_size"] == 10


def test_a_model_may_be_paired_with_several_data_sets():
    sizes = sized({"pairs": {"a": ["x", "y"], "b": "y"}}, {})
    assert (sizes["models"], sizes["datasets"]) == (["a", "b"], ["x", "y"])
    scale = {"datasets": {"x": {}, "y": {}}}
    assert [belongs(scale, sizes, model, data, None) for model, data in ("ax", "ay", "bx", "by")] == [
        True,
        True,
        False,
        True,
    ]


def test_each_deviation_of_later_papers_that_is_drawn_does_something(mini: experiments.Plan):
    """A chunk as large as the batch would drop nothing; single deviations differ from the default in what they are named for."""
    specs = [mini.runs[name].spec for name in mini.figures["learned_deviations"].runs]
    settings = {(spec["editor"], spec["variant"]): spec["settings"] for spec in specs}
    (size,) = {spec["batch_size"] for spec in specs}
    assert settings["mend", "memit_executor"]["last_chunk_only"] < size
    changed = {
        variant: {key for key, value in own.items() if settings["serac", "default"][key] != value}
        for (editor, variant), own in settings.items()
        if editor == "serac"
    }
    assert changed["released_texts"] == {"texts"} and changed["last_state"] == {"keep"}
    assert changed["random_toy"] == {"cf_width", "cf_blocks", "lr_counterfactual"}
    assert {"texts", "keep", "rephrase", "objective", "memory"} <= changed["toolkit"]
    drawn = [mini.runs[name].spec for name in mini.figures["serac_batches"].runs]
    batches = {spec["variant"]: spec["settings"] for spec in drawn}
    hard, easy = batches["diagonal"], batches["random_negatives"]
    assert {key for key in hard if hard[key] != easy[key]} == {"hard_share"} and easy[
        "negatives"
    ] == "diagonal"


def test_the_gate_is_for_facts_on_models_that_continue_text(mini: experiments.Plan):
    for model, dataset, wanted in (
        ("mini-gpt2", "zsre", True),
        ("mini-t5", "questions_hard", False),  # an encoder-decoder
        ("mini-bert-claims", "claims", False),
        ("mini-gpt2-opinions", "opinions", False),  # sentences of a dialogue are no facts
        ("mini-gpt2-bio", "lifelong_lives", False),
    ):
        assert has_gate(mini.scale, model, dataset) is wanted, dataset
    warned = set()
    for run in mini.runs.values():
        options, gated = run.spec["options"], has_gate(mini.scale, run.spec["model"], run.spec["dataset"])
        if options["gate"] == "warn":
            warned.add((run.spec["editor"], run.spec["model"], run.spec["dataset"]))
            assert not gated and not options["known_only"]
        else:
            assert (options["gate"], options["known_only"]) == (("refuse", True) if gated else ("off", False))
    # a row of the paper on a model that was not made for it: shown with what the gate says
    assert warned == {("rome", "mini-gpt2-bio", "lifelong_lives")}


def test_learned_editors_are_in_the_tables_of_the_papers(mini: experiments.Plan):
    def editors(name: str, **wanted) -> set[str]:
        specs = [mini.runs[run].spec for run in mini.figures[name].runs]
        return {spec["editor"] for spec in specs if all(spec[key] == value for key, value in wanted.items())}

    for model in ("mini-gpt2", "mini-gptj"):
        for dataset in ("zsre", "counterfact"):
            for table in ("comeba_table1", "comeba_table2"):
                assert {"mend", "serac", "retrieval"} <= editors(table, model=model, dataset=dataset), table
    for task in ("lifelong_qa", "lifelong_labels", "lifelong_lives"):
        assert {"mend", "retrieval"} <= editors("grace_main_table", dataset=task)
    for name in ("comeba_fig7", "comeba_fig11", "grace_long"):  # they take records that were set aside
        assert not {"mend", "serac"} & editors(name)


def test_models_of_the_hub_without_a_commit_are_refused_or_said():
    """Unmarked ones end the plan, with file and key; marked ones are listed with the jobs that would load them."""
    small = read_yaml(ROOT / "config" / "small.yaml")
    plan = experiments.plan(small, ROOT)
    found = {one.identifier: one for one in plan.unpinned()}
    assert set(found) == {"google/t5-small-ssm-nq", "tomh/scotus-bert"}
    bert = found["tomh/scotus-bert"]
    assert (bert.place, bert.users) == ("models.scotus-bert.revision", {("model", "scotus-bert")})
    serac = next(one for one in plan.unpinned() if "`counterfactual` for t5-small" in one.place)
    trained = {
        name
        for name, one in plan.trainings().items()
        if one.model == "t5-small-ssm-nq" and one.spec["settings"].get("counterfactual") not in (None, "base")
    }
    assert {name for kind, name in serac.users if kind == "trained"} == trained != set()
    assert refused(plan.unpinned(), [{"model": "gpt2"}, {"run": "another"}]) == []
    assert refused([bert], [{"model": "scotus-bert", "dataset": "lifelong_labels"}]) == [
        "models.scotus-bert.revision: tomh/scotus-bert: no commit is given. Copy the 40 hexadecimal digits of its commit "
        'from its page, or ask: python -c "from huggingface_hub import HfApi; '
        "print(HfApi().model_info('tomh/scotus-bert').sha)\". Or give a directory"
    ]
    small["models"]["scotus-bert"]["revision"] = "a" * 40
    assert "tomh/scotus-bert" not in {one.identifier for one in experiments.plan(small, ROOT).unpinned()}
    del small["models"]["scotus-bert"]["revision"]
    small["models"]["gpt2"]["settings"] = {"serac": {"encoder": "someone/encoder"}}
    with pytest.raises(ConfigError) as problems:
        experiments.plan(small, ROOT)
    assert len(problems.value.problems) == 2
    assert "models.scotus-bert.revision: tomh/scotus-bert: a hub id without a commit" in str(problems.value)
    assert "config/editors/serac.yaml, `encoder` for gpt2" in str(problems.value)
    small["experiments"] = {"grace_toy": {"models": []}}  # nothing of it is used any more
    assert experiments.plan(small, ROOT).unpinned() == []


def test_offline_scales_need_no_commit(mini: experiments.Plan):
    assert mini.unpinned() == []
