rule data:
    input:
        flow.cfg.data.files(),
        flow.code("data"),
    output:
        prompts=f"{flow.layout.data}/prompts.parquet",
        metrics=f"{flow.layout.data}/metrics.json",
    log:
        f"{flow.layout.data}/log.txt",
    params:
        settings=flow.settings("data"),
    message:
        "data {flow.study.name}"
    shell:
        'python -m holdfast data @overrides @hydra.run.dir="$(dirname {output.metrics:q})" 2>&1 | tee {log:q}'
