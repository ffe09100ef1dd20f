"""GRACE's illustrative figure: a small classifier of points in the plane, edited with a single key or fine-tuned.

Two classes of points, a network with two hidden layers of 100 ReLU units, and a disc inside one class where the labels
are flipped after training (GRACE, illustrative figure). The flipped points come one after the other; each one that the
network gets wrong is an edit, either of GRACE's codebook at the second layer or of that layer's weights. Everything is
computed here in seconds on one thread and written as plain numbers; `figures/toy.py` draws them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from palimpsest.errors import SettingsError
from palimpsest.files import write_json
from palimpsest.plain import SEEDS, build, check_whole

RESULT_FILE = "toy.json"


@dataclass(frozen=True)
class ToySettings:
    """The toy world and how it is edited; numbers not in the paper are marked (ours).

    Attributes:
        points: training points of both classes together (paper: 100).
        test_points: fresh points that judge retention, outside the disc (ours).
        flipped: points of the disc in the stream, and as many that never appear in it (ours).
        width: units of both hidden layers (paper: 100).
        centre, spread: class means at (-centre, 0) and (centre, 0), and their standard deviation (ours).
        rim: how far from its class's mean the flipped disc lies, in standard deviations; the direction, away from the
            other class, is drawn for every seed (ours: where the paper's disc lies is not known).
        disc: radius of the flipped disc (ours).
        radius: GRACE's initial radius in the drawn panels (paper: unknown; one key needs 1 to 2).
        radii: initial radii of the sweep.
        steps, learning_rate: of a value's training (released code: 100 and 1.0).
        ft_learning_rate: of fine-tuning, at most `steps` steps, until the point is right (released code: 1e-2).
        grid: points a side of the decision maps, over [-extent, extent] in both directions.
    """

    points: int = 100
    test_points: int = 1000
    flipped: int = 12
    width: int = 100
    centre: float = 2.0
    spread: float = 0.75
    rim: float = 2.0
    disc: float = 0.35
    radius: float = 1.5
    radii: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0)
    steps: int = 100
    learning_rate: float = 1.0
    ft_learning_rate: float = 1e-2
    grid: int = 121
    extent: float = 4.5

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> ToySettings:
        """From a spec; unknown or impossible values are refused by name."""
        made = build(cls, plain, "toy")
        for name in (
            "points",
            "test_points",
            "flipped",
            "width",
            "steps",
            "grid",
            "radius",
            "spread",
            "disc",
        ):
            if getattr(made, name) <= 0:
                raise SettingsError(f"toy: '{name}' is {getattr(made, name)!r}; expected a number above 0")
        if not made.radii or any(radius <= 0 for radius in made.radii):
            raise SettingsError(f"toy: 'radii' is {list(made.radii)}; expected numbers above 0")
        return made


@dataclass
class Network:
    """Weights of the three layers; `second` may be replaced, or its output overruled by a codebook."""

    first: torch.nn.Linear
    second: torch.nn.Linear
    third: torch.nn.Linear

    def hidden(self, points: Tensor) -> Tensor:
        """Input of the second layer, the query of a codebook: [b, 2] -> [b, width]."""
        return functional.relu(self.first(points))

    def logits(self, points: Tensor, overrule: Callable[[Tensor, Tensor], Tensor] | None = None) -> Tensor:
        """[b, 2] -> [b, 2]. `overrule(query, output)` gives what goes on in place of the second layer's output."""
        query = self.hidden(points)
        output = self.second(query)
        return self.third(functional.relu(overrule(query, output) if overrule else output))  # type: ignore[no-any-return]


class ToyCodebook:
    """GRACE's keys, values, radii and labels for single points (spec 1.4, corrected rules)."""

    def __init__(self, radius: float):
        self.initial = radius
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.radii: list[float] = []
        self.labels: list[int] = []

    def place(self, query: Tensor, label: int, generator: torch.Generator, width: int) -> int:
        """Add, expand, split or hit; returns the entry whose value is to be trained. query: [d]."""
        if self.keys:
            distances = (torch.stack(self.keys) - query).norm(dim=1)
            nearest = int(distances.argmin())
            distance = float(distances[nearest])
            if distance <= self.initial + self.radii[nearest]:
                if self.labels[nearest] == label:
                    self.radii[nearest] = max(self.radii[nearest], distance)
                    return nearest
                self.radii[nearest] = min(self.radii[nearest], distance / 2 - 1e-5)
                return self._append(query, label, min(self.initial, distance / 2), generator, width)
        return self._append(query, label, self.initial, generator, width)

    def _append(
        self, query: Tensor, label: int, radius: float, generator: torch.Generator, width: int
    ) -> int:
        self.keys.append(query.clone())
        self.values.append(torch.rand(width, generator=generator))
        self.radii.append(radius)
        self.labels.append(label)
        return len(self.keys) - 1

    def fires(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """(entry [b], whether the query lies in its ball [b]) of the nearest key."""
        distances = torch.cdist(queries, torch.stack(self.keys), compute_mode="donot_use_mm_for_euclid_dist")
        nearest = distances.argmin(dim=1)
        limits = torch.tensor(self.radii)[nearest]
        return nearest, distances.gather(1, nearest[:, None])[:, 0] <= limits * (1 + 1e-6) + 1e-6

    def overrule(self, query: Tensor, output: Tensor) -> Tensor:
        """The layer's output, replaced by a value where a key fires."""
        if not self.keys:
            return output
        nearest, inside = self.fires(query)
        return torch.where(inside[:, None], torch.stack(self.values)[nearest], output)


@dataclass(frozen=True)
class ToyWorld:
    """Points [n, 2] and labels [n] of every set."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    edits: tuple[Tensor, Tensor]
    unseen: tuple[Tensor, Tensor]
    disc: tuple[float, float, float]


def make_world(settings: ToySettings, generator: torch.Generator) -> ToyWorld:
    """Two normal classes; test points outside the disc; points of the disc, labelled as the other class."""
    turn = torch.pi * (torch.rand((), generator=generator) - 0.5)
    reach = settings.rim * settings.spread
    x, y, size = settings.centre + reach * float(turn.cos()), reach * float(turn.sin()), settings.disc

    def classes(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(count) % 2
        points = settings.spread * torch.randn(count, 2, generator=generator)
        points[:, 0] += settings.centre * (2.0 * labels - 1)
        return points, labels

    def in_disc(count: int) -> tuple[Tensor, Tensor]:
        angle = 2 * torch.pi * torch.rand(count, generator=generator)
        reach = size * torch.rand(count, generator=generator).sqrt()
        points = torch.stack([x + reach * angle.cos(), y + reach * angle.sin()], dim=1)
        return points, torch.zeros(count, dtype=torch.long)

    test, labels = classes(settings.test_points)
    outside = (test - torch.tensor([x, y])).norm(dim=1) > size
    return ToyWorld(
        classes(settings.points),
        (test[outside], labels[outside]),
        in_disc(settings.flipped),
        in_disc(settings.flipped),
        (x, y, size),
    )


def train_network(settings: ToySettings, world: ToyWorld, seed: int) -> Network:
    """Train the classifier on the unflipped points: Adam, all points in every step."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        width = settings.width
        network = Network(torch.nn.Linear(2, width), torch.nn.Linear(width, width), torch.nn.Linear(width, 2))
    parameters = [p for layer in (network.first, network.second, network.third) for p in layer.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    for _ in range(300):
        optimizer.zero_grad()
        functional.cross_entropy(network.logits(world.train[0]), world.train[1]).backward()
        optimizer.step()
    for parameter in parameters:
        parameter.requires_grad_(False)
    return network


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of rows whose larger logit is the label's."""
    return float((logits.argmax(dim=1) == labels).double().mean())


def edit_with_grace(
    settings: ToySettings, network: Network, world: ToyWorld, radius: float, seed: int
) -> ToyCodebook:
    """One pass over the flipped points; every error places a key or joins one, and trains its value."""
    book, generator = ToyCodebook(radius), torch.Generator().manual_seed(seed)
    for point, label in zip(*world.edits, strict=True):
        if accuracy(network.logits(point[None], book.overrule), label[None]) == 1.0:
            continue
        entry = book.place(network.hidden(point[None])[0], int(label), generator, settings.width)
        value = book.values[entry].requires_grad_(True)
        optimizer = torch.optim.Adam([value], lr=settings.learning_rate)
        for _ in range(settings.steps):
            optimizer.zero_grad()
            functional.cross_entropy(network.third(functional.relu(value))[None], label[None]).backward()
            optimizer.step()
        book.values[entry] = value.detach()
    return book


def edit_with_fine_tuning(settings: ToySettings, network: Network, world: ToyWorld) -> tuple[Network, int]:
    """One pass over the flipped points; every error moves the second layer until the point is right. (network, edits)."""
    second = torch.nn.Linear(settings.width, settings.width)
    second.load_state_dict(network.second.state_dict())
    tuned, made = Network(network.first, second, network.third), 0
    for point, label in zip(*world.edits, strict=True):
        optimizer = torch.optim.Adam([second.weight], lr=settings.ft_learning_rate)
        for step in range(settings.steps):
            logits = tuned.logits(point[None])
            if accuracy(logits, label[None]) == 1.0:
                break
            made += step == 0
            optimizer.zero_grad()
            functional.cross_entropy(logits, label[None]).backward()
            optimizer.step()
    return tuned, made


def _scores(world: ToyWorld, logits: Callable[[Tensor], Tensor]) -> dict[str, float]:
    with torch.no_grad():
        return {
            "trr": accuracy(logits(world.test[0]), world.test[1]),
            "err": accuracy(logits(world.edits[0]), world.edits[1]),
            "holdout": accuracy(logits(world.unseen[0]), world.unseen[1]),
        }


def _map(settings: ToySettings, answer: Callable[[Tensor], Tensor]) -> list[list[float]]:
    """`answer` [b] over the grid: rows from the lowest y up, columns from the lowest x."""
    line = torch.linspace(-settings.extent, settings.extent, settings.grid)
    y, x = torch.meshgrid(line, line, indexing="ij")
    with torch.no_grad():
        found = answer(torch.stack([x.reshape(-1), y.reshape(-1)], dim=1)).double()
    return [[round(float(v), 3) for v in row] for row in found.reshape(settings.grid, settings.grid)]


def _plain(points: tuple[Tensor, Tensor]) -> list[list[float]]:
    return [
        [round(float(p[0]), 5), round(float(p[1]), 5), int(label)] for p, label in zip(*points, strict=True)
    ]


def compute(settings: ToySettings, seeds: Sequence[int]) -> dict[str, Any]:
    """All numbers of the figure: scores of every seed, method and radius, and the maps of the first seed.

    Returns:
        `settings`, `seeds`, `rows` (seed, method, radius, keys, edits, trr, err, holdout) and `maps`: points [x, y, label],
        probabilities of class 1 over the grid, and where a key fires.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny matrices: more threads only cost, and may change the last bits
    try:
        rows: list[dict[str, Any]] = []
        maps: dict[str, Any] = {}
        for seed in seeds:
            world = make_world(settings, torch.Generator().manual_seed(seed))
            network = train_network(settings, world, seed)
            rows.append({"seed": seed, "method": "unedited", **_scores(world, network.logits)})
            tuned, made = edit_with_fine_tuning(settings, network, world)
            rows.append({"seed": seed, "method": "ft", "edits": made, **_scores(world, tuned.logits)})
            for radius in dict.fromkeys((settings.radius, *settings.radii)):
                book = edit_with_grace(settings, network, world, radius, seed)
                scores = _scores(world, lambda points, n=network, b=book: n.logits(points, b.overrule))  # type: ignore[misc]
                rows.append(
                    {"seed": seed, "method": "grace", "radius": radius, "keys": len(book.keys), **scores}
                )
                if not maps and radius == settings.radius:
                    maps = _maps(settings, world, network, tuned, book)
        return {"settings": asdict(settings), "seeds": list(seeds), "rows": rows, "maps": maps}
    finally:
        torch.set_num_threads(threads)


def _maps(
    settings: ToySettings, world: ToyWorld, network: Network, tuned: Network, book: ToyCodebook
) -> dict[str, Any]:
    def probability(logits: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda points: logits(points).softmax(dim=1)[:, 1]

    return {
        "disc": list(world.disc),
        "train": _plain(world.train),
        "edits": _plain(world.edits),
        "unseen": _plain(world.unseen),
        "unedited": _map(settings, probability(network.logits)),
        "grace": _map(settings, probability(lambda points: network.logits(points, book.overrule))),
        "ft": _map(settings, probability(tuned.logits)),
        "fires": _map(settings, lambda points: book.fires(network.hidden(points))[1]),
    }


def run_toy(spec: Mapping[str, Any], out: Path | str) -> Path:
    """Compute and write `toy.json` into `out`: what the subcommand and the rule `grace_toy` call.

    Args:
        spec: `seeds` (by default 0 to 4) and the settings of `ToySettings` that differ from its defaults.
        out: folder.

    Raises:
        SettingsError: an unknown or impossible setting, or no seed.
    """
    settings = ToySettings.from_dict({name: value for name, value in spec.items() if name != "seeds"})
    seeds = list(spec.get("seeds", range(5))) if isinstance(spec.get("seeds", ()), list | tuple) else []
    if not seeds:
        raise SettingsError(f"toy: seeds = {spec.get('seeds')!r:.60}; expected a list of whole numbers")
    for seed in seeds:
        check_whole(seed, "toy: one of 'seeds'", *SEEDS)
    path = Path(out) / RESULT_FILE
    write_json(path, compute(settings, seeds))
    return path
