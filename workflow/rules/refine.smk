def probed(wildcards):
    made = flow.layout.probe(wildcards.model, wildcards.seed) / "metrics.json"
    return made if flow.probed(wildcards.model, wildcards.method) else []


rule refine:
    input:
        flow.layout.align("{model}", "{seed}") / "metrics.json",
        probed,
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
        "python -m holdfast.refine {flow.arguments} model={wildcards.model} method={wildcards.method} "
        "seed={wildcards.seed} hydra.run.dir=$(dirname {output.metrics}) 2>&1 | tee {log}"
