"""Run directories of the lifelong protocol from a known process: curves, keys, radii and times that are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from palimpsest import results

SCORES = {"qa": "token_f1", "classification": "accuracy", "generation": "perplexity"}
START = {  # before editing: upstream, edits, hold-out, accurates
    "qa": (0.72, 0.31, 0.30, None),
    "classification": (0.95, 0.52, None, None),
    "generation": (16.0, 8.7, None, 9.5),
}
# How far a method has gone at the end, from the unedited values: factors on TRR and ERR.
END = {
    "grace": {"qa": (0.70, 0.96), "classification": (0.93, 0.97), "generation": (16.1, 2.0)},
    "grace:published": {"qa": (0.69, 0.93), "classification": (0.90, 0.95), "generation": (16.2, 2.6)},
    "ft": {"qa": (0.50, 0.80), "classification": (0.55, 0.60), "generation": (950.0, 28.0)},
    "ft_ewc": {"qa": (0.53, 0.80), "classification": (0.66, 0.55), "generation": (1100.0, 30.0)},
    "ft_retrain": {"qa": (0.30, 0.98), "classification": (0.67, 0.83), "generation": (1800.0, 35.0)},
    "defer": {"qa": (0.71, 0.31), "classification": (0.40, 0.45), "generation": (420.0, 133.0)},
    "memory": {"qa": (0.10, 0.12), "classification": (0.20, 0.20), "generation": (60.0, 79.0)},
    "rome": {"generation": (30.0, 103.0)},
}
SECONDS = {"ft": 0.03, "ft_ewc": 0.04, "ft_retrain": 1.2, "defer": 0.02, "memory": 0.03, "rome": 0.5}
PLACES = {
    "qa": ("mini-t5", "world-qa"),
    "classification": ("mini-bert", "world-labels"),
    "generation": ("mini-gpt2-bio", "world-biographies"),
}
TITLES = {
    "grace": "GRACE (corrected)",
    "grace:published": "GRACE (as published)",
    "ft": "FT",
    "ft_ewc": "FT+EWC",
    "ft_retrain": "FT+Retrain",
    "defer": "Defer",
    "memory": "Memory",
    "rome": "ROME",
}


def fabricate_stream(
    root: Path,
    run: str,
    *,
    method: str = "grace",
    task: str = "qa",
    items: int = 300,
    every: int = 50,
    seeds: tuple[int, ...] = (0, 1, 2),
    settings: dict | None = None,
    end: tuple[float, float] | None = None,
    keys_share: float = 0.4,
    checks: dict | None = None,
    place: tuple[str, str] | None = None,
    wrong: float | None = None,
) -> list[Path]:
    """Write `root/runs/{run}/seed=N` of one stream; `end`: TRR and ERR after it, else those of the method; `wrong`: the
    share of items that are edited.
    """
    editor, _, variant = method.partition(":")
    model, dataset = place or PLACES[task]
    trr, err = end or END[method][task]
    directories = []
    for seed in seeds:
        generator = np.random.default_rng([seed, sum(map(ord, run))])
        content = _Rows({"run": run, "seed": seed}, task, generator)
        wrong = wrong or (0.48 if task == "classification" else 1.0)
        steps = sorted({0, *range(every, items + 1, every), items})
        history: dict = {"codebook": [], "edit_seconds": [], "forward": []}
        spec_start = START[task]
        for step in steps:
            share = step / items
            n_edits = round(
                step * wrong * (1.0 if editor == "grace" else 1.1 if task == "classification" else 1.0)
            )
            content.at(step, n_edits)
            content.ends = step in (0, items)  # probes have records at the first and the last look only
            content.score("upstream", spec_start[0], trr, share**0.7, 200)
            if step == 0:
                content.score("stream", spec_start[1], err, 0.0, items)
            else:
                content.score("edit", err, err, share, n_edits)
            if spec_start[2] is not None:
                gain = {"grace": 0.35, "ft": 0.2, "ft_retrain": 0.3}.get(editor, 0.0)
                content.score("holdout", spec_start[2], spec_start[2] + gain, share**0.5, 150)
            if spec_start[3] is not None:
                content.score(
                    "accurate", spec_start[3], spec_start[3] * (1.05 if editor == "grace" else 8), share, 100
                )
            content.plain("items_seen", step, n_edits)
            content.plain("edits_made", n_edits, n_edits)
            if step:
                es = {"qa": 0.98, "classification": 0.99, "generation": 1.8}[task]
                content.plain(
                    "edit_success",
                    es * (0.6 if editor in ("defer", "memory") and task != "generation" else 1),
                    every,
                )
            if editor == "grace":
                keys = round(keys_share * n_edits**0.93)
                content.plain("keys", keys, n_edits)
                if keys:
                    radii = np.quantile(
                        generator.gamma(4 / (1 + share), 0.3, keys), (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)
                    )
                    events = {"init": 1, "add": int(keys * 0.8) - 1, "expand": int((n_edits - keys) * 0.6),
                              "hit": int((n_edits - keys) * 0.4), "split": keys - int(keys * 0.8), "overwrite": 0}  # fmt: skip
                    history["codebook"].append(
                        {"step": step, "n_edits": n_edits, "keys": keys, "radii": [round(float(q), 5) for q in radii],
                         "events": events}
                    )  # fmt: skip
                    history["forward"].append(
                        {
                            "step": step,
                            "n_edits": n_edits,
                            "keys": keys,
                            "seconds": 0.0101 + 1e-6 * keys,
                            "seconds_unedited": 0.0100,
                        }
                    )
        content.es_records(n_edits, {"grace": 0.99, "memory": 0.7}.get(editor, 0.97))
        middle = SECONDS.get(editor, 0.08)
        history["examples"] = [
            {"split": split, "prompt": "who made " + "the very " * 9 + split, "answer": "Ada",
             "before": "Ben", "after": "Ada" if split == "edit" else "Ben"}
            for split in ("edit", "upstream")
        ]  # fmt: skip
        if editor == "grace":
            history["shared_keys"] = [
                {"key": 4, "radius": 2.5, "answer": "Ada", "edits": 7, "prompts": [f"who made {i}" for i in range(6)]},
                {"key": 1, "radius": 1.25, "answer": "Ben", "edits": 2, "prompts": ["who sold it", "it was sold by"]},
            ]  # fmt: skip
        history["edit_seconds"] = [round(float(t), 5) for t in generator.gamma(20, middle / 20, n_edits)]
        directory = root / "runs" / run / f"seed={seed}"
        results.write_metrics(directory / results.METRICS_FILE, content.metrics)
        results.write_records(directory / results.RECORDS_FILE, content.records)
        results.write_inspection(directory / results.INSPECTION_FILE, [])
        results.write_run(
            directory / results.RUN_FILE,
            {
                "spec": {
                    "run": run, "scale": "mini", "protocol": "lifelong", "dataset": dataset, "model": model,
                    "editor": editor, "variant": variant or "default", "title": TITLES.get(method, editor),
                    "settings": settings or {}, "edits": items, "batch_size": 1, "snapshot_every": every,
                    "options": {"task": task, "inspect": False},
                },
                "seed": seed, "status": "complete", "edits_requested": items, "edits_applied": n_edits,
                "edits_failed": [], "history": history, "checks": checks or {},
                "key_distances": {"ratio": 0.3 + 0.1 * seed, "questions": 90} if task == "qa" else None,
            },
        )  # fmt: skip
        directories.append(directory)
    return directories


class _Rows:
    """Metric and record rows of one run."""

    def __init__(self, base: dict, task: str, generator: np.random.Generator):
        self.base, self.task, self.generator = base, task, generator
        self.ends = False
        self.metrics: list[dict] = []
        self.records: list[dict] = []
        self.key: dict = {}

    def at(self, step: int, n_edits: int) -> None:
        self.key = {**self.base, "step": step, "n_edits": n_edits}

    def score(self, split: str, start: float, end: float, share: float, n: int) -> None:
        """A score that goes from start to end; its records scatter around it."""
        metric = SCORES[self.task] if split != "accurate" else "perplexity"
        middle = start + (end - start) * share
        noise = 0.05 * self.generator.standard_normal(n)
        values = (
            np.maximum(middle * (1 + noise), 0) if metric == "perplexity" else np.clip(middle + noise, 0, 1)
        )
        self.metrics.append(
            {**self.key, "split": split, "metric": metric, "value": float(values.mean()), "n": n}
        )
        if metric == "token_f1":  # other definitions are stricter
            self.metrics += [
                {**self.key, "split": split, "metric": name, "value": times * float(values.mean()), "n": n}
                for name, times in (("squad_f1", 0.9), ("exact_match", 0.8))
            ]
        if self.ends or split == "edit":
            self.records += [
                {
                    **self.key,
                    "edit": f"{split}-{i}",
                    "order": i,
                    "split": split,
                    "metric": metric,
                    "value": float(v),
                }
                for i, v in enumerate(values)
            ]

    def plain(self, metric: str, value: float, n: int) -> None:
        self.metrics.append(
            {**self.key, "split": "stream", "metric": metric, "value": float(value), "n": max(n, 1)}
        )

    def es_records(self, n_edits: int, level: float) -> None:
        """ES of every edit, noted when it was made."""
        self.records += [
            {**self.base, "step": i + 1, "n_edits": i + 1, "edit": f"e{i}", "order": i, "split": "stream",
             "metric": "edit_success", "value": float(self.generator.random() < level)}
            for i in range(n_edits)
        ]  # fmt: skip
