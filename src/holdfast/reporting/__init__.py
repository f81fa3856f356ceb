"""Tables and figures. Each is drawn from the records by a function that a notebook can call."""

from holdfast.reporting.claims import claims_table, terminal_claims
from holdfast.reporting.cost import cost, timing
from holdfast.reporting.judges import judges
from holdfast.reporting.measured import Measured
from holdfast.reporting.optimizers import optimizers
from holdfast.reporting.quantization import quantization
from holdfast.reporting.render import Table
from holdfast.reporting.selection import selection
from holdfast.reporting.setting import Setting
from holdfast.reporting.tables import dose_response, main_table, terminal
from holdfast.reporting.tasks import tasks

__all__ = [
    "Measured",
    "Setting",
    "Table",
    "claims_table",
    "cost",
    "dose_response",
    "judges",
    "main_table",
    "optimizers",
    "quantization",
    "selection",
    "tasks",
    "terminal",
    "terminal_claims",
    "timing",
]
