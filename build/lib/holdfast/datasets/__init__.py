"""Data sets: where prompts come from, and the rows that all of them are brought into."""

from holdfast.datasets.options import DATASETS, DataSet

__all__ = ["DATASETS", "DataSet"]
