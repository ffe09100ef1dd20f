# The covariance of keys, once per model and corpus, all wanted layers in one pass.


rule covariance:
    input:
        model="results/models/{model}/manifest.json",
        corpus=statistics_corpus,
    output:
        matrices="results/statistics/{model}/covariance.safetensors",
        description="results/statistics/{model}/covariance.json",
    log:
        "logs/statistics/{model}.log",
    benchmark:
        "results/benchmarks/statistics/{model}.jsonl"
    priority: statistics_turn
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=job("statistics", "mem_mb", 4000),
        runtime=job("statistics", "runtime", 60),
        gpu=DEVICE_GPUS,
    params:
        model=lambda wildcards, input: Path(input.model).parent,
        out=lambda wildcards, output: Path(output.matrices).parent,
        spec=lambda wildcards: spec_json(
            {
                "layers": PLAN.statistics_layers(wildcards.model),
                "device": PLAN.scale["device"],
                "dtype": PLAN.scale["models"][wildcards.model]["dtype"],
                **PLAN.scale["models"][wildcards.model]["statistics"],
            }
        ),
        code=code("palimpsest.statistics.covariance"),
    message:
        "Collecting the covariance of {wildcards.model}"
    shell:
        "python -m palimpsest statistics --spec {params.spec:q} --model {params.model} --corpus {input.corpus}"
        " --out {params.out} --threads {threads} 2> {log}"


# What the weights of a model mean for the prompts that a stream must not forget: FT+EWC's variant `upstream`.
rule fisher:
    input:
        model="results/models/{model}/manifest.json",
        probes=f"results/datasets/{PLAN.scale['scale']}-{{dataset}}/probes.jsonl",
    output:
        matrices=f"results/statistics/{{model}}/fisher-{PLAN.scale['scale']}-{{dataset}}/fisher.safetensors",
        description=f"results/statistics/{{model}}/fisher-{PLAN.scale['scale']}-{{dataset}}/fisher.json",
    log:
        f"logs/statistics/{{model}}-fisher-{PLAN.scale['scale']}-{{dataset}}.log",
    benchmark:
        f"results/benchmarks/statistics/{{model}}-fisher-{PLAN.scale['scale']}-{{dataset}}.jsonl"
    wildcard_constraints:
        dataset=one_of(STREAMS),
    priority: pair_turn
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=job("statistics", "mem_mb", 4000),
        runtime=job("statistics", "runtime", 60),
        gpu=DEVICE_GPUS,
    params:
        model=lambda wildcards, input: Path(input.model).parent,
        out=lambda wildcards, output: Path(output.matrices).parent,
        spec=lambda wildcards: spec_json(
            {
                **fisher_spec(
                    [run.spec for run in PLAN.runs.values()],
                    wildcards.model,
                    wildcards.dataset,
                ),
                "device": PLAN.scale["device"],
                "dtype": PLAN.scale["models"][wildcards.model]["dtype"],
            }
        ),
        code=code("palimpsest.statistics.fisher"),
    message:
        "Collecting the Fisher information of {wildcards.model} on {wildcards.dataset}"
    shell:
        "python -m palimpsest statistics --spec {params.spec:q} --model {params.model} --corpus {input.probes}"
        " --out {params.out} --threads {threads} 2> {log}"
