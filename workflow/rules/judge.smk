rule judge:
    input:
        flow.layout.evaluate("{model}", "{recipe}", "{method}", "{seed}") / "answers.parquet",
        lambda w: flow.referee(w.model),
        flow.code("judge"),
    output:
        records=flow.layout.judged("{model}", "{recipe}", "{method}", "{seed}") / "records.parquet",
        metrics=flow.layout.judged("{model}", "{recipe}", "{method}", "{seed}") / "metrics.json",
    log:
        flow.layout.judged("{model}", "{recipe}", "{method}", "{seed}") / "log.txt",
    resources:
        gpu=lambda w: flow.gpus(w.model),
    params:
        settings=lambda w: flow.settings("judge", model=w.model),
    message:
        "judge {wildcards.model} by {wildcards.recipe} after {wildcards.method}, seed {wildcards.seed}"
    shell:
        "HOLDFAST_GPUS={resources.gpu} "
        "python -m holdfast.runtime.warm judge @overrides model={wildcards.model} align={wildcards.recipe} "
        'method={wildcards.method} seed={wildcards.seed} @hydra.run.dir="$(dirname {output.metrics:q})" 2>&1 | tee {log:q}'
