# One job is one whole run: a method, a model, a data set, a seed, with all its batches and snapshots. A run's digest covers
# the modules it can reach, so a change in one editor touches only that editor's runs.


def run_model(wildcards):
    """Manifest of the model a run edits."""
    return f"results/models/{PLAN.runs[wildcards.run].spec['model']}/manifest.json"


def run_edits(wildcards):
    """Edits a run draws from."""
    return f"{dataset_dir(PLAN.runs[wildcards.run].spec['dataset'])}/edits.jsonl"


def run_statistics(wildcards):
    """Covariance, for editors that need it."""
    run = PLAN.runs[wildcards.run]
    if not run.needs_statistics:
        return []
    return f"results/statistics/{run.spec['model']}/covariance.safetensors"


def run_gate(wildcards):
    """The gate's verdict, unless the gate is off."""
    spec = PLAN.runs[wildcards.run].spec
    if PLAN.scale["gate"]["mode"] == "off":
        return []
    return f"results/models/{spec['model']}/gate-{spec['dataset']}.json"


def run_known(wildcards):
    """Which edits the model knows, if only those are edited."""
    spec = PLAN.runs[wildcards.run].spec
    if not spec["options"]["known_only"]:
        return []
    return f"results/models/{spec['model']}/known-{spec['dataset']}.json"


def run_text(wildcards):
    """Text of the drift meter, where the model has a source."""
    entry = PLAN.scale["models"][PLAN.runs[wildcards.run].spec["model"]]
    source = entry.get("corpus") or entry.get("source")
    return f"results/data/{source}/text.txt" if source else []


def run_inputs(wildcards, input):
    """The optional inputs as options of the command."""
    parts = []
    for name in ("gate", "known", "text"):
        value = input.get(name)
        if value:
            parts.append(f"--{name} {value}")
    if input.get("statistics"):
        parts.append(f"--statistics {Path(str(input.statistics)).parent}")
    return " ".join(parts)


def run_code(wildcards):
    """Digest of the modules that can change this run's numbers."""
    spec = PLAN.runs[wildcards.run].spec
    return digest(
        "palimpsest.runs",
        f"palimpsest.protocols.{spec['protocol']}",
        f"palimpsest.editors.{spec['editor']}",
    )


rule run:
    input:
        model=run_model,
        edits=run_edits,
        statistics=run_statistics,
        gate=run_gate,
        known=run_known,
        text=run_text,
    output:
        metrics="results/runs/{run}/seed={seed}/metrics.parquet",
        records="results/runs/{run}/seed={seed}/records.parquet",
        inspection="results/runs/{run}/seed={seed}/inspection.parquet",
        description="results/runs/{run}/seed={seed}/run.json",
    log:
        "logs/runs/{run}/seed={seed}.log",
    benchmark:
        "results/benchmarks/runs/{run}/seed={seed}.jsonl"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=job("run", "mem_mb", 4000),
        runtime=job("run", "runtime", 60),
        gpu=DEVICE_GPUS,
    params:
        model=lambda wildcards, input: Path(input.model).parent,
        dataset=lambda wildcards, input: Path(input.edits).parent,
        out=lambda wildcards, output: Path(output.metrics).parent,
        inputs=run_inputs,
        spec=lambda wildcards: spec_json(PLAN.runs[wildcards.run].spec),
        code=run_code,
    message:
        "Run {wildcards.run}, seed {wildcards.seed}"
    shell:
        "python -m palimpsest run --spec {params.spec:q} --seed {wildcards.seed} --model {params.model}"
        " --dataset {params.dataset} {params.inputs} --out {params.out} --threads {threads} 2> {log}"
