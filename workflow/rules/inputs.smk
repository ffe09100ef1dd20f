# Inputs and parameters of the rules, as functions. What they look up was worked out by src/palimpsest/experiments.


def dataset_source(wildcards):
    """The source a data set's records lie in; none for real files and hub ids."""
    source = PLAN.scale["datasets"][wildcards.dataset].get("source")
    return f"results/data/{source}/manifest.json" if source else []


def dataset_spec(wildcards):
    """A data set's entry as data/prepare.py or, for streams, data/lifelong.py reads it."""
    entry = dict(PLAN.scale["datasets"][wildcards.dataset])
    own = entry.pop("lifelong", {})
    entry.pop("title", None)  # for figures only
    return spec_json({**entry, **own})


def real_spec(wildcards):
    """What a source or a data set says of real files; nothing where its records are generated."""
    if hasattr(wildcards, "dataset"):
        entry = PLAN.scale["datasets"][wildcards.dataset]
        source = PLAN.scale["sources"].get(entry.get("source"), {})
        return {} if source.get("kind") == "world" else entry
    source = PLAN.scale["sources"][wildcards.source]
    return source.get(source["kind"], {})


def real_files(wildcards):
    """Digests of these files: with another content they are read again."""
    return spec_json(file_digests(real_spec(wildcards)))


def refuse_in_vain(jobs):
    """What jobs would ask for in vain, or write over: better said now than after hours."""
    jobs = list(jobs)
    missing = [
        problem
        for job in jobs
        if "files" in job.params.keys()
        for problem in missing_files(real_spec(job.wildcards))
    ]
    found = {
        "Real files are missing": missing,
        "Models are missing": lacking_models(
            PLAN.scale,
            dict.fromkeys(
                job.wildcards.model for job in jobs if job.rule.name == "model"
            ),
        ),
        "Models of the hub are not pinned": refused(
            UNPINNED, [dict(job.wildcards.items()) for job in jobs]
        ),
        "Finished runs of another scale would be written over": foreign_runs(
            PLAN.scale["scale"],
            [
                Path(job.output.description).parent
                for job in jobs
                if job.rule.name == "run"
            ],
        ),
    }
    said = [
        "\n".join(
            [f"{title}:", *(f"  {problem}" for problem in dict.fromkeys(problems))]
        )
        for title, problems in found.items()
        if problems
    ]
    if said:
        raise WorkflowError("\n".join(said))


def dataset_option(wildcards, input):
    """The source as an option of the command."""
    return f"--source {Path(str(input.source)).parent}" if input.source else ""


def world_kind(wildcards):
    """Which world a generated source is."""
    return PLAN.scale["sources"][wildcards.source]["world"]


def world_code(wildcards):
    """Digest of the world's own module."""
    return code(WORLDS[world_kind(wildcards)].partition(":")[0])(wildcards)


def source_code(wildcards):
    """Digest of what prepares a real source."""
    if PLAN.scale["sources"][wildcards.source]["kind"] == "lifelong":
        return digest("palimpsest.data.lifelong_source")
    if wildcards.source in REAL_CLAIMS:
        return digest("palimpsest.data.claims_source")
    return digest("palimpsest.data.prepare", "palimpsest.data.text_source")


def dataset_code(wildcards):
    """Digest of what reads a data set."""
    stream = wildcards.dataset in STREAMS
    return digest("palimpsest.data.lifelong" if stream else "palimpsest.data.prepare")


def pretrain_code(wildcards):
    """Digest of what trains a model."""
    pairs = wildcards.model in PAIR_MODELS
    return digest(
        "palimpsest.models.pretrain_pairs" if pairs else "palimpsest.models.pretrain"
    )


def model_spec(wildcards):
    """A model's entry as models/pretrain.py and models/manifest.py read it: one flat object."""
    entry = dict(PLAN.scale["models"][wildcards.model])
    spec = {
        "name": wildcards.model,
        **entry.pop("shape", {}),
        **entry.pop("training", {}),
    }
    used = {
        "pretrained": ("kind", "family", "seed", "start"),
        "random": ("kind", "family", "seed", "vocabulary", "dtype"),
        "path": ("kind", "family", "path", "tokenizer", "dtype"),
        "hub": ("kind", "family", "id", "revision", "tokenizer", "dtype"),
    }[entry["kind"]]
    if entry["kind"] == "random" and entry.get("source"):
        beside = "pairs.jsonl" if entry["family"] in PAIR_FAMILIES else "corpus.txt"
        key = beside.partition(".")[0]
        spec[key] = f"results/data/{entry['source']}/{beside}"
    return spec_json({**spec, **{key: entry[key] for key in used if key in entry}})


