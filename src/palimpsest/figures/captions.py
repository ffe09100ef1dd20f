"""The words under figures and tables: what is shown, at which scale, of how many, and how sure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from palimpsest.figures.read import Run
from palimpsest.files import read_json

_SCALES = {
    "smoke": "Smoke scale: a few edits on barely trained models; the numbers mean nothing.",
    "mini": "Mini scale: models trained here on generated worlds, not the paper's models or data.",
    "mini-lifelong": "Mini scale on real records: ZsRE and WikiBio through models trained here, court cases through MiniLM.",
    "mini-counterfact": "Mini scale on real CounterFact records: models trained here on its true facts.",
    "mini-fever": "Mini scale on real FEVER claims: a classifier trained here on the real file.",
    "mini-zsre": "Mini scale on real ZsRE records: models trained here on the real file.",
    "rehearsal": "Rehearsal: small random models in the shapes of the paper's; the numbers mean nothing.",
    "small": "Small scale: public models of about 100 M parameters on real data.",
    "paper": "Paper scale: the paper's models, data and sizes.",
}
# How the papers call what a scale's file calls so.
_PRINTED_DATASETS = {"zsre": "ZsRE", "counterfact": "CounterFact"}
# How the scale's file calls its data sets (`title`), while one figure or report is made.
_TITLES: ContextVar[Mapping[str, str] | None] = ContextVar("titles", default=None)
_METRICS = (
    "Reliability, generality and locality are teacher-forced token accuracies on edit prompts, "
    "rephrasings and locality prompts (locality: agreement with the unedited model)."
)


def scale_words(scale: str | None) -> str:
    """One sentence about what the numbers were measured on."""
    return _SCALES.get(scale or "", f"Scale: {scale}." if scale else "")


@contextmanager
def naming_datasets(titles: Mapping[str, str] | None) -> Iterator[None]:
    """Within the block, data sets are written as `titles` says (name -> title)."""
    token = _TITLES.set(titles)
    try:
        yield
    finally:
        _TITLES.reset(token)


def dataset_title(name: str) -> str:
    """How a data set is written in figures: the `title` in the scale's file, or its name."""
    return (_TITLES.get() or {}).get(name, name)


def printed_dataset(name: str, published: dict[str, Any]) -> str | None:
    """The paper's name of one of our data sets."""
    names: dict[str, str] = published.get("datasets") or _PRINTED_DATASETS
    return names.get(name, names.get(name.rsplit("-", 1)[-1]))


def gate_failures(paths: Iterable[str | Path]) -> list[str]:
    """Reasons of every gate file that says 'fail' (empty: all models passed)."""
    reasons = []
    for path in paths:
        gate = read_json(path)
        if gate.get("verdict") == "fail":
            said = "; ".join(gate.get("reasons") or ["no reason given"])
            reasons.append(f"{Path(path).parent.name} ({Path(path).stem.removeprefix('gate-')}): {said}")
    return reasons


def stamp_text(spec: dict[str, Any]) -> str:
    """What is written across the figure, if anything."""
    wanted = (spec.get("options") or {}).get("stamp", "auto")
    if wanted != "auto":
        return str(wanted or "")
    return "model fails its gate" if gate_failures(spec.get("gates") or ()) else ""


def counts(runs: Sequence[Run]) -> str:
    """Models, data sets, numbers of edits, batch sizes and seeds of the runs shown."""
    models = _list({run.spec["model"] for run in runs})
    datasets = _list({dataset_title(run.spec["dataset"]) for run in runs})
    edits = _list({_plain(run.info.get("edits_requested") or run.spec.get("edits")) for run in runs})
    batches = _list({_plain(run.spec.get("batch_size")) for run in runs})
    protocols = _list({run.spec["protocol"].replace("_", " ") for run in runs})
    failed = sum(len(run.info.get("edits_failed") or ()) for run in runs)
    words = (
        f"{models} on {datasets}; protocol {protocols}; {edits} edits a run in batches of {batches}; "
        f"{seeds(runs)}."
    )
    if failed:
        words += f" {failed} edits failed over all runs (recorded in run.json)."
    return words


