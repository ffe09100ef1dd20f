"""Broken input of every kind: only the house's own errors come out, with the file's name, and no partial result stays."""

from __future__ import annotations

import contextlib
import copy
import gzip
import json
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import random_statistics, some_edits, some_examples, tiny_model, write_examples
from untrained_mend import untrained

from palimpsest import make_editor, results
from palimpsest.config import ConfigError, load_config, read_yaml, repository_root
from palimpsest.data.prepare import build_dataset
from palimpsest.data.world import generate
from palimpsest.editors import editor_class, editor_names
from palimpsest.editors.base import load_state, read_settings, save_state
from palimpsest.editors.shared.stored_targets import StoredTargets, keys_of
from palimpsest.editors.shared.target_vectors import Search, search_target_vectors
from palimpsest.edits import Edit, read_edits, write_edits
from palimpsest.errors import PalimpsestError
from palimpsest.experiments import plan
from palimpsest.figures.read import load_runs
from palimpsest.learning.artefact import TrainedEditor
from palimpsest.learning.examples import read_examples
from palimpsest.metrics.asked import AskedPairs
from palimpsest.metrics.unedited import Unedited
from palimpsest.models.pairs import read_pairs
from palimpsest.models.pretrain_rows import read_facts
from palimpsest.protocols.checkpoints import Checkpoint, Checkpoints
from palimpsest.protocols.lifelong_inputs import read_probes
from palimpsest.protocols.sample import read_reserved
from palimpsest.runs.inputs import Options, check_gate, known_edits
from palimpsest.runs.run import REQUIRED, _check_spec
from palimpsest.runs.searches import check_search
from palimpsest.statistics.covariance import CovarianceSettings, CovarianceStatistics
from palimpsest.statistics.fisher import read_pairs as read_upstream

QUICK = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
ODD = (
    "",
    " ",
    "\ud800",
    "\0",
    "\u2028",
    "\x85",
    "a\u0301",
    "\U0001f9ff",
    "{}",
    "../..",
    "NaN",
    "\ufeff",
    "x" * 5000,
)
leaves = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from([10**400, -(2**63), 1e308, -0.0]), st.sampled_from(ODD),
    st.text(max_size=8), st.floats(allow_nan=True),
)  # fmt: skip
junk = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def places(value, path=()):
    """Paths of everything inside a plain value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        yield (*path, name)
        yield from places(inner, (*path, name))


def broken(content, data):
    """The content with one place of another type, one field less, or one more."""
    content = copy.deepcopy(content)
    every = list(places(content))
    path = data.draw(st.sampled_from(every)) if every else ()
    holder = content
    for step in path[:-1]:
        holder = holder[step]
    what = data.draw(st.sampled_from(("replace", "drop", "add", "wrap")))
    if not path:
        return data.draw(junk)
    if what == "drop":
        del holder[path[-1]]
    elif what == "wrap":
        holder[path[-1]] = [holder[path[-1]]]
    elif what == "add" and isinstance(holder, dict):
        holder[data.draw(st.text(min_size=1, max_size=6))] = data.draw(junk)
    else:
        holder[path[-1]] = data.draw(junk)
    return content


def damaged(whole: bytes, data) -> bytes:
    """The bytes cut off somewhere, with some in the middle changed, or with something behind."""
    at = data.draw(st.integers(0, max(0, len(whole) - 1)))
    what = data.draw(st.sampled_from(("cut", "change", "more", "empty")))
    some = data.draw(st.binary(min_size=1, max_size=9))
    return {
        "cut": whole[:at],
        "change": whole[:at] + some + whole[at + len(some) :],
        "more": whole + some,
        "empty": b"",
    }[what]


def text_of(content) -> bytes:
    """JSON as a careless program writes it: NaN, huge numbers and half characters included."""
    return json.dumps(content).encode()


@contextlib.contextmanager
def refusing():
    """Any of the house's errors is fine, with words in it; anything else is not."""
    try:
        yield
    except PalimpsestError as error:
        assert len(str(error)) > 15


# lines of JSON ---------------------------------------------------------------------------------------------------------

FACT = {"text": "Ada lives in Velden", "kind": "prompt", "answer": [13, 19], "subject": [0, 3]}
PAIR = {"prompt": "Ada lives in", "answer": "Velden", "kind": "question"}
PROBE = {"set": "upstream", "prompt": "Ada lives in", "answer": "Velden", "edit": None}
LINES = {
    "edits": ([edit.to_dict() for edit in some_edits(3)], read_edits, "edits.jsonl"),
    "learning": ([example.to_dict() for example in some_examples()], read_examples, "learning.jsonl"),
    "facts": ([FACT] * 2, read_facts, "facts.jsonl"),
    "pairs": ([PAIR] * 2, read_pairs, "pairs.jsonl"),
    "upstream": ([PROBE] * 2, read_upstream, "upstream.jsonl"),
    "probes": ([PROBE] * 2, lambda path: read_probes(path.parent, []), "probes.jsonl"),
}