def model_weights(wildcards):
    """Digests of directories of this machine that a model or its tokenizer lies in: with others it is described again."""
    entry = PLAN.scale["models"][wildcards.model]
    named = [entry[key] for key in ("path", "tokenizer") if entry.get(key)]
    return " ".join(content_digest(path) for path in named if Path(path).is_dir())


def model_source(wildcards):
    """What a model is pre-trained on, or its tokenizer is trained on."""
    source = PLAN.scale["models"][wildcards.model].get("source")
    return f"results/data/{source}/manifest.json" if source else []


def gate_source(wildcards):
    """Facts in other wordings, where a model was trained on single facts."""
    return [] if wildcards.dataset in STREAMS else model_source(wildcards)


def gate_spec(wildcards):
    """The configuration's `gate`, with the layers that editing will use and this model's names."""
    layers = PLAN.statistics_layers(wildcards.model)
    spec = {
        "model": wildcards.model,
        "dataset": wildcards.dataset,
        "device": PLAN.scale["device"],
        "dtype": PLAN.scale["models"][wildcards.model]["dtype"],
        **PLAN.scale["gate"],
    }
    return spec_json(
        spec if "layers" in spec or not layers else {**spec, "layers": layers}
    )


def statistics_corpus(wildcards):
    """Text the keys are taken from: the model's own pre-training source unless it names another."""
    entry = PLAN.scale["models"][wildcards.model]
    return f"results/data/{entry.get('corpus') or entry['source']}/corpus.txt"


def run_model(wildcards):
    """Manifest of the model a run edits."""
    return f"results/models/{PLAN.runs[wildcards.run].spec['model']}/manifest.json"


def run_edits(wildcards):
    """Edits a run draws from."""
    return f"{dataset_dir(PLAN.runs[wildcards.run].spec['dataset'])}/edits.jsonl"


def run_probes(wildcards):
    """Probes and task of a stream."""
    dataset = PLAN.runs[wildcards.run].spec["dataset"]
    if dataset not in STREAMS:
        return []
    return [
        f"{dataset_dir(dataset)}/probes.jsonl",
        f"{dataset_dir(dataset)}/manifest.json",
    ]


def run_statistics(wildcards):
    """Covariance or Fisher information, for editors that need it."""
    run = PLAN.runs[wildcards.run]
    if wants_fisher(run.spec):
        return "results/statistics/{model}/fisher-{scale}-{dataset}/fisher.safetensors".format(
            **run.spec
        )
    if not run.needs_statistics:
        return []
    return f"results/statistics/{run.spec['model']}/covariance.safetensors"


def run_gate(wildcards):
    """The gate's verdict, unless the gate is off."""
    spec = PLAN.runs[wildcards.run].spec
    if spec["options"]["gate"] == "off":
        return []
    return f"results/models/{spec['model']}/gate-{spec['dataset']}.json"


def run_known(wildcards):
    """Which edits the model knows, if only those are edited."""
    spec = PLAN.runs[wildcards.run].spec
    if not spec["options"]["known_only"]:
        return []
    return f"results/models/{spec['model']}/known-{spec['dataset']}.json"


def run_targets(wildcards):
    """Target vectors it shares with other runs, if it does."""
    name = PLAN.runs[wildcards.run].targets
    return f"results/targets/{name}/seed={wildcards.seed}/targets.json" if name else []


def run_trained(wildcards):
    """The trained editor, for editors that learn: every seed of a run edits with the same one."""
    training = PLAN.runs[wildcards.run].training
    if training is None:
        return []
    return f"results/editors/{training.name}/seed={PLAN.training_seed}/trained.json"


def run_parts(wildcards):
    """Models of this workflow that the editor is made of, such as a classifier's encoder."""
    return model_parts(PLAN.runs[wildcards.run].spec["settings"])


def model_parts(settings):
    """Manifests of the models that some settings name by their directory."""
    named = models_in(settings, PLAN.scale["models"])
    return [f"results/models/{model}/manifest.json" for model in named]


def training_model(wildcards):
    """Manifest of the model that an editor is trained for."""
    model = PLAN.trainings()[wildcards.trained].model
    return f"results/models/{model}/manifest.json"


