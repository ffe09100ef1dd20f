"""Words of `--help`: which keys the SPEC of each subcommand has, where the code lists them, and an example of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Part:
    """Keys that belong together, such as those of one kind of source.

    Attributes:
        title: which case they are for.
        read: where they are listed, "module:NAME": settings dataclasses, or constants (sets, tuples, dicts with defaults).
        words: explanations that come before those of the docstrings.
        further: keys that stand in none of these.
        without: keys of the lists that are not for users.
        must: keys that must be given; those of a dataclass without a default are found.
        must_read: constants that list such keys.
        explained_by: further dataclasses whose docstrings explain the keys.
    """

    title: str
    read: tuple[str, ...] = ()
    words: Mapping[str, str] = field(default_factory=dict)
    further: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    must: tuple[str, ...] = ()
    must_read: tuple[str, ...] = ()
    explained_by: tuple[str, ...] = ()


# Where records come from; docstrings only say that it is everywhere the same.
FILES = {
    "reader": "the upstream form: counterfact, zsre, fever, evidence, conversations or passages",
    "file": "the records: an absolute path, or one under PALIMPSEST_DATA; plain or gzipped",
    "hub": "instead of file: {id, revision (40 digits), file or split, config}",
    "schema": "form of the records, where it is not to be recognised (an unknown name is answered with the known ones)",
    "sha256": "checksum that the file must have",
    "targets": "companion file of the reduced ZsRE form",
    "bad_records": "refuse (when left out) or skip malformed records",
}
# Said wherever a key of this name has no words of its own.
WORDS = FILES | {
    "seed": "everything random follows from it",
    "limit": "so many records at most",
    "implied": "companion of the structured ZsRE form: questions that an edit implies",
    "true_false": "companion of the structured ZsRE form: statements that are true or false",
    "device": "cpu (when left out), cuda, cuda:N or auto",
    "dtype": "float32 (when left out), float16 or bfloat16",
    "name": "how it is called in messages and results",
    "title": "how figures and captions call it",
    "family": "gpt2, gptj, llama, t5 or bert",
    "width": "width of the states",
    "blocks": "number of blocks",
    "heads": "attention heads; they divide the width",
    "inner": "width inside an MLP; 4 x width when left out",
    "rotary": "rotated dimensions of a head, for gptj",
    "context": "tokens read at most",
    "dropout": "share that is dropped in training",
    "initial_range": "spread of the random weights",
    "decoder_blocks": "t5: blocks of the decoder; as many as the encoder's when left out",
    "gated": "t5: gated feed-forward; true when left out",
    "labels": "bert: the classes, or how many; those of the source when left out",
    "vocabulary": "tokens of the tokenizer at most",
}
EDITS = FILES | {"reader": "counterfact or zsre", "text": "the background: keys as for text alone"}
CLAIMS = {
    "reader": "fever or evidence",
    "held_out": "share of the rephrasings that is not read; .1 when left out",
    "seed": "of what is held out; 0 when left out",
}
TEXT = {
    "files": "text files; three books and WikiText under PALIMPSEST_DATA when left out",
    "hub": "instead of files: {id, revision (40 digits), file or split, config, column}",
    "kind": "auto (when left out), gutenberg, wikitext or plain",
    "limit": "so many passages at most",
    "shortest": "characters of a passage at least; 40 when left out",
    "passage": "of a hub data set: paragraph (when left out) or article, the whole of a row",
    "seed": "of a hub data set: draw rows by this seed instead of taking the first ones",
}
DATASET = {
    "deduplicate": "true keeps only the first edit of each prompt",
    "drop_edited_locality": "true drops locality probes whose prompt is itself edited",
    "keep_answer": "this share of the edits is to what the model says already (MEND on FEVER: .5)",
    "file": "the records: an absolute path, or one under PALIMPSEST_DATA or --source; its READER.json when left out",
    "limit": "number of edits at most",
    "reserve": "so many records at the end are set aside for editors that learn, which writes learning.jsonl",
    "learning": "instead of reserve: another file to learn from, keys below",
}
STREAM = FILES | {
    "file": "the records; the task's file of --source when left out",
    "upstream": "what must keep its answers: {file or hub, sha256, limit, ...}; that of --source when left out",
    "reserve": "so many records at the end are set aside for editors that learn, which writes learning.jsonl",
    "skip": "leave out the first so many edits of the stream",
    "limit": "keep so many edits of the stream",
    "annotations": "which sentences of biographies are edited",
    "outside_labels": "refuse or drop documents of other classes",
}
TASK = FILES | {
    "file": "the records: questions that are kept (qa), cases, or biographies",
    "text": "generation: the background, keys as for text alone",
    "names": "generation: list of names, one a line",
    "annotations": "generation: which sentences are wrong",
    "stale": "qa: a ZsRE file {file, schema, bad_records, limit, phrasings} whose counterfactual answers are read",
}
SHAPE = ("models.shapes:SHAPE",)
OWN_SHAPE = ("decoder_blocks", "gated", "labels")  # of t5 and bert
PRETRAIN = {
    "learning_rate": "peak of the learning rate",
    "warmup": "steps of its linear rise",
    "final_share": "share of the peak at which its cosine ends",
    "weight_decay": "of AdamW",
    "beta2": "of AdamW",
    "clip": "largest norm of the gradient",
}
EXTERNAL = {
    "kind": "path (when left out) or hub",
    "path": "kind path, where it must be given: directory in hub format",
    "id": "kind hub, where it must be given: org/name",
    "revision": "kind hub, where it must be given: commit of 40 hexadecimal digits",
    "tokenizer": "where the tokenizer of a model without one is read: a directory, or org/name@COMMIT",
    "fingerprint": "false writes the manifest without loading the model",
    "dtype": "float32 (when left out), float16 or bfloat16, to load it for its fingerprint",
}
RANDOM = {
    "kind": "random",
    "vocabulary": "tokens of the tokenizer at most; 1000 when left out",
    "seed": "of the weights; 0 when left out",
    "corpus": "text file its tokenizer is trained on; made-up words when left out",
    "pairs": "instead of corpus: pairs.jsonl of a source, which also has the classes",
    "labels": "bert: the classes, or how many; those of pairs, else 4, when left out",
}
NAMES = {
    "model": "name of the model, for figures",
    "dataset": "name of the data set, for figures",
    "mode": "accepted for the workflow; what a failed gate means is an option of `run`",
}
RUN = {
    "run": "name of the run: small letters, digits, _ and -",
    "protocol": "single_round, consecutive, lifelong or simultaneous",
    "dataset": "name of the data set, for figures",
    "model": "name of the model, for figures",
    "editor": "see `palimpsest list editors`",
    "edits": "number of edits",
    "batch_size": "edits made together; lifelong: 1",
    "settings": "of the editor: `palimpsest schema` lists them with types and defaults",
    "options": "how the run chooses and judges, keys below",
    "snapshot_every": "judge after every so many edits, not only at the end",
    "variant": "of the editor, for figures",
    "title": "of the method, for figures",
    "scale": "for captions",
}
FIGURE = {
    "drawer": "what draws it: an unknown name is answered with the known ones",
    "title": "in the caption",
    "item": "the paper's number, such as Figure 4",
    "name": "in the caption where there is no title",
    "paper": "comeba_hk, grace, mend or serac",
    "scale": "for the caption",
    "methods": "rows or lines in order: [{editor, variant, title}, ...]; all of the runs' when left out",
    "models": "models in order; all of the runs' when left out",
    "datasets": "data sets in order; all of the runs' when left out",
    "dataset_titles": "{name: how it is written}; the name where there is none",
    "options": "of the drawer: the `options` of config/experiments/*.yaml are examples",
    "gates": "gate files of the models",
    "training": "training.csv files of the models",
    "trainings": "loss curves of learned editors: [{file, editor, title, model, dataset}, ...]",
    "toy": "drawer toy: the file toy.json",
}
CLAIM = {
    "experiments": "{experiment: [names of its runs]}, or {experiment: {run: [seeds]}}",
    "paper": "comeba_hk (when left out), grace, mend or serac",
    "models": "{weaker: name, stronger: name}: which models stand for the paper's",
    "datasets": "{name in the claims: name in the runs}, where they differ",
    "dataset_titles": "{name in the runs: how it is written}",
    "scale": "for the report",
    "draws": "of the bootstrap",
    "level": "of its intervals",
    "stem": "of the files' names; claims when left out",
    "toy": "toy.json; RESULTS/toy/toy.json when left out",
    "source": "how the report cites the paper",
}
TRAIN = {
    "editor": "mend or serac",
    "settings": "of the editor: `palimpsest schema` lists them with types and defaults",
}
SEARCH = {
    "edits": "number of edits, as in the runs that will use the vectors",
    "settings": "of the search, keys below",
    "options": "of the sample: known_only, sample, conflicts, dtype, device, checkpoint_every_batch, as in `run`",
    "kl_weight": "weight of the divergence from the unedited model",
    "decay": "weight of |delta|^2",
    "stop_loss": "the search of an edit ends when its loss is below",
    "layers": "the vectors are searched at the last of them",
}
WORLD = "data.world"

PARTS: dict[str, tuple[Part, ...]] = {
    "world": (
        Part("--kind facts", (f"{WORLD}:WorldSettings",)),
        Part("--kind qa", (f"{WORLD}_qa:QaSettings",)),
        Part("--kind labels", (f"{WORLD}_labels:LabelSettings",)),
        Part("--kind biographies", (f"{WORLD}_biographies:BiographySettings",)),
        Part("--kind claims", (f"{WORLD}_claims:ClaimSettings",)),
        Part("--kind sentiment", (f"{WORLD}_sentiment:SentimentSettings",)),
    ),
    "source": (
        Part("facts, with reader counterfact or zsre", ("data.real_source:SourceSettings",), EDITS),
        Part("claims, with reader fever or evidence", ("data.claims_source:FIELDS",), CLAIMS, must=("reader",)),
        Part("a lifelong task, with task", ("data.lifelong_source:LifelongSourceSettings",), TASK),
        Part("text alone, with neither", ("data.text:TEXT_FIELDS",), TEXT),
    ),
    "dataset": (
        Part("edits, with reader", ("data.prepare:DATASET_FIELDS",), DATASET, must=("reader",)),
        Part("keys of `learning`", ("data.prepare:LEARNING_FIELDS",)),
        Part("a stream for lifelong editing, with task", ("data.lifelong_settings:LifelongSettings",), STREAM),
    ),
    "pretrain": (
        Part("shape of the model", SHAPE, PRETRAIN, further=OWN_SHAPE),
        Part("training of gpt2, gptj and llama, on sentences", ("models.pretrain:TextTraining",), PRETRAIN),
        Part("training of t5 and bert, on pairs", ("models.pretrain_pairs:PairTraining",), PRETRAIN),
        Part("t5 and bert, instead of a shape (family must be given)", further=("start",), words={
            "start": "go on from these weights: a directory, a hub id with its commit, or package:NAME/FOLDER"}),
    ),
    "model": (
        Part("kind path or hub: a model made elsewhere", ("models.manifest:EXTERNAL",), EXTERNAL,
             without=("title", "layers", "gate", "device")),
        Part("kind random: a stand-in", SHAPE, RANDOM, further=("kind", "vocabulary", "seed", "corpus", "pairs", *OWN_SHAPE),
             must=("kind",)),
    ),
    "gate": (Part("all of them have a default", ("models.gate:GateSettings",), NAMES, further=(*NAMES, "device", "dtype")),),
    "statistics": (
        Part("covariance of keys (the default)", ("statistics.covariance:CovarianceSettings",), further=("device", "dtype")),
        Part("Fisher information, with kind", ("statistics.fisher:FisherSettings",), {"kind": "fisher"},
             further=("kind", "device", "dtype"), must=("kind",)),
    ),
    "train-editor": (Part("what is trained", words=TRAIN, further=(*TRAIN, "device", "dtype"), must=("editor",)),),
    "targets": (
        Part("the search", words=SEARCH, further=("edits", "settings", "options"), must=("edits", "settings")),
        Part("keys of `settings`", ("editors.shared.key_value:KeyValueSettings",), SEARCH,
             explained_by=("editors.shared.target_vectors:Search",)),
    ),
    "run": (
        Part("the run", ("runs.run:REQUIRED",), RUN, must_read=("runs.run:REQUIRED",),
             further=("settings", "options", "snapshot_every", "variant", "title", "scale")),
        Part("keys of `options`", ("runs.inputs:Options",)),
    ),
    "figure": (Part("what is drawn", words=FIGURE, further=tuple(FIGURE), must=("drawer",)),),
    "toy": (Part("all of them have a default", ("toy:ToySettings",), {"seeds": "list of seeds; 0 to 4 when left out",
            "extent": "of the decision maps, in both directions"}, further=("seeds",)),),
    "claims": (Part("what is judged", words=CLAIM, further=tuple(CLAIM), must=("experiments",)),),
}  # fmt: skip
NOTES: dict[str, str] = {
    "dataset": "  As in a scale's file, the keys of a stream may also stand under `lifelong`.",
    "pretrain": "  As in a scale's file, they may also stand under `shape` and `training`.",
    "model": "  As in a scale's file, width, blocks and the like may also stand under `shape`.",
}

# What follows the command's name in its example; a test parses them. Files are those of `snakemake` at scale mini, or the result
# of another example.
EXAMPLES: dict[str, str] = {
    "world": """--settings '{"counterfact": 50, "zsre": 50}' --seed 1 --out my-world""",
    "source": """--spec '{"reader": "counterfact", "file": "counterfact-edit.json"}' --out facts""",
    "dataset": """--spec '{"reader": "counterfact", "file": "counterfact-edit.json"}' --out edits""",
    "pretrain": """--spec '{"family": "gpt2", "width": 64, "blocks": 2, "heads": 2, "steps": 100}' \\
         --source my-world --out my-gpt2""",
    "model": """--spec '{"kind": "path", "path": "my-gpt2"}' --out results/models/my-gpt2""",
    "convert": "downloads/t5-small-ssm-nq --out models/t5-small-ssm-nq",
    "gate": """--spec '{}' --model results/models/mini-gpt2 --dataset results/datasets/mini-zsre \\
         --source results/data/mini-world --out my-gate.json --known my-known.json""",
    "statistics": """--spec '{"layers": [0, 1, 2], "tokens": 100000}' --model results/models/mini-gpt2 \\
         --corpus results/data/mini-world/corpus.txt --out my-statistics""",
    "train-editor": """--spec '{"editor": "mend", "settings": {"layers": [5, 6, 7]}}' \\
         --model results/models/mini-gpt2 --dataset results/datasets/mini-zsre --out my-mend""",
    "targets": """--spec '{"edits": 10, "settings": {"layers": [0, 1, 2], "learning_rate_ratio": 0.025}}' \\
         --seed 0 --model results/models/mini-gpt2 --dataset results/datasets/mini-zsre --out my-targets""",
    "run": """--spec '{"run": "mine", "protocol": "consecutive", "dataset": "zsre", "model": "mini-gpt2",
         "editor": "ft", "edits": 20, "batch_size": 10, "settings": {"layer": 0}}' --seed 0 \\
         --model results/models/mini-gpt2 --dataset results/datasets/mini-zsre \\
         --out my-results/runs/mine/seed=0""",
    "figure": """mine --spec '{"drawer": "curves", "title": "A run of mine"}' \\
         --runs my-results/runs/mine/seed=0 --out my-figures""",
    "toy": """--spec '{}' --out results/toy""",
    "claims": """--spec '{"models": {"weaker": "mini-gpt2"}, "experiments": {"comeba_fig4": [
             "consecutive-mini-gpt2-zsre-comeba_hk-no_hooks-n200-b10-s50",
             "consecutive-mini-gpt2-zsre-comeba_hk-default-n200-b10-s50"]}}' --results results --out my-claims""",
    "gallery": "--figures figures/mini-zsre --results results --out docs/gallery/mini-zsre",
    "list": "editors --json",
    "edit": """--model results/models/mini-gpt2 --editor memit --preset mini-gpt2 \\
         --statistics results/statistics/mini-gpt2 --subject 'Rerlas Kulluk' --target Nesdrish \\
         --prompt 'The mother tongue of Rerlas Kulluk is' --ask 'The mother tongue of Rerlas Kulluk is'""",
    "schema": "--write",
}
