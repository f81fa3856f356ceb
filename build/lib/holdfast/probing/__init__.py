"""How much a layer matters to the alignment: the ways of asking, and what is chosen by the answers."""

from holdfast.probing.options import ProbeOptions

__all__ = ["ProbeOptions"]
