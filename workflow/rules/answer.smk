rule answer:
    input:
        flow.layout.data / "metrics.json",
        lambda w: flow.base(w.model),
        flow.code("answer"),
    output:
        answers=flow.layout.answer("{model}") / "answers.parquet",
        metrics=flow.layout.answer("{model}") / "metrics.json",
    log:
        flow.layout.answer("{model}") / "log.txt",
    threads: lambda w: flow.threads(w.model)
    resources:
        gpu=lambda w: flow.gpus(w.model),
    params:
        settings=lambda w: flow.settings("answer", model=w.model),
    message:
        "answer {wildcards.model}"
    shell:
        "HOLDFAST_GPUS={resources.gpu} "
        "python -m holdfast.runtime.warm answer @overrides model={wildcards.model} "
        '@hydra.run.dir="$(dirname {output.metrics:q})" 2>&1 | tee {log:q}'
