# Plain names for parts of the graph: `snakemake comeba_fig4`, `snakemake comeba`, `snakemake memit`, `snakemake seed_0`, ...
rule figures:
    input:
        drawn(),
    localrule: True


rule data:
    input:
        [f"{dataset_dir(name)}/edits.jsonl" for name in PLAN.scale["datasets"]],
        [f"results/data/{name}/manifest.json" for name in PLAN.scale["sources"]],
    localrule: True


rule models:
    input:
        [f"results/models/{name}/manifest.json" for name in PLAN.models_used()],
        [
            f"results/models/{model}/gate-{dataset}.json"
            for model in PLAN.models_used()
            for dataset in PLAN.datasets_of(model)
            if PLAN.scale["gate"]["mode"] != "off"
        ],
    localrule: True


rule statistics:
    input:
        [
            f"results/statistics/{model}/covariance.safetensors"
            for model in PLAN.models_used()
            if PLAN.statistics_layers(model)
        ],
    localrule: True


rule editors:
    input:
        training_curves(),
    localrule: True


rule runs:
    input:
        run_files(),
    localrule: True


# One name per table and figure.
for name in PLAN.figures:

    rule:
        name:
            name
        input:
            figure_files(name),
        localrule: True


# One name per paper.
GROUPS = sorted({PLAN.config.experiments[name]["group"] for name in PLAN.figures})

for group in GROUPS:

    rule:
        name:
            group
        input:
            [
                file
                for name in PLAN.figures
                if PLAN.config.experiments[name]["group"] == group
                for file in figure_files(name)
            ],
            claims_of(
                {
                    PLAN.config.experiments[name]["paper"]
                    for name in PLAN.figures
                    if PLAN.config.experiments[name]["group"] == group
                }
            ),
        localrule: True


# One name per editor (all its runs), and per seed. `grace`, `mend` and `serac` are names of papers too, and mean these: the editors are
# `editor_grace` and so on there.
for editor in PLAN.config.editors:

    rule:
        name:
            f"editor_{editor}" if editor in GROUPS else editor
        input:
            functools.partial(runs_of_editor, editor),
        localrule: True


for seed in sorted({seed for _, seed in PLAN.run_seeds()}):

    rule:
        name:
            f"seed_{seed}"
        input:
            [
                f"results/runs/{run}/seed={number}/metrics.parquet"
                for run, number in PLAN.run_seeds()
                if number == seed
            ],
        localrule: True
