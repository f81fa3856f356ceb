rule align:
    input:
        flow.layout.data / "metrics.json",
        lambda w: flow.base(w.model),
        lambda w: flow.answered(w.model),
        lambda w: flow.code("align", model=w.model, align=w.recipe),
    output:
        metrics=flow.layout.align("{model}", "{recipe}", "{seed}") / "metrics.json",
    log:
        flow.layout.align("{model}", "{recipe}", "{seed}") / "log.txt",
    threads: lambda w: flow.threads(w.model)
    resources:
        gpu=lambda w: flow.gpus(w.model),
    params:
        settings=lambda w: flow.settings("align", model=w.model, align=w.recipe),
    message:
        "align {wildcards.model} by {wildcards.recipe}, seed {wildcards.seed}"
    shell:
        "HOLDFAST_GPUS={resources.gpu} "
        "python -m holdfast.runtime.warm align @overrides model={wildcards.model} align={wildcards.recipe} "
        "seed={wildcards.seed} "
        '@hydra.run.dir="$(dirname {output.metrics:q})" 2>&1 | tee {log:q}'
