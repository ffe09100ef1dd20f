# Models: pre-trained here, made at random, or described where they lie; then the gate.
#   results/models/{model}/manifest.json              what every later job reads
#   results/models/{model}/gate-{dataset}.json        can it be edited at the subject?
#   results/models/{model}/known-{dataset}.json       which edits' truth does it know?


rule pretrain:
    input:
        facts=lambda wildcards: f"results/data/{PLAN.scale['models'][wildcards.model]['source']}/facts.jsonl",
        text=lambda wildcards: f"results/data/{PLAN.scale['models'][wildcards.model]['source']}/text.txt",
        manifest=model_source,
    output:
        weights="results/models/{model}/model.safetensors",
        configuration="results/models/{model}/config.json",
        tokenizer="results/models/{model}/tokenizer.json",
        curve="results/models/{model}/training.csv",
        manifest="results/models/{model}/manifest.json",
    log:
        "logs/models/{model}.log",
    benchmark:
        "results/benchmarks/models/{model}.jsonl"
    wildcard_constraints:
        model=one_of(
            name for name in kinds("models", "pretrained") if name not in PAIR_MODELS
        ),
    priority: model_turn
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=job("pretrain", "mem_mb", 4000),
        runtime=job("pretrain", "runtime", 60),
    params:
        out=lambda wildcards, output: Path(output.manifest).parent,
        source=lambda wildcards, input: Path(input.manifest).parent,
        spec=model_spec,
        code=pretrain_code,
    message:
        "Pre-training {wildcards.model}"
    shell:
        "python -m palimpsest pretrain --spec {params.spec:q} --source {params.source} --out {params.out}"
        " --threads {threads} 2> {log}"


# T5 and BERT read pairs of prompt and answer.
use rule pretrain as pretrain_pairs with:
    input:
        pairs=lambda wildcards: f"results/data/{PLAN.scale['models'][wildcards.model]['source']}/pairs.jsonl",
        manifest=model_source,
    wildcard_constraints:
        model=one_of(PAIR_MODELS),


rule model:
    input:
        source=model_source,
    output:
        manifest="results/models/{model}/manifest.json",
    log:
        "logs/models/{model}.log",
    benchmark:
        "results/benchmarks/models/{model}.jsonl"
    wildcard_constraints:
        model=one_of(
            kinds("models", "random")
            + kinds("models", "path")
            + kinds("models", "hub")
        ),
    priority: model_turn
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=job("model", "mem_mb", 8000),
        runtime=job("model", "runtime", 120),
    params:
        out=lambda wildcards, output: Path(output.manifest).parent,
        spec=model_spec,
        weights=model_weights,
        code=code("palimpsest.models.manifest"),
    message:
        "Describing the model {wildcards.model}"
    shell:
        "python -m palimpsest model --spec {params.spec:q} --out {params.out} --threads {threads} 2> {log}"


rule gate:
    input:
        model="results/models/{model}/manifest.json",
        edits=f"results/datasets/{PLAN.scale['scale']}-{{dataset}}/edits.jsonl",
        source=gate_source,
    output:
        gate="results/models/{model}/gate-{dataset}.json",
        known="results/models/{model}/known-{dataset}.json",
    log:
        "logs/models/{model}-gate-{dataset}.log",
    benchmark:
        "results/benchmarks/models/{model}-gate-{dataset}.jsonl"
    priority: pair_turn
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=job("gate", "mem_mb", 4000),
        runtime=job("gate", "runtime", 60),
        gpu=DEVICE_GPUS,
    params:
        model=lambda wildcards, input: Path(input.model).parent,
        dataset=lambda wildcards, input: Path(input.edits).parent,
        source=lambda wildcards, input: (
            f"--source {Path(str(input.source)).parent}" if input.source else ""
        ),
        spec=gate_spec,
        code=code("palimpsest.models.gate"),
    message:
        "Examining {wildcards.model} on {wildcards.dataset}"
    shell:
        "python -m palimpsest gate --spec {params.spec:q} --model {params.model} --dataset {params.dataset}"
        " {params.source} --out {output.gate} --known {output.known} --threads {threads} 2> {log}"
