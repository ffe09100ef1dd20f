# Where facts, text and edits come from.
#   results/data/{source}/                 facts.jsonl, text.txt, corpus.txt, and the records in their upstream schemas
#   results/datasets/{scale}-{dataset}/    edits.jsonl: validated edits with their probes; learning.jsonl for editors that learn


rule world:
    output:
        facts="results/data/{source}/facts.jsonl",
        text="results/data/{source}/text.txt",
        corpus="results/data/{source}/corpus.txt",
        manifest="results/data/{source}/manifest.json",
    log:
        "logs/data/{source}.log",
    benchmark:
        "results/benchmarks/data/{source}.jsonl"
    wildcard_constraints:
        source=one_of(worlds("facts", "biographies", "sentiment")),
    priority: QUICK
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=job("world", "mem_mb", 1000),
        runtime=job("world", "runtime", 10),
    params:
        out=lambda wildcards, output: Path(output.manifest).parent,
        spec=lambda wildcards: spec_json(
            PLAN.scale["sources"][wildcards.source].get("settings", {})
        ),
        seed=lambda wildcards: PLAN.scale["sources"][wildcards.source]["seed"],
        kind=world_kind,
        code=world_code,
    message:
        "Generating the world {wildcards.source}"
    shell:
        "python -m palimpsest world --kind {params.kind} --settings {params.spec:q} --seed {params.seed}"
        " --out {params.out} 2> {log}"


# Worlds of cases and of claims: models read them as pairs of prompt and answer.
use rule world as world_of_pairs with:
    output:
        pairs="results/data/{source}/pairs.jsonl",
        manifest="results/data/{source}/manifest.json",
    wildcard_constraints:
        source=one_of(worlds("labels", "claims")),


# Of questions too; hard ones, which an edit implies, lie in companions of the records.
use rule world as world_of_questions with:
    output:
        pairs="results/data/{source}/pairs.jsonl",
        implied="results/data/{source}/impl_dev.json",
        true_false="results/data/{source}/zsre_yn_dev.txt",
        manifest="results/data/{source}/manifest.json",
    wildcard_constraints:
        source=one_of(worlds("qa")),


rule real_source:
    output:
        facts="results/data/{source}/facts.jsonl",
        text="results/data/{source}/text.txt",
        corpus="results/data/{source}/corpus.txt",
        manifest="results/data/{source}/manifest.json",
    log:
        "logs/data/{source}.log",
    benchmark:
        "results/benchmarks/data/{source}.jsonl"
    wildcard_constraints:
        source=one_of(
            others(kinds("sources", "real"), REAL_CLAIMS)
            + kinds("sources", "text")
            + real_streams("generation")
        ),
    priority: QUICK
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=job("source", "mem_mb", 2000),
        runtime=job("source", "runtime", 30),
    params:
        out=lambda wildcards, output: Path(output.manifest).parent,
        spec=lambda wildcards: spec_json(
            PLAN.scale["sources"][wildcards.source].get(
                PLAN.scale["sources"][wildcards.source]["kind"], {}
            )
        ),
        files=real_files,
        code=source_code,
    message:
        "Preparing the real source {wildcards.source}"
    shell:
        "python -m palimpsest source --spec {params.spec:q} --out {params.out} 2> {log}"


# Real questions, cases and claims: models read them as pairs of prompt and answer.
use rule real_source as real_source_of_pairs with:
    output:
        pairs="results/data/{source}/pairs.jsonl",
        manifest="results/data/{source}/manifest.json",
    wildcard_constraints:
        source=one_of(real_streams("qa", "classification") + REAL_CLAIMS),


rule dataset:
    input:
        source=dataset_source,
    output:
        edits=f"results/datasets/{PLAN.scale['scale']}-{{dataset}}/edits.jsonl",
        manifest=f"results/datasets/{PLAN.scale['scale']}-{{dataset}}/manifest.json",
    log:
        f"logs/datasets/{PLAN.scale['scale']}-{{dataset}}.log",
    benchmark:
        f"results/benchmarks/datasets/{PLAN.scale['scale']}-{{dataset}}.jsonl"
    wildcard_constraints:
        dataset=one_of(others(PLAN.scale["datasets"], STREAMS + TO_LEARN_FROM)),
    priority: QUICK
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=job("dataset", "mem_mb", 2000),
        runtime=job("dataset", "runtime", 30),
    params:
        out=lambda wildcards, output: Path(output.edits).parent,
        spec=dataset_spec,
        source=dataset_option,
        files=real_files,
        code=dataset_code,
    message:
        "Reading and checking the data set {wildcards.dataset}"
    shell:
        "python -m palimpsest dataset --spec {params.spec:q} {params.source} --out {params.out} 2> {log}"


# A lifelong task: the stream, and the probes that watch what is kept.
use rule dataset as stream with:
    output:
        edits=f"results/datasets/{PLAN.scale['scale']}-{{dataset}}/edits.jsonl",
        probes=f"results/datasets/{PLAN.scale['scale']}-{{dataset}}/probes.jsonl",
        manifest=f"results/datasets/{PLAN.scale['scale']}-{{dataset}}/manifest.json",
    wildcard_constraints:
        dataset=one_of(others(STREAMS, TO_LEARN_FROM)),


# With something for learned editors to learn from: subjects that no table edits.
use rule dataset as dataset_to_learn_from with:
    output:
        edits=f"results/datasets/{PLAN.scale['scale']}-{{dataset}}/edits.jsonl",
        learning=f"results/datasets/{PLAN.scale['scale']}-{{dataset}}/learning.jsonl",
        manifest=f"results/datasets/{PLAN.scale['scale']}-{{dataset}}/manifest.json",
    wildcard_constraints:
        dataset=one_of(others(TO_LEARN_FROM, STREAMS)),


use rule dataset as stream_to_learn_from with:
    output:
        edits=f"results/datasets/{PLAN.scale['scale']}-{{dataset}}/edits.jsonl",
        probes=f"results/datasets/{PLAN.scale['scale']}-{{dataset}}/probes.jsonl",
        learning=f"results/datasets/{PLAN.scale['scale']}-{{dataset}}/learning.jsonl",
        manifest=f"results/datasets/{PLAN.scale['scale']}-{{dataset}}/manifest.json",
    wildcard_constraints:
        dataset=one_of(name for name in STREAMS if name in TO_LEARN_FROM),
