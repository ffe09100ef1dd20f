"""On a device that is not the CPU: every editor, protocol, statistic and training, with the numbers of the CPU.

The device is a double (`doubles/second_device.py`); weights are float64, so that kernels that add in another order show no
difference that would matter.
"""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from doubles.second_device import NAME, Elsewhere, as_everywhere, waits
from memory_editors import SMALL, edits_for
from memory_editors import trained as trained_serac
from tiny import CITIES, TEXTS, random_statistics, saved_world, some_edits, some_examples, tiny_model
from untrained_mend import settings_for, untrained

from palimpsest import results
from palimpsest.editors import make_editor
from palimpsest.edits import Edit, write_edits
from palimpsest.files import write_json, write_text
from palimpsest.learning.train import train_editor
from palimpsest.metrics.evaluation import Evaluation
from palimpsest.models import critical_path
from palimpsest.models.loading import load_model
from palimpsest.runs.inputs import RunFiles
from palimpsest.runs.run import execute
from palimpsest.statistics import covariance, fisher

SEARCH = {"layers": [1, 2], "steps": 3, "learning_rate": 0.4, "context_texts": [[""], ["So"]]}
WRITES = SEARCH | {"lam": 5.0}
BESIDE = {"layer": 1, "steps": 3}
CASES = [
    ("ft", "t5", {**BESIDE, "loss": "own"}),
    ("ft_ewc", "bert", BESIDE),
    ("ft_retrain", "gpt2", {**BESIDE, "retrain_frequency": 1}),
    ("memit", "gptj", WRITES),
    ("memit", "gpt2", {**WRITES, "target_search": "plain"}),
    ("comeba_hk", "llama", WRITES),
    ("rome", "gpt2", {**SEARCH, "layers": [2]}),
    ("grace", "t5", BESIDE),
    ("defer", "bert", BESIDE),
    ("memory", "gpt2", BESIDE),
    ("mend", "gptj", {}),
    ("serac", "gpt2", {}),
    ("lu", "bert", {}),
    ("retrieval", "gpt2", {}),
]


@pytest.fixture(autouse=True, scope="module")
def _everywhere():
    with as_everywhere():
        yield


def model_on(device, family):
    model = tiny_model(family, torch.float64)
    model.network.to(device)
    return model


def test_the_double_refuses_what_a_gpu_refuses():
    there, here = torch.ones(2, 3, device=NAME), torch.ones(2, 3)
    refused = [
        lambda: there + here,
        lambda: here @ there.T,
        lambda: here.add_(there.sum()),
        lambda: torch.cat([there, here]),
        lambda: here[torch.tensor([1], device=NAME)],
        lambda: torch.where(here > 0, there, 0.0),
        lambda: torch.randn(2, generator=torch.Generator(), device=NAME),
    ]
    for mixed in refused:
        with pytest.raises(RuntimeError, match="on one device|expected a generator"):
            mixed()
    with pytest.raises(RuntimeError, match="numpy"):
        there.numpy()
    allowed = (there * 2 + torch.tensor(1.0))[torch.tensor([1])]
    assert (
        isinstance(allowed, Elsewhere)
        and allowed.tolist() == [[3.0] * 3]
        and not isinstance(there.cpu(), Elsewhere)
    )


@pytest.mark.parametrize(("name", "family", "settings"), CASES)
def test_an_editor_does_there_what_it_does_here(name, family, settings):
    """Two batches, with notes; answers, generation, inspection; a state that goes and comes; and nothing stays."""
    seen = []
    for device in ("cpu", NAME):
        model = model_on(device, family)
        statistics = random_statistics(model, (1, 2)) if "layers" in settings else None
        learned = {"mend": untrained, "serac": trained_serac}.get(name)
        trained = learned(tiny_model(family, torch.float64)) if learned else None
        editor = make_editor(name, model, settings or None, statistics, trained=trained)
        before = {key: tensor.clone() for key, tensor in model.network.state_dict().items()}
        edits = edits_for(model, 4)
        editor.prepare(edits[:2])
        reports = [editor.edit(edits[:2], record=True), editor.edit(edits[2:])]
        assert not [failure for report in reports for failure in report.failed]
        says = [] if model.kind == "encoder" else editor.generate([edit.prompt for edit in edits])
        rows = Evaluation(model, edits).after(range(4)) if model.kind == "decoder" else []
        shown = [sorted(one) for one in editor.inspect(edits[0].prompt)]
        state = editor.state()
        editor.remove()
        for key, tensor in model.network.state_dict().items():
            torch.testing.assert_close(tensor, before[key], rtol=0, atol=1e-12)
        editor.load_state(state)
        again = editor.state()
        assert all(
            torch.equal(again.tensors[key].cpu(), tensor.cpu()) for key, tensor in state.tensors.items()
        )
        assert {parameter.device.type for parameter in model.network.parameters()} == {device}
        seen.append((says, rows, shown, state))
    here, there = seen
    assert here[:3] == there[:3]
    assert here[3].tensors.keys() == there[3].tensors.keys()
    for key, tensor in here[3].tensors.items():
        torch.testing.assert_close(
            there[3].tensors[key].cpu(), tensor, rtol=1e-6, atol=1e-8, equal_nan=True, msg=key
        )