def training_examples(wildcards):
    """What it is trained on."""
    dataset = PLAN.trainings()[wildcards.trained].dataset
    return f"{dataset_dir(dataset)}/learning.jsonl"


def training_parts(wildcards):
    """Models that it is made of, beside the one that is edited."""
    return model_parts(PLAN.trainings()[wildcards.trained].spec["settings"])


def training_code(wildcards):
    """Digest of the training and of the editor's module, which has the learner."""
    editor = PLAN.trainings()[wildcards.trained].spec["editor"]
    return digest("palimpsest.learning.train", f"palimpsest.editors.{editor}")


def training_curve(name):
    """Losses of one training."""
    return f"results/editors/{name}/seed={PLAN.training_seed}/training.csv"


def training_curves():
    """Loss curves of all trainings of this scale."""
    return [training_curve(name) for name in sorted(PLAN.trainings())]


def figure_trainings(name):
    """What the figure of these curves is told; trained.json lies beside each."""
    if PLAN.figures[name].spec["drawer"] != "learned_training":
        return {}
    found = [
        {
            "file": training_curve(training.name),
            "editor": training.spec["editor"],
            "title": training.title,
            "model": training.model,
            "dataset": training.dataset,
        }
        for training in PLAN.trainings().values()
    ]
    return {"trainings": found}


def search_inputs(key):
    """A file of the model or the data set of a search of target vectors."""
    files = {
        "model": "results/models/{model}/manifest.json",
        "known": "results/models/{model}/known-{dataset}.json",
    }

    def find(wildcards):
        spec = PLAN.searches()[wildcards.search]
        if key == "known" and not spec["options"]["known_only"]:
            return []
        return files[key].format(**spec)

    return find


def search_edits(wildcards):
    """Edits a search of target vectors draws from."""
    return f"{dataset_dir(PLAN.searches()[wildcards.search]['dataset'])}/edits.jsonl"


def run_text(wildcards):
    """Text of the drift meter, where the model has a source and is one that continues text."""
    spec = PLAN.runs[wildcards.run].spec
    entry = PLAN.scale["models"][spec["model"]]
    if entry["family"] in PAIR_FAMILIES or spec["protocol"] == "simultaneous":
        return []
    source = entry.get("corpus") or entry.get("source")
    return f"results/data/{source}/text.txt" if source else []


def run_inputs(wildcards, input):
    """The optional inputs as options of the command."""
    parts = []
    for name in ("gate", "known", "text"):
        value = input.get(name)
        if value:
            parts.append(f"--{name} {value}")
    if input.get("targets"):
        parts.append(f"--targets {Path(str(input.targets)).parent}")
    for name in ("statistics", "trained"):
        value = input.get(name)
        if value:
            parts.append(f"--{name} {Path(str(value)).parent}")
    # No output of a rule: whichever run asks first writes, and nothing is lost where it is removed.
    parts.append("--answers results/answers")
    return " ".join(parts)


@functools.cache
def code_of_runs(protocol, editor):
    """Digest of the modules that can change these runs' numbers."""
    return digest_of_run({"protocol": protocol, "editor": editor})


def run_code(wildcards):
    """That of one run."""
    spec = PLAN.runs[wildcards.run].spec
    return code_of_runs(spec["protocol"], spec["editor"])


def figure_runs(name):
    """Directories of the runs that go into a figure."""
    return [
        f"results/runs/{run}/seed={seed}"
        for run, seeds in PLAN.figures[name].runs.items()
        for seed in seeds
    ]


def figure_gates(name):
    """Gate files of the models a figure shows: where it shows gates, or an editor that writes at the subject."""
    figure = PLAN.figures[name]
    unstamped = figure.spec["options"].get("stamp") == ""
    shows_gates = figure.spec["drawer"] == "critical_path"
    shown = {PLAN.runs[run].spec["editor"] for run in figure.runs}
    judged = any(PLAN.config.trait(editor, "needs_subject") for editor in shown)
    if PLAN.scale["gate"]["mode"] == "off" or not (
        shows_gates or (judged and not unstamped)
    ):
        return []
    return [
        f"results/models/{model}/gate-{dataset}.json"
        for model in figure.spec["models"]
        for dataset in PLAN.datasets_of(model)
        if not figure.spec["datasets"] or dataset in figure.spec["datasets"]
    ]


