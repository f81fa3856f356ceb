rule probe:
    input:
        flow.layout.align("{model}", "{seed}") / "metrics.json",
        "src/holdfast/probe.py",
    output:
        rises=flow.layout.probe("{model}", "{seed}") / "sensitivity.parquet",
        metrics=flow.layout.probe("{model}", "{seed}") / "metrics.json",
    log:
        flow.layout.probe("{model}", "{seed}") / "log.txt",
    conda:
        "../../environment.yml"
    resources:
        gpu=flow.gpu,
    params:
        settings=lambda w: flow.settings("probe", w.model),
    message:
        "probe {wildcards.model} seed {wildcards.seed}"
    shell:
        "eval python -m holdfast.probe $HOLDFAST_OVERRIDES model={wildcards.model} seed={wildcards.seed} "
        "hydra.run.dir=$(dirname {output.metrics}) 2>&1 | tee {log}"
