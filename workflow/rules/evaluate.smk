rule evaluate:
    input:
        lambda w: flow.checkpoint_folder(w.model, w.method, w.seed) / "metrics.json",
        "src/holdfast/evaluate.py",
    output:
        records=flow.layout.evaluate("{model}", "{method}", "{seed}") / "records.parquet",
        metrics=flow.layout.evaluate("{model}", "{method}", "{seed}") / "metrics.json",
    log:
        flow.layout.evaluate("{model}", "{method}", "{seed}") / "log.txt",
    conda:
        "../../environment.yml"
    resources:
        gpu=flow.gpu,
    params:
        settings=lambda w: flow.settings("evaluate", w.model, w.method),
    message:
        "evaluate {wildcards.model} after {wildcards.method}, seed {wildcards.seed}"
    shell:
        "eval python -m holdfast.evaluate $HOLDFAST_OVERRIDES model={wildcards.model} method={wildcards.method} "
        "seed={wildcards.seed} hydra.run.dir=$(dirname {output.metrics}) 2>&1 | tee {log}"