@pytest.mark.parametrize("name", LINES)
@QUICK
@given(data=st.data())
def test_files_of_lines(name, data):
    records, read, file = LINES[name]
    lines = [text_of(record) for record in records]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / file
        path.write_bytes(b"\n".join(lines) + b"\n")
        read(path)
        which = data.draw(st.integers(0, len(lines) - 1))
        lines[which] = data.draw(
            st.sampled_from((text_of(broken(json.loads(lines[which]), data)), damaged(lines[which], data)))
        )
        path.write_bytes(b"\n".join(lines) + b"\n")
        with refusing():
            found = read(path)
            if name == "edits":  # what was read can be written again
                write_edits(Path(folder) / "again.jsonl", found)
                assert read_edits(Path(folder) / "again.jsonl") == found
            if name == "learning":
                write_examples(Path(folder) / "again.jsonl", found)


# one object a file -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """One whole file of each kind that the house writes and reads again."""
    folder = tmp_path_factory.mktemp("kept")
    model = tiny_model("gpt2")
    random_statistics(model, (0, 1)).save(folder / "statistics")
    untrained(model).save(folder / "trained")
    editor = make_editor("grace", model, {"layer": 1, "steps": 2})
    editor.edit(some_edits(2))
    save_state(editor, folder / "state")
    editor.remove()
    row = {
        "run": "a",
        "seed": 0,
        "step": 1,
        "n_edits": 1,
        "split": "edit",
        "metric": "reliability",
        "value": 1.0,
        "n": 1,
    }
    results.write_metrics(folder / "run" / "metrics.parquet", [row] * 1)
    spec = {"editor": "ft", "model": "m", "dataset": "d", "protocol": "consecutive"}
    info = {"spec": spec, "seed": 0, "status": "complete", "edits_requested": 1, "edits_applied": 1}
    results.write_run(folder / "run" / "run.json", info)
    for name, content in (
        ("gate.json", {"verdict": "fail", "reasons": ["none"]}),
        ("known.json", {"known": ["a"]}),
        ("data/manifest.json", {"reserved": ["a"]}),
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    search = Search(layer=1, steps=2, learning_rate=0.3)
    vectors = search_target_vectors(model, some_edits(2), [""], search)
    StoredTargets(vectors, keys_of(some_edits(2)), {"model": "m"}).save(folder / "targets")
    AskedPairs(model, PAIRS, unedited=Unedited(folder / "answers"))
    Checkpoints(folder / "checkpoints", {"key": 1}).save(
        Checkpoint(3, {"x": editor.codebook.radii}, {"progress": {"a": 1}})
    )
    return folder, editor


PAIRS = [("Ada lives in", "Velden"), ("Ben was born in", "Sorn")]


def checkpoint_of(folder):
    """A checkpoint that does not serve is left aside, never an error."""
    found = Checkpoints(folder / "checkpoints", {"key": 1}).latest()
    assert found is None or found.step == 3


def targets_of(folder):
    return StoredTargets.load(folder / "targets").look_up(some_edits(2), torch.device("cpu"))


MODES = Options(gate="warn", known_only=True)
FILES = {
    "statistics/covariance.safetensors": lambda place, _: CovarianceStatistics.load(place / "statistics"),
    "trained/weights.safetensors": lambda place, _: TrainedEditor.load(place / "trained"),
    "trained/trained.json": lambda place, _: TrainedEditor.load(place / "trained").describe(),
    "state/state.safetensors": lambda place, editor: load_state(editor, place / "state"),
    "state/state.json": lambda place, editor: load_state(editor, place / "state"),
    "targets/targets.json": lambda place, editor: targets_of(place),
    "targets/targets.safetensors": lambda place, editor: targets_of(place),
    "answers/*.json": lambda place, editor: AskedPairs(
        editor.model, PAIRS, unedited=Unedited(place / "answers")
    ),
    "run/metrics.parquet": lambda place, _: results.read_metrics(place / "run"),
    "run/run.json": lambda place, _: (results.read_run(place / "run"), load_runs([place / "run"])),
    "gate.json": lambda place, _: check_gate(
        {"editor": "ft", "model": "m", "dataset": "d"}, MODES, place / "gate.json"
    ),
    "known.json": lambda place, _: known_edits(MODES, place / "known.json"),
    "data/manifest.json": lambda place, _: read_reserved(place / "data"),
    "checkpoints/step-000003-*.json": lambda place, _: checkpoint_of(place),
    "checkpoints/step-000003-*.safetensors": lambda place, _: checkpoint_of(place),
}


@pytest.mark.parametrize("name", FILES)
@QUICK
@given(data=st.data())
def test_files_that_the_house_wrote(kept, name, data):
    folder, editor = kept
    with tempfile.TemporaryDirectory() as copied:
        place = Path(copied) / "kept"
        shutil.copytree(folder, place)
        FILES[name](place, editor)
        (file,) = place.glob(name)
        whole = file.read_bytes()
        choices = [damaged(whole, data)]
        if name.endswith(".json"):
            choices.append(text_of(broken(json.loads(whole), data)))
        file.write_bytes(data.draw(st.sampled_from(choices)))
        with refusing():
            FILES[name](place, editor)


# data sets from elsewhere ------------------------------------------------------------------------------------------------

WORLD = {"counterfact": 6, "zsre": 6, "probes": 2, "unrelated": 2, "relations": 2, "answers": 3, "first_names": 6,
         "facts_per_subject": 1, "text_lines": 10}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    generate(WORLD, 0, folder)
    return folder


@pytest.mark.parametrize("reader", ["counterfact", "zsre"])
@QUICK
@given(data=st.data())
def test_a_data_set_from_a_broken_file_is_whole_or_not_there(world, reader, data):
    records = json.loads((world / f"{reader}.json").read_text())
    whole = text_of(records)
    content = data.draw(st.sampled_from((damaged(whole, data), text_of(broken(records, data)))))
    if data.draw(st.booleans()):
        content = damaged(gzip.compress(whole, mtime=0), data)
    spec = {"reader": reader, "file": "x.json", "bad_records": data.draw(st.sampled_from(("refuse", "skip")))}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "x.json").write_bytes(content)
        out, made = Path(folder) / "out", False
        with refusing():
            build_dataset(spec, Path(folder), out)
            made = True
        if made:
            assert read_edits(out / "edits.jsonl") and json.loads((out / "manifest.json").read_text())
        else:
            assert not list(out.rglob("*"))


