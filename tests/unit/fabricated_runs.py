"""Run directories from a known random process, so that drawn numbers can be checked another way."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from palimpsest import results

SPLITS = {"reliability": "edit", "generality": "rephrase", "locality": "locality"}


def fabricate(
    root: Path,
    run: str,
    *,
    editor: str,
    variant: str = "default",
    title: str = "",
    dataset: str = "counterfact",
    model: str = "mini-gpt2",
    protocol: str = "consecutive",
    edits: int = 40,
    batch_size: int = 10,
    snapshots: tuple[int, ...] = (),
    seeds: tuple[int, ...] = (0, 1, 2),
    settings: dict | None = None,
    chance=lambda metric, n_edits: 0.5,
    inspect: bool = False,
    state_bytes: tuple[int, int] = (1000, 1000),
    before: tuple[float, float, float] | None = None,
) -> list[Path]:
    """Write `root/runs/{run}/seed=N`; `chance(metric, n_edits)`: success probability of a record; `before`: of the unedited."""
    spec = {
        "run": run,
        "scale": "mini",
        "protocol": protocol,
        "dataset": dataset,
        "model": model,
        "editor": editor,
        "variant": variant,
        "title": title or editor,
        "settings": settings or {},
        "edits": edits,
        "batch_size": batch_size,
        "snapshot_every": None,
        "options": {"inspect": inspect},
    }
    directories = []
    for seed in seeds:
        # The luck of a record is shared by all methods: paired differences are narrower than unpaired ones.
        luck = {
            m: np.random.default_rng([seed, k]).random((2, edits))
            for k, m in enumerate((*SPLITS, "generation"))
        }
        metrics, records, inspection = [], [], []
        for (metric, split), share in zip(SPLITS.items(), before or (), strict=False):
            key = {"run": run, "seed": seed, "step": 0, "n_edits": 0, "split": split, "metric": metric}
            values = (luck[metric][0] < share).astype(float)
            records += [{**key, "edit": f"e{i}", "order": i, "value": v} for i, v in enumerate(values)]
            metrics.append({**key, "value": float(values.mean()), "n": edits})
        for n_edits in snapshots or (edits,):
            key = {"run": run, "seed": seed, "step": -(-n_edits // batch_size), "n_edits": n_edits}
            for metric, split in SPLITS.items():
                own = np.random.default_rng([seed, n_edits, sum(map(ord, run + metric))]).random(edits)
                values = (0.7 * luck[metric][0] + 0.3 * own < chance(metric, n_edits)).astype(float)[:n_edits]
                names = {metric: values, "exact_match": values * (luck[metric][1][:n_edits] < 0.9)}
                if editor == "comeba_hk":
                    names["swap_rate"] = 0.8 * values
                names["generation_match"] = names["exact_match"] * (luck["generation"][0][:n_edits] < 0.8)
                for name, column in names.items():
                    records += [
                        {
                            **key,
                            "edit": f"e{i}",
                            "order": i,
                            "split": split,
                            "metric": name,
                            "value": float(v),
                        }
                        for i, v in enumerate(column)
                    ]
                    metrics.append(
                        {
                            **key,
                            "split": split,
                            "metric": name,
                            "value": float(column.mean()),
                            "n": len(column),
                        }
                    )
        for step, n_edits, size in (
            (1, batch_size, state_bytes[0]),
            (-(-edits // batch_size), edits, state_bytes[1]),
        ):
            if not any(row["metric"] == "state_bytes" and row["step"] == step for row in metrics):
                metrics.append(
                    {
                        "run": run,
                        "seed": seed,
                        "step": step,
                        "n_edits": n_edits,
                        "split": "edit",
                        "metric": "state_bytes",
                        "value": float(size),
                        "n": 1,
                    }
                )
        if inspect:
            inspection = inspection_rows(run, seed, edits, edits // batch_size)
        directory = root / "runs" / run / f"seed={seed}"
        results.write_metrics(directory / results.METRICS_FILE, metrics)
        results.write_records(directory / results.RECORDS_FILE, records)
        results.write_inspection(directory / results.INSPECTION_FILE, inspection)
        info = {
            "spec": spec,
            "seed": seed,
            "status": "complete",
            "edits_requested": edits,
            "edits_applied": edits,
            "edits_failed": [],
            "state_bytes": state_bytes[1],
        }
        results.write_run(directory / results.RUN_FILE, info)
        directories.append(directory)
    return directories


def inspection_rows(run: str, seed: int, edits: int, step: int) -> list[dict]:
    """Subject tokens stand out (more in edit prompts), others do not; nothing passes its ceiling."""
    generator = np.random.default_rng([seed, 99])
    rows = []
    centres = {"edit": 0.93, "rephrase": 0.85, "locality": 0.7, "unedited": 0.88}
    for split, centre in centres.items():
        for number in range(edits):
            tokens = int(generator.integers(5, 13))
            ceiling = (tokens - 1) / tokens**0.5
            subject = ceiling * float(np.clip(generator.normal(centre, 0.06), 0.05, 1))
            other = ceiling * float(np.clip(generator.normal(0.25, 0.1), 0.0, 0.9))
            for layer in (0, 1, 2):
                rows.append(
                    {
                        "run": run,
                        "seed": seed,
                        "step": step,
                        "edit": f"e{number}",
                        "split": split,
                        "layer": layer,
                        "tokens": tokens,
                        "z_subject": None if split == "locality" else subject,
                        "z_max": max(subject, other),
                        "z_max_other": None if split == "locality" else other,
                        "alpha": 1.7,
                        "ceiling": ceiling,
                        "swapped_subject": None if split == "locality" else subject >= 1.7,
                        "swapped_any": max(subject, other) >= 1.7,
                    }
                )
    return rows
