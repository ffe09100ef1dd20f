"""Growth with batch and stream, statistics, solves and probes."""

from __future__ import annotations

from edit_pieces import difference
from flops import covariance_fast, covariance_plain, sizes, solve
from measure import product_rate, taking
from shapes import SHAPES, blocks_and_layers, contexts_of, edits, random_model, sentences, statistics

MINI = {"steps": 20, "learning_rate_ratio": 0.025, "clamp": 0.75, "lam_ratio": 0.5, "stop_loss": 0.0}


def batch_growth(name: str, count: int, device: str, dtype: str) -> dict:
    """Seconds per edit of one batch of so many, mini shape, on a factor that is there."""
    from palimpsest.editors import make_editor

    model, (_, layers) = random_model("mini", device, dtype), blocks_and_layers("mini", device)
    settings = MINI | {"layers": list(layers), "context_texts": contexts_of("mini")}
    known, batch = statistics(model, layers), edits(count)
    editor = make_editor(name, model, settings, known)
    for layer in layers:
        assert editor.covariance(layer).factor is not None
    warming = make_editor(name, model, settings | {"steps": 2}, known)
    warming.edit(edits(2))
    warming.remove()  # two editors cannot write one matrix
    with taking(device) as taken:
        report = editor.edit(batch)
    return {"edits": count, "failed": len(report.failed), "fast": taken.plain(count)}


def stream_growth(name: str, made: int, device: str, dtype: str, count: int = 30) -> dict:
    """Seconds of the next edits after so many: a state of that size is filled with random keys, not edited into being."""
    import torch

    from palimpsest.editors import make_editor
    from palimpsest.editors.shared.key_system import Past

    model, (_, layers) = random_model("mini", device, dtype), blocks_and_layers("mini", device)
    # the same edits after any number of others: texts of other lengths would be counted as growth
    generator, batch = torch.Generator().manual_seed(0), edits(2 + count)[2:]
    if name == "grace":
        editor = make_editor(
            name,
            model,
            {"layer": round(0.6 * model.n_blocks), "site": "mlp_in", "radius": 1e-3, "steps": 100},
        )
        book = editor.codebook
        keys = 5 * torch.randn(made, editor.adapter.key_width, generator=generator)
        values = torch.rand(made, editor.adapter.value_width, generator=generator)
        entries = [{"label": [i], "text": "", "start": 1e-3, "edits": [str(i)]} for i in range(made)]
        tensors = {"keys": keys, "values": values, "radii": torch.full((made,), 1e-3), "queries": keys}
        book.load(
            {key: tensor.to(device) for key, tensor in tensors.items()}, {"entries": entries, "actions": {}}
        )
        editor.adapter.attach()
    else:
        settings = MINI | {"layers": list(layers), "context_texts": contexts_of("mini")}
        editor = make_editor(name, model, settings, statistics(model, layers))
        for layer in layers:
            assert editor.covariance(layer).factor is not None
            if name == "comeba_hk":  # as after `made` edits in batches of 10
                past, system = Past(), editor.system(layer)
                for start in range(0, made, 250):
                    keys = torch.randn(min(250, made - start), model.inner_width, generator=generator).to(
                        device
                    )
                    _, past = system.solve(keys, torch.zeros(len(keys), model.width, device=device), past)
                editor.remembered[layer] = past
        editor.edit(edits(2))
    with taking(device) as taken:
        for start in range(0, count, 10):
            if name == "grace":
                editor.prepare(batch[start : start + 10])
                for edit in batch[start : start + 10]:
                    editor.edit([edit])
            else:
                editor.edit(batch[start : start + 10])
    return {
        "made_before": made,
        "edits": count,
        "fast": taken.plain(count),
        "state_bytes": editor.state_bytes(),
    }


