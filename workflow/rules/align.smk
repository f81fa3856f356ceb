rule align:
    input:
        flow.layout.data / "metrics.json",
        lambda w: flow.base(w.model),
        "src/holdfast/align.py",
    output:
        metrics=flow.layout.align("{model}", "{seed}") / "metrics.json",
    log:
        flow.layout.align("{model}", "{seed}") / "log.txt",
    conda:
        "../../environment.yml"
    resources:
        gpu=flow.gpu,
    params:
        settings=lambda w: flow.settings("align", w.model),
    message:
        "align {wildcards.model} seed {wildcards.seed}"
    shell:
        "eval python -m holdfast.align $HOLDFAST_OVERRIDES model={wildcards.model} seed={wildcards.seed} "
        "hydra.run.dir=$(dirname {output.metrics}) 2>&1 | tee {log}"
