# The papers' sentences, judged on this scale's runs.


rule claims:
    input:
        metrics=claims_runs,
        toy=lambda wildcards: TOYS if paper_of(wildcards) == "grace" else [],
    output:
        csv=f"{FIGURES}/{{stem}}.csv",
        tests=f"{FIGURES}/{{stem}}_tests.csv",
        markdown=report(
            f"{FIGURES}/{{stem}}.md",
            caption="../report/claims.rst",
            category="Claims",
        ),
    log:
        "logs/{stem}.log",
    benchmark:
        "results/benchmarks/{stem}.jsonl"
    wildcard_constraints:
        stem=one_of(JUDGED.values()),
    priority: claims_turn
    conda:
        "../../envs/plot.yaml"
    threads: 1
    resources:
        mem_mb=job("claims", "mem_mb", 2000),
        runtime=job("claims", "runtime", 10),
    params:
        out=lambda wildcards, output: Path(output.csv).parent,
        spec=claims_spec,
        code=code("palimpsest.claims.judge", published=(".csv", ".yaml")),
    message:
        "Judging {wildcards.stem}"
    shell:
        "python -m palimpsest claims --spec {params.spec:q} --results results --out {params.out} 2> {log}"
