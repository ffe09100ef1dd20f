# The papers' sentences, judged on this scale's runs.
CLAIMS = [f"{FIGURES}/claims.csv", f"{FIGURES}/claims.md"]


def claims_spec():
    """Which experiments are there, and which runs belong to them."""
    return spec_json(
        {
            "scale": PLAN.scale["scale"],
            "paper": "comeba_hk",
            "datasets": {name: name for name in PLAN.scale["datasets"]},
            **PLAN.scale["claims"],
            "experiments": {
                name: list(figure.runs)
                for name, figure in PLAN.figures.items()
                if figure.runs
            },
        }
    )


rule claims:
    input:
        metrics=[
            f"results/runs/{run}/seed={seed}/metrics.parquet"
            for run, seed in PLAN.run_seeds()
        ],
    output:
        csv=f"{FIGURES}/claims.csv",
        markdown=report(
            f"{FIGURES}/claims.md",
            caption="../report/claims.rst",
            category="Claims",
        ),
    log:
        "logs/claims.log",
    benchmark:
        "results/benchmarks/claims.jsonl"
    conda:
        "../../envs/plot.yaml"
    threads: 1
    resources:
        mem_mb=job("claims", "mem_mb", 2000),
        runtime=job("claims", "runtime", 10),
    params:
        out=FIGURES,
        spec=claims_spec(),
        code=code("palimpsest.claims", published=True),
    message:
        "Judging the claims"
    shell:
        "python -m palimpsest claims --spec {params.spec:q} --results results --out {params.out} 2> {log}"
