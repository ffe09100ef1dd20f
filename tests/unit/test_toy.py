"""The toy figure's computation: the codebook's rules on the line, one key against fine-tuning, the same twice."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch

from palimpsest import figures, toy
from palimpsest.errors import DataError, SettingsError

SMALL = {"radii": [0.1, 5.0], "seeds": [0, 1], "grid": 21, "test_points": 300, "flipped": 8}


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    path = toy.run_toy(SMALL, tmp_path_factory.mktemp("toy"))
    return path, json.loads(path.read_text())


def test_codebook_rules_on_the_line():
    """The unit vectors of the method's page, keys of one dimension, initial radius 1, radii capped at a split."""
    book, generator = toy.ToyCodebook(1.0), torch.Generator().manual_seed(0)

    def edit(position, label):
        return book.place(torch.tensor([position]), label, generator, 1)

    def answer(position):
        entry, inside = book.fires(torch.tensor([[position]]))
        return book.labels[int(entry)] if bool(inside) else None

    assert edit(0.0, 0) == 0 and book.radii == [1.0]
    assert edit(0.5, 0) == 0 and book.radii == [1.0]  # hit
    assert edit(1.8, 0) == 0 and book.radii == pytest.approx([1.8])  # expand
    assert edit(2.5, 1) == 1 and book.radii == pytest.approx([1.25 - 1e-5, 1.0])  # split
    assert edit(9.0, 2) == 2 and book.radii[2] == 1.0  # add
    assert [answer(p) for p in (1.2, 1.3, 7.9, 8.0)] == [0, None, None, 2]


def test_one_key_keeps_the_plane_and_small_radii_do_not_generalise(computed):
    _, content = computed
    rows = pd.DataFrame(content["rows"])
    before = rows[rows["method"] == "unedited"].set_index("seed")
    grace = rows[rows["method"] == "grace"].set_index(["radius", "seed"])
    assert (before["trr"] > 0.95).all() and (before["err"] == 0).all()
    assert (grace.loc[1.5, "keys"] == 1).all() and (grace["err"] == 1).all()
    assert (grace.loc[1.5, "trr"] > before["trr"] - 0.05).all()
    assert (grace.loc[0.1, "keys"] > 3).all()
    assert (grace.loc[0.1, "holdout"] < grace.loc[1.5, "holdout"]).all()
    assert (grace.loc[5.0, "trr"] < grace.loc[1.5, "trr"]).all()


def test_the_same_spec_gives_the_same_file(computed, tmp_path):
    path, _ = computed
    assert toy.run_toy(SMALL, tmp_path).read_bytes() == path.read_bytes()


def test_training_a_value_leaves_the_network_alone():
    settings = toy.ToySettings(steps=5)
    world = toy.make_world(settings, torch.Generator().manual_seed(0))
    network = toy.train_network(settings, world, 0)
    weights = network.second.weight.clone()
    logits = network.logits(world.test[0])
    book = toy.edit_with_grace(settings, network, world, 1.0, 0)
    toy.edit_with_fine_tuning(settings, network, world)
    assert torch.equal(network.second.weight, weights)
    nearest, inside = book.fires(network.hidden(world.test[0]))
    edited = network.logits(world.test[0], book.overrule)
    assert torch.equal(edited[~inside], logits[~inside]) and len(nearest) == len(logits)


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ({"radii": [0.0]}, "radii"),
        ({"width": 0}, "width"),
        ({"colour": 1}, "colour"),
        ({"seeds": []}, "seeds"),
    ],
)
def test_impossible_settings_are_named(spec, named, tmp_path):
    with pytest.raises(SettingsError, match=named):
        toy.run_toy(spec, tmp_path)
    assert not list(tmp_path.iterdir())


def test_figure_from_the_file(computed, tmp_path):
    path, content = computed
    spec = {"drawer": "toy", "title": "Toy", "scale": "mini", "toy": str(path)}
    written = figures.draw("grace_toy", spec, [], tmp_path)
    assert {file.name for file in written} == {"grace_toy" + suffix for suffix in figures.FIGURE_SUFFIXES}
    points = pd.read_csv(tmp_path / "grace_toy.csv")
    rows = pd.DataFrame(content["rows"])
    for wanted in (0.1, 1.5, 5.0):
        drawn = points[(points["quantity"] == "trr") & (points["radius"] == wanted)]["mean"].iloc[0]
        assert drawn == pytest.approx(rows[rows["radius"] == wanted]["trr"].mean(), abs=1e-5)
    assert "2 seeds" in (tmp_path / "grace_toy.caption.md").read_text()
    with pytest.raises(DataError, match="toy"):
        figures.draw("it", {"drawer": "toy", "title": ""}, [], tmp_path)
    (tmp_path / "broken.json").write_text('{"rows": []}')
    with pytest.raises(DataError, match="settings"):
        figures.draw("it", {**spec, "toy": str(tmp_path / "broken.json")}, [], tmp_path)