# configuration -----------------------------------------------------------------------------------------------------------

SCALES = ("smoke", "small")


@pytest.mark.parametrize("scale", SCALES)
@settings(parent=QUICK, max_examples=25)
@given(data=st.data())
def test_a_broken_configuration_is_refused_with_its_problems(scale, data):
    whole = read_yaml(repository_root() / "config" / f"{scale}.yaml")
    content = broken(whole, data)
    with refusing():
        plan(content)
    assert plan(whole).runs, "what is broken was whole"


@pytest.mark.parametrize("value", [[2, 4], "ten", 0, True, 2.5])
@pytest.mark.parametrize("experiment", ["comeba_fig5", "comeba_fig11"])
def test_sweeps_over_counts_take_whole_numbers(experiment, value):
    content = read_yaml(repository_root() / "config" / "smoke.yaml")
    content["experiments"][experiment]["values"] = [value]
    with pytest.raises(
        ConfigError, match=rf"experiments\.{experiment}\.values: .* Give whole numbers above 0"
    ):
        plan(content)


@QUICK
@given(data=st.data())
def test_a_broken_yaml_file_is_refused_by_name(data):
    paths = sorted((repository_root() / "config").rglob("*.yaml"))
    whole = data.draw(st.sampled_from(paths)).read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scale.yaml"
        path.write_bytes(damaged(whole, data))
        with refusing():
            read_yaml(path)
        path.write_text(yaml.safe_dump(data.draw(junk)), encoding="utf-8", errors="surrogatepass")
        with refusing():
            load_config(path)


@pytest.mark.parametrize("name", editor_names())
@QUICK
@given(data=st.data())
def test_settings_of_editors_from_anywhere(name, data):
    kind = editor_class(name)
    names = sorted(kind.settings_type.__dataclass_fields__)
    content = {data.draw(st.sampled_from(names)): data.draw(junk) for _ in range(2)}
    with refusing():
        read_settings(kind, content)


SPEC = {"run": "a", "protocol": "consecutive", "dataset": "d", "model": "m", "editor": "ft", "edits": 2, "batch_size": 1,
        "snapshot_every": 1, "settings": {}, "options": {"gate": "off", "inspect": True, "batch_sizes": [1]}}  # fmt: skip


SEARCH = {"model": "m", "dataset": "d", "edits": 2, "options": {"sample": "file_order"},
          "settings": {"layers": [1], "steps": 2, "context_lengths": [[5, 2]], "context_texts": None}}  # fmt: skip


@QUICK
@given(data=st.data())
def test_specifications_of_searches(data):
    content = broken(SEARCH, data)
    with refusing():
        options, stated = check_search(content)
        assert content["edits"] >= 1 and isinstance(options, Options)
        assert stated.search().layer == stated.layers[-1]


@QUICK
@given(data=st.data())
def test_specifications_of_runs_and_statistics(data):
    content = broken(SPEC, data)
    with refusing():
        assert isinstance(_check_spec(content), Options)
        assert all(content[name] for name in REQUIRED)
    with refusing():
        Options.from_dict(broken({"batch_tokens": 4096, "task": "qa", "batch_sizes": [1, 2]}, data))
    with refusing():
        CovarianceSettings.from_dict(broken({"layers": [0, 1], "tokens": 10, "batch_tokens": 4}, data))
    with refusing():
        Edit.from_dict(broken(some_edits(1)[0].to_dict(), data))
