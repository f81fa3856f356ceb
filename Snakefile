import sys

from snakemake.utils import min_version

from holdfast.errors import UserError
from holdfast.runtime import warm
from holdfast.workflow.grid import Workflow

min_version("9.0")

try:
    flow = Workflow(config)
except UserError as error:
    sys.exit(f"{error}")
config["study"], config["settings"] = flow.study.name, flow.composed


report: "workflow/report/study.rst"


# CUDA does not survive a fork, and is for models beside which an import takes no time.
onstart:
    if not flow.gpu:
        warm.start()


# Tab completion adds a slash; both names are the same target.
rule:
    name:
        "results/tables"
    default_target: True
    input:
        flow.targets(),
    message:
        "tables and figures of {flow.study.name}"


rule:
    name:
        "results/tables/"
    input:
        flow.targets(),
    message:
        "tables and figures of {flow.study.name}"


include: "workflow/rules/data.smk"
include: "workflow/rules/pretrain.smk"
include: "workflow/rules/align.smk"
include: "workflow/rules/probe.smk"
include: "workflow/rules/refine.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/tables.smk"
