for product in flow.products:

    rule:
        name:
            f"tables_{product}"
        input:
            lambda w, product=product: flow.measured(product),
            flow.code("tables"),
        output:
            [report(path, **shown) if (shown := flow.report(path)) else path for path in flow.files(product)],
            metrics=flow.layout.root / "tables" / product / "metrics.json",
        log:
            flow.layout.root / "tables" / product / "log.txt",
        params:
            settings=lambda w, product=product: flow.reported(product),
            make=flow.asked[product],
            places=[
                f"@tables.dir={flow.layout.tables}",
                f"@tables.figures={flow.layout.figures}",
                f"@tables.estimates={flow.estimates}",
            ],
        message:
            "tables {flow.study.name}: {params.make}"
        shell:
            "python -m holdfast.runtime.warm tables @overrides tables.make=[{params.make}] {params.places:q} "
            '@hydra.run.dir="$(dirname {output.metrics:q})" 2>&1 | tee {log:q}'