def seeds(runs: Sequence[Run]) -> str:
    """How many seeds, which, and what was run with fewer."""
    of_method: dict[
        tuple[str, str, str], set[int]
    ] = {}  # by data set too: one may be asked with fewer seeds than another
    for run in runs:
        title = str(run.spec.get("title") or run.spec["editor"])
        of_method.setdefault((run.spec["model"], title, run.spec["dataset"]), set()).add(run.seed)
    sizes = [len(own) for own in of_method.values()]
    most, every = max(sizes, default=0), sorted({run.seed for run in runs})
    others = len({tuple(sorted(own)) for own in of_method.values() if len(own) == most}) > 1
    which = f"of {', '.join(map(str, every))}, not the same for all" if others else ", ".join(map(str, every))
    words = f"{most} seed{'s' if most != 1 else ''} ({which})"
    if not sizes or min(sizes) == most:
        return words
    few = {(model, title) for (model, title, _), own in of_method.items() if len(own) < most}
    full = {(model, title) for (model, title, _), own in of_method.items() if len(own) == most}
    models = {model for model, _ in few} - {model for model, _ in full}
    titles = {title for model, title in few if model not in models} - {title for _, title in full}
    rest = sorted(
        f"{title} on {model}" for model, title in few if model not in models and title not in titles
    )
    return f"{words}; fewer (at least {min(sizes)}) for {_list([*sorted(models), *sorted(titles), *rest])}"


def several_seeds(runs: Sequence[Run]) -> bool:
    """Whether some run was made with more than one seed: only then there is a spread over seeds to show."""
    seeds_of: dict[str, set[int]] = {}
    for run in runs:
        seeds_of.setdefault(run.directory.parent.name, set()).add(run.seed)
    return any(len(own) > 1 for own in seeds_of.values())


def spread(runs: Sequence[Run]) -> str:
    """What stands behind the sign ± in a table."""
    return "Mean ± standard deviation over seeds" if several_seeds(runs) else "One seed"


def trained_once(runs: Sequence[Run]) -> str:
    """Learned editors are trained once for a model and a data set: their seeds vary the edits alone."""
    learned = sorted({run.spec["editor"] for run in runs} & {"mend", "serac"})
    if not learned:
        return ""
    names = " and ".join(name.upper() for name in learned)
    sizes = {int(run.settings.get("k_train", 1)) for run in runs if run.spec["editor"] == "mend"} - {1}
    batches = f" MEND trained on batches: of {_list(map(str, sizes))} edits." if sizes else ""
    return (
        f"{names}: one training for each model and data set, on other facts; seeds vary the edits.{batches}"
    )


def measured_radii(runs: Sequence[Run]) -> str:
    """LU's radius is measured in each run, on other prompts where a run has another number of edits."""
    own = [run for run in runs if run.spec["editor"] == "lu" and run.settings.get("radius_ratio") is not None]
    return (
        "LU's radius is measured anew in each run, on prompts that the run does not edit, and so differs between runs of "
        "different numbers of edits."
        if own
        else ""
    )


def alpha_words(runs: Sequence[Run]) -> str:
    """How COMEBA-HK's threshold moves (its Eq. 18), as far as the runs shown let it."""
    hooked = [run for run in runs if run.spec["editor"] == "comeba_hk" and run.settings.get("hooks", True)]
    starts = {f"{run.settings['alpha_z']:g}" for run in hooked if "alpha_z" in run.settings}
    if not starts:
        return ""
    start = f"({starts.pop()})" if len(starts) == 1 else "(of each line)"
    words = (
        f"α starts at α₀ {start} and is lowered after every batch, for each hooked layer, to the smallest of the edit "
        "prompts' largest z-scores, as the unedited model's pass shows them at that moment"
    )
    return words + (
        "; fixed: it stays at α₀." if any(run.settings.get("fixed_alpha") for run in hooked) else "."
    )


def intervals(level: float = 0.95, band: str = "Bands") -> str:
    """How the spread is shown."""
    return f"{band}: {100 * level:g} % bootstrap interval of the mean over seeds; records are resampled jointly for all seeds."


def blanks(groups: Iterable[tuple[str, Iterable[Sequence[str]]]]) -> str:
    """What an empty cell of a table means; empty where the table has none."""
    empty = any("" in row for _, rows in groups for row in rows)
    return "Blank: not defined for this data set or row." if empty else ""


def caption(spec: dict[str, Any], *parts: str, metrics: bool = True) -> str:
    """The whole caption as markdown: title, scale, what is shown, notes, stamp."""
    options = spec.get("options") or {}
    item = f"{spec['item']}. " if spec.get("item") else ""
    sentences = [
        f"**{item}{spec.get('title', spec.get('name', ''))}.**",
        scale_words(spec.get("scale")),
        *parts,
    ]
    if metrics:
        sentences.append(_METRICS)
    if options.get("note"):
        sentences.append(str(options["note"]))
    failures = gate_failures(spec.get("gates") or ())
    if failures:
        sentences.append("The model gate says *fail*: " + " | ".join(failures) + ".")
    return " ".join(sentence.strip() for sentence in sentences if sentence) + "\n"


def _plain(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _list(values: Iterable[str]) -> str:
    ordered = sorted(set(values), key=lambda text: (len(text), text))
    return ordered[0] if len(ordered) == 1 else ", ".join(ordered[:-1]) + " and " + ordered[-1]
