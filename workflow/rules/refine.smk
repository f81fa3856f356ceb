rule refine:
    input:
        flow.layout.align("{model}", "{seed}") / "metrics.json",
        lambda w: flow.probes(w.model, w.method, w.seed),
        "src/holdfast/refine.py",
    output:
        metrics=flow.layout.refine("{model}", "{method}", "{seed}") / "metrics.json",
    log:
        flow.layout.refine("{model}", "{method}", "{seed}") / "log.txt",
    conda:
        "../../environment.yml"
    resources:
        gpu=flow.gpu,
    params:
        settings=lambda w: flow.settings("refine", w.model, w.method),
    message:
        "refine {wildcards.model} by {wildcards.method}, seed {wildcards.seed}"
    shell:
        "eval python -m holdfast.refine $HOLDFAST_OVERRIDES model={wildcards.model} method={wildcards.method} "
        "seed={wildcards.seed} hydra.run.dir=$(dirname {output.metrics}) 2>&1 | tee {log}"
