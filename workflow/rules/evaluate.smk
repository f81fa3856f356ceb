rule evaluate:
    input:
        lambda w: flow.checkpoint_folder(w.model, w.recipe, w.method, w.seed) / "metrics.json",
        flow.tasks(),
        lambda w: flow.answered(w.model),
        lambda w: flow.elicited(w.model, w.recipe, w.seed) if flow.cfg.evaluate.margin_draws else [],
        lambda w: flow.code("evaluate", model=w.model, method=w.method),
    output:
        answers=flow.layout.evaluate("{model}", "{recipe}", "{method}", "{seed}") / "answers.parquet",
        metrics=flow.layout.evaluate("{model}", "{recipe}", "{method}", "{seed}") / "metrics.json",
    log:
        flow.layout.evaluate("{model}", "{recipe}", "{method}", "{seed}") / "log.txt",
    threads: lambda w: flow.threads(w.model, flow.processes(w.model))
    resources:
        gpu=lambda w: flow.gpus(w.model, flow.processes(w.model)),
        processes=lambda w: flow.processes(w.model),
    params:
        settings=lambda w: flow.settings("evaluate", model=w.model, method=w.method),
    message:
        "evaluate {wildcards.model} by {wildcards.recipe} after {wildcards.method}, seed {wildcards.seed}"
    shell:
        "HOLDFAST_GPUS={resources.gpu} HOLDFAST_PROCESSES={resources.processes} "
        "python -m holdfast.runtime.warm evaluate @overrides model={wildcards.model} align={wildcards.recipe} "
        'method={wildcards.method} seed={wildcards.seed} @hydra.run.dir="$(dirname {output.metrics:q})" 2>&1 | tee {log:q}'