@pytest.mark.parametrize("edits", [2, 6])
def test_a_step_of_the_search_waits_twice_for_the_device(edits):
    """For the losses and for which rows go on, however many edits share it."""
    counted = []
    for steps in (4, 8):
        model = model_on(NAME, "gpt2")
        settings = {**WRITES, "steps": steps, "learning_rate": 0.01, "stop_loss": 0.0}
        editor = make_editor("memit", model, settings, random_statistics(model, (1, 2)))
        waits.clear()
        assert len(editor.edit(some_edits(edits)).applied) == edits
        counted.append(len(waits))
    assert counted[1] - counted[0] == 2 * 4


# whole runs --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Models and data sets of both kinds of protocol, as the workflow lays them out."""
    folder = tmp_path_factory.mktemp("world")
    saved_world(folder)
    same = load_model(
        folder / "model", dtype="float64"
    )  # as the runs load it: statistics know their model's precision
    random_statistics(same, (0, 1)).save(folder / "statistics")
    write_text(folder / "text.txt", "\n".join(TEXTS))
    answers = tiny_model("t5")
    answers.network.save_pretrained(folder / "answers")
    answers.tokenizer.save_pretrained(folder / "answers")
    asked = [
        Edit(f"Where is {city}?", CITIES[i - 1], city, f"e-{i}", rephrasings=(f"Say, where is {city}?",))
        for i, city in enumerate(CITIES)
    ]
    write_edits(folder / "stream" / "edits.jsonl", asked)
    lines = [
        '{"set": "upstream", "prompt": "Who is Jon?", "answer": "Velden"}',
        '{"set": "holdout", "prompt": "Where?", "answer": "Velden", "edit": "e-0"}',
    ]
    write_text(folder / "stream" / "probes.jsonl", "\n".join(lines) + "\n")
    write_json(folder / "stream" / "manifest.json", {"task": "qa"})
    return folder


RUNS = {
    "consecutive": ("comeba_hk", {"layers": [0, 1], "steps": 3}, {"batch_size": 2, "snapshot_every": 2}, {"inspect": True}),
    "single_round": ("memit", {"layers": [0, 1], "steps": 3}, {"batch_size": 2}, {}),
    "simultaneous": ("ft", {"layer": 0, "steps": 1}, {"batch_size": 2}, {"batch_sizes": [1, 4], "conflicts": "keep"}),
    "lifelong": ("grace", {"layer": 1, "steps": 3, "radius": 1.0}, {"batch_size": 1, "snapshot_every": 2}, {}),
}  # fmt: skip


@pytest.mark.parametrize("protocol", RUNS)
def test_a_run_there_gives_the_rows_of_one_here(protocol, world, tmp_path):
    editor, settings, sizes, options = RUNS[protocol]
    model, data = ("answers", "stream") if protocol == "lifelong" else ("model", "data")
    frames = []
    for device in ("cpu", NAME):
        about = {"run": "toy", "protocol": protocol, "dataset": "toy", "model": "tiny", "editor": editor}
        where = {"device": device, "dtype": "float64", "conflicts": "keep"}
        spec = {**about, **sizes, "settings": settings, "edits": 4, "options": {**where, **options}}
        out = tmp_path / device
        files = (
            {"statistics": world / "statistics", "text": world / "text.txt"} if protocol != "lifelong" else {}
        )
        execute(spec, 0, RunFiles(world / model, world / data, **files), out)
        assert results.read_run(out)["device"].startswith(device)
        frames.append([results.read_metrics(out), results.read_records(out)])
    for here, there in zip(*frames, strict=True):
        pd.testing.assert_frame_equal(there, here, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("name", "family"), [("mend", "t5"), ("serac", "gpt2")])
def test_a_training_there_learns_what_one_here_does(name, family):
    seen = []
    for device in ("cpu", NAME):
        model = model_on(device, family)
        short = {"steps": 4, "k_train": 2, "validate_every": 4, "validate_on": 2, "log_every": 2}
        settings = settings_for(model, **short) if name == "mend" else {**SMALL, **short, "cf_steps": 4}
        seen.append(train_editor(name, model, some_examples(family), settings, seed=1))
    here, there = seen
    for key, tensor in here.tensors.items():
        torch.testing.assert_close(there.tensors[key], tensor, rtol=1e-5, atol=1e-7, msg=key)
    assert there.validation == pytest.approx(here.validation, rel=1e-5, nan_ok=True)


def test_statistics_and_the_gate_there(tmp_path):
    seen = []
    for device in ("cpu", NAME):
        model = model_on(device, "gpt2")
        sums = covariance.collect_covariance(
            model, TEXTS, covariance.CovarianceSettings(layers=(0, 2), tokens=300), progress=False
        )
        pairs = [(edit.prompt, edit.target) for edit in some_edits()]
        squares = fisher.collect_fisher(model, pairs, fisher.FisherSettings(layers=(1,)))
        questions = [
            critical_path.TracedQuestion(edit.prompt, edit.subject, edit.target) for edit in some_edits()
        ]
        rows = critical_path.prepare(model, questions)
        ceiling = critical_path.target_vector_ceiling(model, rows, 1, step_ratio=0.05, steps=3)
        swap = critical_path.state_swap(model, rows, rows, 1)
        seen.append(([sums.matrix(0), sums.matrix(2), squares.matrix(1)], ceiling, swap))
    here, there = seen
    for first, second in zip(here[0], there[0], strict=True):
        torch.testing.assert_close(second.cpu(), first, rtol=1e-6, atol=1e-10)
    assert here[1:] == there[1:]


def test_a_model_is_loaded_onto_it(world):
    model = load_model(world / "model", device=NAME)
    assert model.device.type == NAME and model.head.weight is model.network.get_input_embeddings().weight
    with pytest.raises(Exception, match="device 'third' cannot be used"):
        load_model(world / "model", device="third")
