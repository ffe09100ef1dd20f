"""Checkpoints on machines with GPUs that come and go, and what is not written of them."""

from __future__ import annotations

import json
from copy import copy

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from test_protocols import Noise, steps, stream

from palimpsest.editors.base import EditorState
from palimpsest.errors import PalimpsestError
from palimpsest.protocols import protocol
from palimpsest.protocols.checkpoints import Checkpoint, Checkpoints, random_state, set_random_state


def on_gpu(the_stream, number):
    """The stream, its editor's model saying that it lies on a GPU; what judges has the model as it is."""
    model = copy(the_stream.editor.model)
    device = property(lambda self: torch.device("cuda", number))
    model.__class__ = type("OnGpu", (type(model),), {"device": device})
    the_stream.editor.model = model
    return the_stream


class Gpus:
    """What torch says of some visible GPUs: their random states, each with its number."""

    def __init__(self, count):
        self.states = [torch.tensor([number], dtype=torch.uint8) for number in range(count)]

    def get(self, device="cuda"):
        return self.states[torch.device(device).index]

    def put(self, state, device="cuda"):
        self.states[torch.device(device).index] = state  # IndexError, as torch's, where there are fewer

    def install(self, patch):
        for name, value in (
            ("is_available", lambda: True),
            ("device_count", lambda: len(self.states)),
            ("get_rng_state", self.get),
            ("set_rng_state", self.put),
            ("get_rng_state_all", lambda: list(self.states)),
            ("set_rng_state_all", lambda states: [self.put(s, f"cuda:{n}") for n, s in enumerate(states)]),
        ):
            patch.setattr(torch.cuda, name, value)


def broken_off(folder, number):
    the_stream = on_gpu(stream(dies_at=3, batch_size=1), number)
    with pytest.raises(KeyboardInterrupt):
        protocol("consecutive")(the_stream, Checkpoints(folder, {"run": 1}, True))
    return steps(folder)


def test_a_run_goes_on_where_fewer_gpus_are_visible(tmp_path, monkeypatch):
    """Broken off on the last of four, resumed where there is one: the only one takes the state of the model's."""
    Gpus(4).install(monkeypatch)
    broken_off(tmp_path, 3)
    tensors = load_file(max(tmp_path.glob("*.safetensors")))
    assert [name for name in tensors if "gpu" in name or "cuda" in name] == ["random.gpu"]
    one = Gpus(1)
    one.install(monkeypatch)
    again = on_gpu(stream(batch_size=1), 0)
    protocol("consecutive")(again, Checkpoints(tmp_path, {"run": 1}))
    assert again.editor.calls == 4  # the two edits before the last checkpoint were not made again
    assert one.states[0].tolist() == [3]


def test_a_run_goes_on_without_any_gpu(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        Gpus(2).install(patch)
        broken_off(tmp_path, 1)
    again = stream(batch_size=1)
    protocol("consecutive")(again, Checkpoints(tmp_path, {"run": 1}))
    assert again.editor.calls == 4


@pytest.mark.parametrize(
    "error", [IndexError("tuple index out of range"), AssertionError(), RuntimeError("!")]
)
def test_a_gpu_that_takes_no_random_state_costs_no_checkpoint(tmp_path, monkeypatch, error):
    Gpus(1).install(monkeypatch)
    before = broken_off(tmp_path, 0)

    def refuses(state, device="cuda"):
        raise error

    monkeypatch.setattr(torch.cuda, "set_rng_state", refuses)
    again = on_gpu(stream(batch_size=1), 0)
    with pytest.raises(PalimpsestError, match="does not take its random state.*It is kept"):
        protocol("consecutive")(again, Checkpoints(tmp_path, {"run": 1}))
    assert steps(tmp_path) == before and len(before) == 4


def test_other_gpus_are_not_even_asked(monkeypatch):
    """A model on the CPU of a machine with GPUs leaves them alone: to ask one reserves memory on it."""

    def asked(*_):
        raise RuntimeError("a GPU was asked")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("get_rng_state", "get_rng_state_all", "set_rng_state", "set_rng_state_all"):
        monkeypatch.setattr(torch.cuda, name, asked)
    for device in (None, torch.device("cpu")):
        set_random_state(*random_state(device), device)


class Writer(Noise):
    """Keeps what it added to the weights, which is zero after a reset, as editors that write into the model do."""

    def state(self):
        return EditorState({"update": self.weight.detach() - self.untouched}, {"alpha": self.alpha.get(1)})

    def load_state(self, state):
        update = state.tensors["update"]
        super().load_state(EditorState({"weight": self.untouched + update}, state.plain))


def writing(**attributes):
    the_stream = stream(batch_size=1, **attributes)
    the_stream.editor.__class__ = Writer
    return the_stream


def test_a_writers_zeros_are_not_written(tmp_path):
    """Single rounds are kept after a roll-back: the update of every layer is zero then, gigabytes at paper scale."""
    whole = protocol("single_round")(writing())
    with pytest.raises(KeyboardInterrupt):
        protocol("single_round")(writing(dies_at=4), Checkpoints(tmp_path, {"run": 1}, True))
    newest = max(tmp_path.glob("*.safetensors"))
    assert "editor.update" not in load_file(newest)
    again = writing()
    progress = protocol("single_round")(again, Checkpoints(tmp_path, {"run": 1}))
    assert again.editor.calls == 3
    pd.testing.assert_frame_equal(
        pd.DataFrame(progress.records),
        pd.DataFrame(whole.records)[list(progress.records[0])],
        check_exact=True,
    )


def test_what_is_restored_is_what_was_saved(tmp_path):
    """Shape, type and every bit, of zeros, minus zeros, half precision, views, single numbers and nothing."""
    large = torch.zeros(40, 60)
    tensors = {
        "zero": large,
        "half": torch.zeros(3, 500, 2, dtype=torch.float16),
        "counts": torch.zeros(900, dtype=torch.int64),
        "turned": large.t(),
        "minus": -large,
        "some": large.index_put((torch.tensor(39), torch.tensor(59)), torch.tensor(1e-40)),
        "number": torch.tensor(0.0),
        "nothing": torch.zeros(0, 7),
    }
    checkpoints = Checkpoints(tmp_path, {"run": 1})
    checkpoints.save(Checkpoint(1, tensors, {}))
    found = checkpoints.latest().tensors
    assert found.keys() == tensors.keys()
    for name, wanted in tensors.items():
        assert found[name].dtype == wanted.dtype and torch.equal(found[name], wanted), name
        assert torch.equal(torch.signbit(found[name]), torch.signbit(wanted)), name
    (path,) = tmp_path.glob("*.safetensors")
    assert load_file(path).keys() == tensors.keys() - {"zero", "half", "counts", "turned"}


def test_one_without_a_list_of_zeros_is_read_too(tmp_path):
    checkpoints = Checkpoints(tmp_path, {"run": 1})
    checkpoints.save(Checkpoint(1, {"one": torch.ones(3)}, {"a": 1}))
    (path,) = tmp_path.glob("*.json")
    content = json.loads(path.read_text())
    del content["zeros"]
    path.write_text(json.dumps(content))
    found = checkpoints.latest()
    assert found.plain == {"a": 1} and found.tensors["one"].tolist() == [1, 1, 1]
