rule probe:
    input:
        flow.layout.align("{model}", "{recipe}", "{seed}") / "metrics.json",
        lambda w: flow.elicited(w.model, w.recipe, w.seed),
        lambda w: flow.answered(w.model),
        flow.code("probe"),
    output:
        rises=flow.layout.probe("{model}", "{recipe}", "{seed}") / "sensitivity.parquet",
        online=flow.layout.probe("{model}", "{recipe}", "{seed}") / "online.parquet",
        outcomes=flow.layout.probe("{model}", "{recipe}", "{seed}") / "outcomes.parquet",
        metrics=flow.layout.probe("{model}", "{recipe}", "{seed}") / "metrics.json",
    log:
        flow.layout.probe("{model}", "{recipe}", "{seed}") / "log.txt",
    threads: lambda w: flow.threads(w.model, flow.processes(w.model))
    resources:
        gpu=lambda w: flow.gpus(w.model, flow.processes(w.model)),
        processes=lambda w: flow.processes(w.model),
    params:
        settings=lambda w: flow.settings("probe", model=w.model, align=w.recipe),
    message:
        "probe {wildcards.model} by {wildcards.recipe}, seed {wildcards.seed}"
    shell:
        "HOLDFAST_GPUS={resources.gpu} HOLDFAST_PROCESSES={resources.processes} "
        "python -m holdfast.runtime.warm probe @overrides model={wildcards.model} align={wildcards.recipe} "
        "seed={wildcards.seed} "
        '@hydra.run.dir="$(dirname {output.metrics:q})" 2>&1 | tee {log:q}'
