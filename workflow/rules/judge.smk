rule judge:
    input:
        flow.layout.evaluate("{model}", "{recipe}", "{method}", "{seed}") / "answers.parquet",
        lambda w: flow.referee(w.model, w.judge),
        lambda w: flow.answered(w.model),
        lambda w: flow.code("judge", judge=w.judge),
    output:
        records=flow.layout.by("{judge}").judged("{model}", "{recipe}", "{method}", "{seed}") / "records.parquet",
        metrics=flow.layout.by("{judge}").judged("{model}", "{recipe}", "{method}", "{seed}") / "metrics.json",
    log:
        flow.layout.by("{judge}").judged("{model}", "{recipe}", "{method}", "{seed}") / "log.txt",
    threads: lambda w: flow.threads(w.model)
    resources:
        gpu=lambda w: flow.gpus(w.model),
    params:
        settings=lambda w: flow.settings("judge", model=w.model, judge=w.judge),
    message:
        "judge {wildcards.model} by {wildcards.recipe} after {wildcards.method}, seed {wildcards.seed}: {wildcards.judge}"
    shell:
        "HOLDFAST_GPUS={resources.gpu} "
        "python -m holdfast.runtime.warm judge @overrides model={wildcards.model} align={wildcards.recipe} "
        "method={wildcards.method} seed={wildcards.seed} judge={wildcards.judge} "
        '@hydra.run.dir="$(dirname {output.metrics:q})" 2>&1 | tee {log:q}'
