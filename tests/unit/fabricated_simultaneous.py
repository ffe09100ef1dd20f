"""Runs of simultaneous edits and trainings of learned editors from a known random process."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from palimpsest import results

IN_SCOPE = ("edit", "rephrase")
OUTSIDE = ("near", "far")


def fabricate_batches(
    root: Path,
    run: str,
    *,
    method: str,
    title: str = "",
    model: str = "mini-gpt2",
    dataset: str = "zsre",
    sizes: tuple[int, ...] = (1, 10, 40),
    draws: int = 8,
    edits: int = 80,
    seeds: tuple[int, ...] = (0, 1, 2),
    success=lambda split, k: 0.9,
    changed=lambda split, k: 0.1,
    drift: bool = False,
    gate: bool = False,
    seconds: float = 0.1,
    bytes_of=lambda k: 1000.0,
    perplexity: float | None = None,
) -> list[Path]:
    """Write `root/runs/{run}/seed=N`: chances of success in scope and of a changed answer outside, by split and k."""
    editor, _, variant = method.partition(":")
    spec = {
        "run": run, "scale": "mini", "protocol": "simultaneous", "dataset": dataset, "model": model, "editor": editor,
        "variant": variant or "default", "title": title or method, "settings": {}, "edits": edits, "batch_size": sizes[0],
        "snapshot_every": None, "options": {"batch_sizes": list(sizes), "draws": draws},
    }  # fmt: skip
    directories = []
    for seed in seeds:
        metrics, records = [], []
        for step, k in ((0, 0), *((number, k) for number, k in enumerate(sizes, start=1))):
            count = edits if k == 0 else min(edits, draws * k)
            base = {"run": run, "seed": seed, "step": step, "n_edits": k}
            found = _values(run, seed, k, count, success, changed, drift, gate)
            for (split, metric), values in found.items():
                metrics.append(
                    {**base, "split": split, "metric": metric, "value": float(values.mean()), "n": count}
                )
                records += [
                    {
                        **base,
                        "edit": f"e{n}",
                        "order": n,
                        "split": split,
                        "metric": metric,
                        "value": float(value),
                    }
                    for n, value in enumerate(values)
                ]
            if k and perplexity is not None:
                rise = {"split": "outside", "metric": "perplexity_rise", "value": perplexity + seed, "n": 1}
                metrics.append({**base, **rise})
            if k:
                metrics.append(
                    {**base, "split": "edit", "metric": "state_bytes", "value": bytes_of(k), "n": 1}
                )
        folder = root / "runs" / run / f"seed={seed}"
        results.write_metrics(folder / results.METRICS_FILE, metrics)
        results.write_records(folder / results.RECORDS_FILE, records)
        results.write_inspection(folder / results.INSPECTION_FILE, [])
        done = {
            "spec": spec, "seed": seed, "status": "complete", "edits_requested": edits, "edits_applied": edits,
            "edits_failed": [], "history": {"edit_seconds": {str(k): [seconds, 3 * seconds, seconds] for k in sizes}},
        }  # fmt: skip
        results.write_run(folder / results.RUN_FILE, done)
        directories.append(folder)
    return directories


def _values(run, seed, k, count, success, changed, drift, gate) -> dict:
    draw = np.random.default_rng([seed, k, sum(map(ord, run))])
    found = {}
    # Before any edit (k = 0) a model says the new answer now and then; nothing outside has a row.
    for split in IN_SCOPE:
        chance = success(split, k) if k else 0.05
        found[split, "edit_success"] = (draw.random(count) < chance).astype(float)
    found["in_scope", "edit_success"] = np.mean([found[split, "edit_success"] for split in IN_SCOPE], axis=0)
    found["in_scope", "flip_success"] = found["in_scope", "edit_success"]
    if k:
        for split in OUTSIDE:
            found[split, "drawdown"] = (draw.random(count) < changed(split, k)).astype(float)
        found["outside", "drawdown"] = np.mean([found[split, "drawdown"] for split in OUTSIDE], axis=0)
        found["outside", "accuracy_drop"] = 0.5 * found["outside", "drawdown"]
        found["outside", "right_before"] = np.full(count, 0.5)
        if drift:
            for split in (*OUTSIDE, "outside"):
                found[split, "drift"] = draw.exponential(2 * changed("near", k), count)
        if gate:
            for split, chance in (("in_scope", success("edit", k)), ("outside", changed("near", k))):
                found[split, "swap_rate"] = (draw.random(count) < chance).astype(float)
    return found


def fabricate_training(
    root: Path,
    name: str,
    *,
    steps: int = 1000,
    every: int = 100,
    best: int = 700,
    level: float = 1.0,
    dropped: int = 0,
) -> Path:
    """Write training.csv and trained.json of one training; return the former."""
    folder = root / "editors" / name / "seed=0"
    folder.mkdir(parents=True)
    draw = np.random.default_rng(sum(map(ord, name)))
    lines = ["step,split,loss,value"]
    for step in range(50, steps + 1, 50):
        lines.append(f"{step},train,total,{level * (0.1 + np.exp(-step / 300) + 0.05 * draw.random()):.6g}")
        lines.append(f"{step},train,dropped steps,{dropped}")
        if step % every == 0:
            loss = level * (0.12 + np.exp(-step / 300) + (0.02 if step > best else 0.0))
            lines.append(f"{step},valid,total,{loss:.6g}")
            lines.append(f"{step},valid,edit success,{1 - np.exp(-step / 300):.6g}")
    (folder / "training.csv").write_text("\n".join(lines) + "\n")
    (folder / "trained.json").write_text(json.dumps({"steps": steps, "best_step": best, "seed": 0}))
    return folder / "training.csv"
