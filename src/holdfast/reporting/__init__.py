"""Tables and figures. Each is drawn from the records by a function that a notebook can call."""

from holdfast.reporting.tables import dose_response, main_table, terminal

__all__ = ["dose_response", "main_table", "terminal"]
