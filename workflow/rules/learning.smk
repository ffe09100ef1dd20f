# Editors that learn before they edit. One training for each model, data set and variant (or the one it is `trained_as`):
# seed `training_seed` of the scale, whatever the seed of the runs that edit with it.
#   results/editors/{trained}/seed={seed}/    weights.safetensors, trained.json, training.csv (the losses);
#   when it diverged: diverged.csv and diverged.safetensors, no outputs, so that they outlive the failed job


rule train_editor:
    input:
        model=training_model,
        examples=training_examples,
        parts=training_parts,
    output:
        weights="results/editors/{trained}/seed={seed}/weights.safetensors",
        description="results/editors/{trained}/seed={seed}/trained.json",
        curve="results/editors/{trained}/seed={seed}/training.csv",
    log:
        "logs/editors/{trained}/seed={seed}.log",
    benchmark:
        "results/benchmarks/editors/{trained}/seed={seed}.jsonl"
    priority: training_turn
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=job("training", "mem_mb", 4000),
        runtime=job("training", "runtime", 60),
        gpu=DEVICE_GPUS,
    params:
        model=lambda wildcards, input: Path(input.model).parent,
        out=lambda wildcards, output: Path(output.description).parent,
        spec=lambda wildcards: spec_json(PLAN.trainings()[wildcards.trained].spec),
        code=training_code,
    message:
        "Training {wildcards.trained}, seed {wildcards.seed}"
    shell:
        "python -m palimpsest train-editor --spec {params.spec:q} --seed {wildcards.seed} --model {params.model}"
        " --dataset {input.examples} --out {params.out} --threads {threads} 2> {log}"
