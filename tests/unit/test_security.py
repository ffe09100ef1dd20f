"""Files from elsewhere: none is unpickled, none brings code that is run, none moves, none writes outside of its folder.

`palimpsest convert` alone reads tensors out of .bin files: test_convert.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil

import pytest
import torch
from tiny import network, random_statistics, some_edits, some_examples, tiny_model, tokenizer, write_examples
from untrained_mend import QUICK, untrained

from palimpsest import load_model, make_editor, results
from palimpsest.config import ConfigError, load_config, read_yaml, repository_root
from palimpsest.data.sources import check_hub
from palimpsest.editors.base import load_state, save_state
from palimpsest.editors.shared.counterfactual import counterfactual_model
from palimpsest.editors.shared.scope_classifier import ScopeClassifier, ScopeShape
from palimpsest.editors.shared.stored_targets import StoredTargets
from palimpsest.edits import read_edits, write_edits
from palimpsest.errors import ModelError, PalimpsestError, SettingsError
from palimpsest.figures import draw
from palimpsest.learning.artefact import TrainedEditor
from palimpsest.learning.examples import read_examples
from palimpsest.learning.train import train_editor
from palimpsest.models.hub import pinned
from palimpsest.models.manifest import describe_model
from palimpsest.protocols.checkpoints import Checkpoint, Checkpoints
from palimpsest.statistics.covariance import CovarianceStatistics
from palimpsest.statistics.fisher import FisherStatistics

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Evil:
    """Unpickled, it makes a file: the proof that somebody unpickled it."""

    def __init__(self, place):
        self.place = str(place)

    def __reduce__(self):
        return open, (self.place, "w")


@pytest.fixture
def proof(tmp_path):
    """Where the proof would lie; that the pickle does what it says is shown at the end."""
    place = tmp_path / "proof"
    yield place
    assert not place.exists(), "a pickle was loaded, or code was run"
    with pickle.loads(pickle.dumps(Evil(place))):  # noqa: S301  our own, to show that it bites
        assert place.exists()


def plant(path, proof):
    """A malicious pickle: bare, and as torch writes one."""
    path.write_bytes(pickle.dumps(Evil(proof)))
    yield path
    torch.save({"weight": Evil(proof)}, path)
    yield path


@pytest.fixture
def directory(tmp_path):
    folder = tmp_path / "model"
    network("gpt2").save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "manifest.json"])
def test_a_pickle_in_the_place_of_a_models_file(directory, proof, name):
    for _ in plant(directory / name, proof):
        with pytest.raises(PalimpsestError):
            load_model(directory)


def test_pickled_weights_beside_missing_safe_ones(directory, proof):
    (directory / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.pt", "flax_model.msgpack"):
        for _ in plant(directory / name, proof):
            with pytest.raises(ModelError, match="cannot load the model"):
                load_model(directory)
            with pytest.raises(ModelError, match="cannot load"):
                ScopeClassifier(tiny_model("gpt2"), ScopeShape(encoder=str(directory)), 0)
            with pytest.raises(ModelError, match="cannot load"):
                counterfactual_model(tiny_model("bert"), str(directory), {}, 0)


def test_a_pickle_in_the_place_of_statistics_targets_trained_weights_or_a_state(tmp_path, proof, gpt2):
    random_statistics(gpt2, (0, 1)).save(tmp_path / "covariance")
    untrained(gpt2).save(tmp_path / "trained")
    editor = make_editor("grace", gpt2, {"layer": 1, "steps": 2})
    editor.edit(some_edits(2))
    save_state(editor, tmp_path / "state")
    for folder, file, load in (
        ("covariance", "covariance.safetensors", CovarianceStatistics.load),
        ("fisher", "fisher.safetensors", FisherStatistics.load),
        ("targets", "targets.safetensors", StoredTargets.load),
        ("targets", "targets.json", StoredTargets.load),
        ("trained", "weights.safetensors", TrainedEditor.load),
        ("trained", "trained.json", TrainedEditor.load),
        ("state", "state.safetensors", lambda place: load_state(editor, place)),
        ("state", "state.json", lambda place: load_state(editor, place)),
        ("run", "metrics.parquet", results.read_metrics),
        ("run", "records.parquet", results.read_records),
        ("run", "run.json", results.read_run),
        ("data", "edits.jsonl", lambda place: read_edits(place / "edits.jsonl")),
        ("data", "learning.jsonl", lambda place: read_examples(place / "learning.jsonl")),
    ):
        (tmp_path / folder).mkdir(exist_ok=True)
        for _ in plant(tmp_path / folder / file, proof):
            with pytest.raises(PalimpsestError):
                load(tmp_path / folder)


def test_a_pickle_in_the_place_of_a_checkpoint_is_left_aside(tmp_path, proof, gpt2):
    checkpoints = Checkpoints(tmp_path / "run", {"key": 1})
    for kind in ("safetensors", "json"):
        checkpoints.save(Checkpoint(7, {"x": torch.ones(2)}, {}))
        for _ in plant(next((tmp_path / "run").glob(f"step-000007-*.{kind}")), proof):
            assert checkpoints.latest() is None
    (tmp_path / "run" / "step-of-nobody.json").write_text("{}")
    assert checkpoints.latest() is None
    settings = {**QUICK, "steps": 2, "validate_every": 2, "checkpoint_every": 2}
    write_examples(tmp_path / "learning.jsonl", some_examples())
    for number, _ in enumerate(plant(tmp_path / "checkpoint.safetensors", proof)):
        folder = tmp_path / f"training-{number}"
        folder.mkdir()
        shutil.copy(tmp_path / "checkpoint.safetensors", folder / "checkpoint.safetensors")
        train_editor("mend", gpt2, tmp_path / "learning.jsonl", settings, folder)
        assert TrainedEditor.load(folder).steps == 2


@pytest.mark.parametrize("kind", ["unknown", "gpt2"])
def test_code_that_comes_with_a_model_is_never_run(directory, proof, monkeypatch, kind):
    """Nor is anybody asked whether to: a question at a terminal is answered with yes too easily."""
    for name in ("evil_model", "evil_config", "evil_tokenizer"):
        (directory / f"{name}.py").write_text(f"open({str(proof)!r}, 'w')\n")
    names = {
        "AutoConfig": "evil_config.C",
        "AutoModelForCausalLM": "evil_model.M",
        "AutoModel": "evil_model.M",
    }
    for file, changes in (
        ("config.json", {"auto_map": names, "model_type": "evil" if kind == "unknown" else "gpt2"}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil_tokenizer.T", "evil_tokenizer.T"]}}),
    ):
        content = json.loads((directory / file).read_text())
        (directory / file).write_text(json.dumps({**content, **changes}))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked"))
    for load in (
        lambda: load_model(directory),
        lambda: ScopeClassifier(tiny_model("gpt2"), ScopeShape(encoder=str(directory)), 0),
        lambda: counterfactual_model(tiny_model("bert"), str(directory), {}, 0),
    ):
        with contextlib.suppress(
            ModelError
        ):  # the library's own class of that name may serve, the repository's never
            load()


@pytest.mark.parametrize("revision", [None, "main", "v1.0", COMMIT[:12], COMMIT.upper(), COMMIT + "\n"])
def test_a_hub_model_without_its_commit_is_refused(revision, monkeypatch, tmp_path):
    import transformers

    def never(*_, **__):
        pytest.fail("the hub was asked")

    for name in ("AutoConfig", "AutoTokenizer", "AutoModel"):
        monkeypatch.setattr(getattr(transformers, name), "from_pretrained", never)
    with pytest.raises(ModelError, match=r"not pinned to a commit.*HfApi\(\)\.model_info\('org/name'\)\.sha"):
        load_model("org/name", revision=revision)
    with pytest.raises(ModelError, match="not pinned to a commit"):
        describe_model({"kind": "hub", "id": "org/name", "revision": revision}, tmp_path)
    assert not list(tmp_path.iterdir())
    named = "org/name" if revision is None else f"org/name@{revision}"
    with pytest.raises(ModelError, match="not pinned to a commit"):
        ScopeClassifier(tiny_model("gpt2"), ScopeShape(encoder=named), 0)
    with pytest.raises(ModelError, match="not pinned to a commit"):
        counterfactual_model(tiny_model("gpt2"), named, {}, 0)


def test_a_pinned_hub_model_is_asked_for_at_its_commit_without_its_code():
    for found in (pinned("org/name", COMMIT), pinned(f"org/name@{COMMIT}")):
        assert found == ("org/name", {"revision": COMMIT, "trust_remote_code": False})


def small():
    return read_yaml(repository_root() / "config" / "small.yaml")


def test_a_configuration_pins_what_it_names():
    load_config(small())
    for revision in ("main", COMMIT[:10], COMMIT.upper()):
        content = small()
        content["models"]["gpt2"]["revision"] = revision
        with pytest.raises(ConfigError, match=r"models\.gpt2\.revision"):
            load_config(content)


@pytest.mark.parametrize("name", ["../evil", "/evil/name", "a/b", "..", "a\\b", "a\0b", ".hidden", "a b"])
@pytest.mark.parametrize("part", ["models", "datasets", "sources", "experiments"])
def test_names_of_a_configuration_that_lead_out_of_their_folder(part, name):
    content = small()
    entries = content[part]
    entries[name] = entries.pop(next(iter(entries)))
    with pytest.raises(ConfigError):
        load_config(content)


@pytest.mark.parametrize("name", ["../evil", "/evil/name", "a/b", "..", "", "a\n"])
def test_names_of_figures_and_runs_that_lead_out(tmp_path, name):
    with pytest.raises(SettingsError, match="a name is made of"):
        draw(name, {"drawer": "curves"}, [], tmp_path / "out")
    row = {
        "run": name,
        "seed": 0,
        "step": 1,
        "n_edits": 1,
        "split": "edit",
        "metric": "reliability",
        "value": 1.0,
        "n": 1,
    }
    with pytest.raises(results.ResultError, match="run name"):
        results.write_metrics(tmp_path / "metrics.parquet", [row])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "file", ["../../etc/passwd", "/etc/passwd", "a/../../b", "C:\\windows", "..\\b", "a\0b"]
)
def test_hub_files_that_lead_out_of_the_repository(file):
    with pytest.raises(SettingsError, match="inside the repository"):
        check_hub({"id": "a/b", "revision": COMMIT, "file": file})


def test_records_whose_names_are_paths_write_nothing_of_that_name(tmp_path):
    """Identifiers and prompts are data: no file is called after one."""
    tmp_path = tmp_path / "own"  # what lies beside it is this test's alone
    tmp_path.mkdir()
    from palimpsest.runs.inputs import RunFiles
    from palimpsest.runs.run import execute

    model = tiny_model("gpt2")
    model.network.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")
    edits = [type(edit).from_dict({**edit.to_dict(), "identifier": f"../../../{tmp_path.name}-evil-{i}"})
             for i, edit in enumerate(some_edits(2))]  # fmt: skip
    write_edits(tmp_path / "data" / "edits.jsonl", edits)
    spec = {"run": "toy", "protocol": "consecutive", "dataset": "../../x", "model": "/etc/x", "editor": "ft", "edits": 2,
            "batch_size": 1, "settings": {"layer": 0, "steps": 1}, "options": {"conflicts": "keep"}}  # fmt: skip
    before = {path for path in tmp_path.parent.rglob("*") if tmp_path not in path.parents}
    execute(spec, 0, RunFiles(tmp_path / "model", tmp_path / "data"), tmp_path / "out")
    assert {path for path in tmp_path.parent.rglob("*") if tmp_path not in path.parents} == before
    assert {path.name for path in tmp_path.iterdir()} == {"model", "data", "out"}
    with pytest.raises(PalimpsestError, match="run name"):
        execute(
            {**spec, "run": "../evil"}, 0, RunFiles(tmp_path / "model", tmp_path / "data"), tmp_path / "out"
        )
    assert not (tmp_path / "evil").exists()


def test_no_module_of_the_house_can_unpickle():
    """Beside `pickle` itself (test_house): other libraries' ways to it. One module reads .bin files, as tensors alone."""
    ways = (
        "torch.load(",
        "allow_pickle=True",
        "read_pickle",
        "yaml.unsafe_load",
        "yaml.full_load",
        "shelve",
        "marshal",
    )
    for path in (repository_root() / "src").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if path.name == "convert.py":
            alone = 'torch.load(path, map_location="cpu", weights_only=True)'
            assert text.count("torch.load(") == text.count(alone) == 1
            text = text.replace(alone, "")
        assert "models.convert" not in text or path.name == "commands.py", (
            f"{path}: only the command converts"
        )
        assert not [way for way in ways if way in text], path
        assert "trust_remote_code" not in text.replace('"trust_remote_code": False', ""), path
        if "from_pretrained(" in text:
            assert "pinned" in text, f"{path}: use models/hub.py"
