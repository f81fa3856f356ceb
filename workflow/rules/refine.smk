rule refine:
    input:
        flow.layout.align("{model}", "{recipe}", "{seed}") / "metrics.json",
        lambda w: flow.needed(w.model, w.recipe, w.method, w.seed),
        lambda w: flow.answered(w.model),
        lambda w: flow.code("refine", model=w.model, method=w.method),
    output:
        metrics=flow.layout.refine("{model}", "{recipe}", "{method}", "{seed}") / "metrics.json",
    log:
        flow.layout.refine("{model}", "{recipe}", "{method}", "{seed}") / "log.txt",
    threads: lambda w: flow.threads(w.model, flow.processes(w.model, w.method))
    resources:
        gpu=lambda w: flow.gpus(w.model, flow.processes(w.model, w.method)),
        processes=lambda w: flow.processes(w.model, w.method),
    params:
        settings=lambda w: flow.settings("refine", model=w.model, method=w.method),
    message:
        "refine {wildcards.model} by {wildcards.recipe} with {wildcards.method}, seed {wildcards.seed}"
    shell:
        "HOLDFAST_GPUS={resources.gpu} HOLDFAST_PROCESSES={resources.processes} "
        "python -m holdfast.runtime.warm refine @overrides model={wildcards.model} align={wildcards.recipe} "
        'method={wildcards.method} seed={wildcards.seed} @hydra.run.dir="$(dirname {output.metrics:q})" 2>&1 | tee {log:q}'