def covariance(shape: str, tokens: int, device: str, dtype: str) -> dict:
    """Tokens per second over all edited layers. Plain: a pass for each layer, and both halves of the products.

    Both forms end in the last wanted block, so the model has the blocks up to there, on any machine: nothing is extrapolated.
    """
    from palimpsest.statistics.covariance import CovarianceSettings, collect_covariance

    whole = SHAPES[shape]
    layers = (whole.get("cpu_statistics") if device == "cpu" else None) or whole["layers"]
    model = random_model(shape, device, dtype, blocks=layers[-1] + 1)
    corpus, rate = sentences(tokens // 8), product_rate(device, dtype)
    context = min(model.context, 512)
    common = {"tokens": tokens, "context": context, "batch_tokens": min(tokens, 2048)}
    collect_covariance(model, corpus[:40], CovarianceSettings(layers=layers[:1], tokens=64), progress=False)
    plain = {}
    with taking(device) as slow:
        for layer in layers:
            settings = CovarianceSettings(layers=(layer,), symmetric=False, **common)
            plain |= collect_covariance(model, corpus, settings, progress=False).matrices
    with taking(device) as quick:
        found = collect_covariance(model, corpus, CovarianceSettings(layers=layers, **common), progress=False)
    size, seen = sizes(whole, whole["blocks"], layers[-1]), found.tokens
    work = {
        "plain": covariance_plain(size, layers, seen, context),
        "fast": covariance_fast(size, layers, seen, context),
    }
    return {
        "tokens": seen,
        "blocks": whole["blocks"],
        "layers": len(layers),
        "plain": slow.plain(),
        "fast": quick.plain(),
        "plain_tokens_per_second": seen / slow.seconds,
        "fast_tokens_per_second": seen / quick.seconds,
        "flops": work,
        "rate": rate,
        "share_plain": work["plain"] / slow.seconds / rate,
        "share_fast": work["fast"] / quick.seconds / rate,
        "difference": max(difference(found.matrices[layer], plain[layer]) for layer in layers),
    }


def solving(width: int, batch: int, device: str, lu: bool) -> dict:
    """One layer and batch in float64: LU as released, Cholesky, and Woodbury on the factor of C_0."""
    import torch

    from palimpsest.editors.shared.factors import FactoredCovariance
    from palimpsest.editors.shared.key_system import KeySystem

    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(64, width, generator=generator)
    matrix = sample.T @ sample / 64 + torch.diag(0.1 + torch.rand(width, generator=generator))
    known = FactoredCovariance(matrix.to(device))
    keys, residuals = (
        torch.randn(batch, width, generator=generator),
        torch.randn(batch, 64, generator=generator),
    )
    keys, residuals = keys.to(device), residuals.to(device)
    updates, seconds, lam = {}, {}, 15000.0
    with taking(device) as taken:
        assert known.factor is not None
    seconds["factor_of_c0"] = taken.seconds
    for solver in ("woodbury", "cholesky"):
        system = KeySystem(known, lam, solver=solver)
        with taking(device) as taken:
            updates[solver], _ = system.solve(keys, residuals)
        seconds[solver] = taken.seconds
    if lu:
        with taking(device) as taken:
            wide = keys.to(torch.float64)
            whole = lam * known.wide() + wide.T @ wide
            updates["lu"] = (torch.linalg.solve(whole, wide.T) @ residuals.to(wide)).T
        seconds["lu"] = taken.seconds
    return {
        "width": width,
        "batch": batch,
        "seconds": seconds,
        "flops": {solver: solve(width, batch, solver) for solver in ("lu", "cholesky", "woodbury")},
        "rate_float64": product_rate(device, "float64"),
        "differences": {name: difference(update, updates["cholesky"]) for name, update in updates.items()},
    }


def probes(shape: str, count: int, plain_count: int, device: str, dtype: str) -> dict:
    """Teacher-forced probes per second: one row with all its logits at a time, against padded batches and read places."""
    import torch

    from palimpsest.metrics.answers import predict_answers

    model, (blocks, _) = random_model(shape, device, dtype), blocks_and_layers(shape, device)
    plain_models = [random_model(shape, device, dtype, lean=False)]
    pairs = [(edit.prompt, edit.target) for edit in edits(count)]
    said = []
    predict_answers(model, pairs[:2])

    @torch.no_grad()
    def one(prompt: str, answer: str) -> tuple[int, ...]:
        ids = model.tokenizer(f"{prompt} {answer}", return_tensors="pt")["input_ids"].to(device)
        start = len(model.tokenizer(prompt)["input_ids"])
        logits = plain_models[0].network(input_ids=ids).logits
        return tuple(logits[0, start - 1 : -1].argmax(dim=1).tolist())

    with taking(device) as slow:
        said = [one(prompt, answer) for prompt, answer in pairs[:plain_count]]
    plain_models.clear()  # not in the other form's peak
    with taking(device) as quick:
        found = predict_answers(model, pairs)
    same = [answer.predicted for answer in found[:plain_count]] == said
    return {
        "probes": count,
        "plain_probes": plain_count,
        "blocks": blocks,
        "plain": slow.plain(plain_count),
        "fast": quick.plain(count),
        "plain_per_second": plain_count / slow.seconds,
        "fast_per_second": count / quick.seconds,
        "same_answers": same,
    }
