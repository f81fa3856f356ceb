rule elicit:
    input:
        flow.layout.align("{model}", "{recipe}", "{seed}") / "metrics.json",
        lambda w: flow.answered(w.model),
        flow.code("elicit"),
    output:
        own=flow.layout.elicit("{model}", "{recipe}", "{seed}") / "own.parquet",
        metrics=flow.layout.elicit("{model}", "{recipe}", "{seed}") / "metrics.json",
    log:
        flow.layout.elicit("{model}", "{recipe}", "{seed}") / "log.txt",
    threads: lambda w: flow.threads(w.model)
    resources:
        gpu=lambda w: flow.gpus(w.model),
    params:
        settings=lambda w: flow.settings("elicit", model=w.model, align=w.recipe),
    message:
        "elicit {wildcards.model} by {wildcards.recipe}, seed {wildcards.seed}"
    shell:
        "HOLDFAST_GPUS={resources.gpu} "
        "python -m holdfast.runtime.warm elicit @overrides model={wildcards.model} align={wildcards.recipe} "
        "seed={wildcards.seed} "
        '@hydra.run.dir="$(dirname {output.metrics:q})" 2>&1 | tee {log:q}'
