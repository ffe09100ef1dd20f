"""GRACE along a stream with looks: the plain form against the protocol as it is, side by side in one process."""

from __future__ import annotations

from lifelong_evaluation import LAYER, SHAPES, questions
from measure import taking

EARLIER = 40  # questions whose answers the model had before: the upstream set of a look


def grace_stream(shape: str, items: int, every: int, steps: int, device: str, dtype: str) -> dict:
    """CPU seconds of a stream of so many questions with a look after `every` items, and the largest difference of its rows.

    Plain: each value trained alone through the whole network, every pair asked alone at every look, all of the network run
    for it. Fast: the protocol `lifelong` as runs have it (values trained ahead, blocks above the edited map written out, states
    below it kept, only what can have changed asked again, in batches). The random model is wrong about everything, so every
    item is edited.
    """
    from palimpsest.editors import make_editor
    from palimpsest.edits import Edit
    from palimpsest.metrics.retention import Asking
    from palimpsest.models.batching import Batching
    from palimpsest.models.families import family_of
    from palimpsest.models.loading import DTYPES, LanguageModel
    from palimpsest.models.shapes import random_network, shape_of
    from palimpsest.models.tokenizer import train_tokenizer
    from palimpsest.protocols import lifelong
    from palimpsest.protocols.checkpoints import seed_everything
    from palimpsest.protocols.lifelong_inputs import AskedProbe, LifelongStream

    whole = shape_of(SHAPES[shape])
    family = family_of(whole["family"])
    pairs = questions(items + EARLIER, "qa")
    tokenizer = train_tokenizer([" ".join(pair) for pair in pairs], 600, whole["context"], family.kind)
    edits = [
        Edit(prompt=prompt, target=answer, identifier=str(number))
        for number, (prompt, answer) in enumerate(pairs[EARLIER:])
    ]
    probes = [AskedProbe("upstream", prompt, answer) for prompt, answer in pairs[:EARLIER]]

    def run(plain: bool):
        seed_everything(0)
        model = LanguageModel(random_network(whole, tokenizer, 0), tokenizer, family, shape, not plain)
        model.network.to(device=device, dtype=DTYPES[dtype])
        editor = make_editor("grace", model, {"layer": LAYER[shape], "radius": 0.5, "steps": steps}, seed=0)
        how = {"batching": Batching(tokens=1)} if plain else {"deciding": editor.deciding}
        if not plain:
            how |= {"lowest": editor.lowest_block(), "site": editor.edited_site()}
        asking = Asking(model, "qa", **how)
        stream = LifelongStream("benchmark", 0, editor, asking, edits, probes, every, edit_always=True)
        with taking(device) as taken:
            progress = lifelong.run(stream)
        return taken, [(row["step"], row["split"], row["metric"], row["value"]) for row in progress.metrics]

    run(plain=False)  # warm up
    quick, rows = run(plain=False)
    slow, expected = run(plain=True)
    if [row[:3] for row in rows] != [row[:3] for row in expected]:
        raise SystemExit("the two forms have other rows")
    return {
        "items": items,
        "looks": 1 + -(-items // every),
        "steps": steps,
        "plain": slow.plain(items),
        "fast": quick.plain(items),
        "difference": max(abs(a[3] - b[3]) for a, b in zip(rows, expected, strict=True)),
    }
