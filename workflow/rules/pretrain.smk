rule pretrain:
    input:
        flow.layout.data / "metrics.json",
        flow.code("pretrain"),
    output:
        metrics=flow.layout.pretrain("{model}") / "metrics.json",
    log:
        flow.layout.pretrain("{model}") / "log.txt",
    threads: flow.cfg.pretrain.threads
    resources:
        gpu=lambda w: flow.gpus(w.model),
    params:
        settings=lambda w: flow.settings("pretrain", model=w.model),
    message:
        "pretrain {wildcards.model}"
    shell:
        "HOLDFAST_GPUS={resources.gpu} "
        "python -m holdfast pretrain @overrides model={wildcards.model} "
        '@hydra.run.dir="$(dirname {output.metrics:q})" 2>&1 | tee {log:q}'
