# One job is one whole run: a method, a model, a data set, a seed, with all its batches and snapshots. A run's digest covers
# the modules it can reach, so a change in one editor touches only that editor's runs.


# Single-round editing starts every batch from the untouched model: one search of target vectors serves all methods,
# lambdas and batch sizes that ask for the same.
rule target_vectors:
    input:
        model=search_inputs("model"),
        edits=search_edits,
        known=search_inputs("known"),
    output:
        tensors="results/targets/{search}/seed={seed}/targets.safetensors",
        description="results/targets/{search}/seed={seed}/targets.json",
    log:
        "logs/targets/{search}/seed={seed}.log",
    benchmark:
        "results/benchmarks/targets/{search}/seed={seed}.jsonl"
    priority: search_turn
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
        out=lambda wildcards, output: Path(output.description).parent,
        known=lambda wildcards, input: f"--known {input.known}" if input.known else "",
        spec=lambda wildcards: spec_json(PLAN.searches()[wildcards.search]),
        code=code("palimpsest.runs.searches"),
    message:
        "Searching the target vectors of {wildcards.search}, seed {wildcards.seed}"
    shell:
        "python -m palimpsest targets --spec {params.spec:q} --seed {wildcards.seed} --model {params.model}"
        " --dataset {params.dataset} {params.known} --out {params.out} --threads {threads} 2> {log}"


rule run:
    input:
        model=run_model,
        edits=run_edits,
        probes=run_probes,
        statistics=run_statistics,
        gate=run_gate,
        known=run_known,
        text=run_text,
        targets=run_targets,
        trained=run_trained,
        parts=run_parts,
    output:
        metrics="results/runs/{run}/seed={seed}/metrics.parquet",
        records="results/runs/{run}/seed={seed}/records.parquet",
        inspection="results/runs/{run}/seed={seed}/inspection.parquet",
        description="results/runs/{run}/seed={seed}/run.json",
    log:
        "logs/runs/{run}/seed={seed}.log",
    benchmark:
        "results/benchmarks/runs/{run}/seed={seed}.jsonl"
    priority: run_turn
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
        " --dataset {params.dataset} {params.inputs} --code {params.code} --out {params.out} --threads {threads} 2> {log}"