def figure_curves(name):
    """Loss curves, for the figures that show them."""
    if PLAN.figures[name].spec["drawer"] == "learned_training":
        return training_curves()
    if PLAN.figures[name].spec["drawer"] != "training_curves":
        return []
    trained = kinds("models", "pretrained")
    return [
        f"results/models/{model}/training.csv"
        for model in PLAN.figures[name].spec["models"]
        if model in trained
    ]


def figure_spec(wildcards):
    """What the drawer is told."""
    name = wildcards.figure
    return spec_json(
        {
            **PLAN.figures[name].spec,
            "gates": figure_gates(name),
            "training": figure_curves(name),
            **figure_trainings(name),
            **({"toy": TOY} if PLAN.figures[name].spec["drawer"] == "toy" else {}),
        }
    )


def figure_code(wildcards):
    """Digest of the drawer and of the published numbers."""
    from palimpsest.figures import DRAWERS

    drawer = DRAWERS[PLAN.figures[wildcards.figure].spec["drawer"]].partition(":")[0]
    return code(drawer, published=(".csv",))(wildcards)


def figure_files(name):
    """Everything that is written for one figure or table."""
    return [
        f"{FIGURES}/{name}{suffix}"
        for suffix in figure_suffixes(PLAN.figures[name].spec)
    ]


def drawn():
    """All tables and figures of this scale."""
    return [file for name in PLAN.figures for file in figure_files(name)]


TABLES = [name for name, figure in PLAN.figures.items() if figure.is_table]
PICTURES = [name for name in PLAN.figures if name not in TABLES]

# Judged papers: stem of the files of their verdicts.
PAPERS = {
    "comeba_hk": "claims",
    "grace": "claims_grace",
    "mend": "claims_mend",
    "serac": "claims_serac",
}
JUDGED = {
    paper: stem
    for paper, stem in PAPERS.items()
    if any(PLAN.config.experiments[name]["paper"] == paper for name in PLAN.figures)
}


def claims_of(papers):
    """The verdicts on the claims of some papers."""
    stems = [stem for paper, stem in JUDGED.items() if paper in papers]
    return [
        f"{FIGURES}/{stem}{suffix}"
        for stem in stems
        for suffix in (".csv", ".md", "_tests.csv")
    ]


CLAIMS = claims_of(JUDGED)
TOYS = [TOY for figure in PLAN.figures.values() if figure.spec["drawer"] == "toy"]


def paper_of(wildcards):
    """The paper whose claims are judged in a file."""
    return next(paper for paper, stem in PAPERS.items() if stem == wildcards.stem)


def claims_figures(wildcards):
    """Tables and figures that have runs and that the paper's claims name; some are of another paper."""
    judged = experiments_judged(paper_of(wildcards))
    return {
        name: figure
        for name, figure in PLAN.figures.items()
        if figure.runs and name in judged
    }


def claims_runs(wildcards):
    """Metric tables of these runs."""
    runs = {
        (run, seed)
        for figure in claims_figures(wildcards).values()
        for run, seeds in figure.runs.items()
        for seed in seeds
    }
    return [
        f"results/runs/{run}/seed={seed}/metrics.parquet" for run, seed in sorted(runs)
    ]


def claims_spec(wildcards):
    """Which experiments are there, and which runs belong to them."""
    paper = paper_of(wildcards)
    return spec_json(
        {
            "scale": PLAN.scale["scale"],
            "paper": paper,
            "stem": wildcards.stem,
            "toy": TOY,
            "datasets": {name: name for name in PLAN.scale["datasets"]},
            "dataset_titles": dataset_titles(PLAN.config),
            **PLAN.scale["claims"],
            "experiments": {
                name: {run: list(seeds) for run, seeds in figure.runs.items()}
                for name, figure in claims_figures(wildcards).items()
            },
        }
    )


def runs_of_editor(editor, wildcards):
    """Metric tables of all runs of an editor; refused where there are none: nothing would be made, and nothing said."""
    found = run_files(editor=editor)
    if not found:
        raise WorkflowError(
            f"no experiment of scale {PLAN.scale['scale']} has {editor}: add it to a list of methods in config/experiments/ "
            "(docs/adding_an_editor.md, step 3), or take it out of `without`"
        )
    return found


def run_files(**wanted):
    """Metric tables of all runs that fit."""
    return [
        f"results/runs/{run}/seed={seed}/metrics.parquet"
        for run, seed in PLAN.run_seeds(**wanted)
    ]
