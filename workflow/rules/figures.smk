# Tables and figures. They read result files only: nothing is computed again, and torch is not loaded.


rule table:
    input:
        metrics=lambda wildcards: [
            f"{directory}/metrics.parquet"
            for directory in figure_runs(wildcards.figure)
        ],
        gates=lambda wildcards: figure_gates(wildcards.figure),
    output:
        csv=f"{FIGURES}/{{figure}}.csv",
        markdown=f"{FIGURES}/{{figure}}.md",
        latex=f"{FIGURES}/{{figure}}.tex",
        picture=report(
            f"{FIGURES}/{{figure}}.png",
            caption="../report/table.rst",
            category="Tables",
            labels={"table": "{figure}"},
        ),
        caption=f"{FIGURES}/{{figure}}.caption.md",
    log:
        "logs/figures/{figure}.log",
    benchmark:
        "results/benchmarks/figures/{figure}.jsonl"
    wildcard_constraints:
        figure=one_of(TABLES),
    priority: figure_turn
    conda:
        "../../envs/plot.yaml"
    threads: 1
    resources:
        mem_mb=job("figure", "mem_mb", 2000),
        runtime=job("figure", "runtime", 10),
    params:
        runs=lambda wildcards: figure_runs(wildcards.figure),
        out=lambda wildcards, output: Path(output.csv).parent,
        spec=figure_spec,
        code=figure_code,
    message:
        "Writing the table {wildcards.figure}"
    shell:
        "python -m palimpsest figure {wildcards.figure} --spec {params.spec:q} --runs {params.runs} --out {params.out} 2> {log}"


rule figure:
    input:
        metrics=lambda wildcards: [
            f"{directory}/metrics.parquet"
            for directory in figure_runs(wildcards.figure)
        ],
        gates=lambda wildcards: figure_gates(wildcards.figure),
        curves=lambda wildcards: figure_curves(wildcards.figure),
        toy=lambda wildcards: (
            [TOY] if PLAN.figures[wildcards.figure].spec["drawer"] == "toy" else []
        ),
    output:
        pdf=f"{FIGURES}/{{figure}}.pdf",
        svg=report(
            f"{FIGURES}/{{figure}}.svg",
            caption="../report/figure.rst",
            category="Figures",
            labels={"figure": "{figure}"},
        ),
        png=f"{FIGURES}/{{figure}}.png",
        csv=f"{FIGURES}/{{figure}}.csv",
        caption=f"{FIGURES}/{{figure}}.caption.md",
    log:
        "logs/figures/{figure}.log",
    benchmark:
        "results/benchmarks/figures/{figure}.jsonl"
    wildcard_constraints:
        figure=one_of(PICTURES),
    priority: figure_turn
    conda:
        "../../envs/plot.yaml"
    threads: 1
    resources:
        mem_mb=job("figure", "mem_mb", 2000),
        runtime=job("figure", "runtime", 10),
    params:
        runs=lambda wildcards: figure_runs(wildcards.figure),
        out=lambda wildcards, output: Path(output.csv).parent,
        spec=figure_spec,
        code=figure_code,
    message:
        "Drawing {wildcards.figure}"
    shell:
        "python -m palimpsest figure {wildcards.figure} --spec {params.spec:q} --runs {params.runs} --out {params.out} 2> {log}"


# GRACE's illustrative figure needs no model: a small classifier in the plane, seconds on one core.
rule grace_toy_points:
    output:
        TOY,
    log:
        "logs/toy.log",
    benchmark:
        "results/benchmarks/toy.jsonl"
    priority: QUICK
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=job("toy", "mem_mb", 2000),
        runtime=job("toy", "runtime", 10),
    params:
        out=lambda wildcards, output: Path(output[0]).parent,
        spec=spec_json(PLAN.scale.get("toy", {})),
        code=code("palimpsest.toy"),
    message:
        "Editing a small classifier in the plane"
    shell:
        "python -m palimpsest toy --spec {params.spec:q} --out {params.out} 2> {log}"
