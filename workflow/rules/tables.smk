rule tables:
    input:
        flow.measured(),
        "src/holdfast/tables.py",
    output:
        flow.tables(),
        metrics=flow.layout.tables / "metrics.json",
    log:
        flow.layout.root / "tables.log",
    conda:
        "../../environment.yml"
    params:
        settings=flow.settings("tables"),
    message:
        "tables {flow.study.name}"
    shell:
        "eval python -m holdfast.tables $HOLDFAST_OVERRIDES hydra.run.dir=$(dirname {output.metrics}) 2>&1 | tee {log}"
