import sys
from pathlib import Path

from snakemake.utils import min_version

from holdfast.errors import UserError
from holdfast.runtime import warm
from holdfast.workflow.grid import Workflow
from holdfast.workflow.lock import take_over

min_version("9.0")

try:
    flow = Workflow(config)
except UserError as error:
    sys.exit(f"{error}")
if workflow.is_main_process:
    take_over(Path(".snakemake"))
config["study"], config["settings"], config["opening"] = flow.study.name, flow.composed, flow.opening


report: "workflow/report/study.rst"


localrules:  # on the machine that calls a cluster, which has a network
    data,


# CUDA does not survive a fork, and is for models beside which an import takes no time.
onstart:
    if not flow.on_gpu:
        warm.start()


# Tab completion adds a slash; all of these are the same target.
for place, target in enumerate(("results/tables", f"{flow.layout.tables}")):
    for slash in ("", "/"):

        rule:
            name:
                f"{target}{slash}"
            default_target: not (place or slash)
            input:
                lambda w: flow.targets(),  # not asked where a cluster runs one job
            message:
                "tables and figures of {flow.study.name}"


include: "workflow/rules/data.smk"
include: "workflow/rules/pretrain.smk"
include: "workflow/rules/answer.smk"
include: "workflow/rules/align.smk"
include: "workflow/rules/elicit.smk"
include: "workflow/rules/probe.smk"
include: "workflow/rules/refine.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/judge.smk"
include: "workflow/rules/tables.smk"
