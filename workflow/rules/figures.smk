# Tables and figures. They read result files only: nothing is computed again, and torch is not loaded.


def figure_runs(name):
    """Directories of the runs that go into a figure."""
    return [
        f"results/runs/{run}/seed={seed}"
        for run, seeds in PLAN.figures[name].runs.items()
        for seed in seeds
    ]


def figure_gates(name):
    """Gate files of the models a figure shows."""
    figure = PLAN.figures[name]
    if PLAN.scale["gate"]["mode"] == "off":
        return []
    return [
        f"results/models/{model}/gate-{dataset}.json"
        for model in figure.spec["models"]
        for dataset in PLAN.datasets_of(model)
        if not figure.spec["datasets"] or dataset in figure.spec["datasets"]
    ]


def figure_curves(name):
    """Loss curves, for the figure that shows them."""
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
        }
    )


def figure_code(wildcards):
    """Digest of the drawer and of the published numbers."""
    from palimpsest.figures import DRAWERS

    drawer = DRAWERS[PLAN.figures[wildcards.figure].spec["drawer"]].partition(":")[0]
    return code(drawer, published=True)(wildcards)


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
    conda:
        "../../envs/plot.yaml"
    threads: 1
    resources:
        mem_mb=job("figure", "mem_mb", 2000),
        runtime=job("figure", "runtime", 10),
    params:
        runs=lambda wildcards: figure_runs(wildcards.figure),
        out=FIGURES,
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
    conda:
        "../../envs/plot.yaml"
    threads: 1
    resources:
        mem_mb=job("figure", "mem_mb", 2000),
        runtime=job("figure", "runtime", 10),
    params:
        runs=lambda wildcards: figure_runs(wildcards.figure),
        out=FIGURES,
        spec=figure_spec,
        code=figure_code,
    message:
        "Drawing {wildcards.figure}"
    shell:
        "python -m palimpsest figure {wildcards.figure} --spec {params.spec:q} --runs {params.runs} --out {params.out} 2> {log}"
