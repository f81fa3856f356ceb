"""How sensitive each layer is: the measurements, and the layers that are selected by them."""

from holdfast.probing.options import ProbeOptions

__all__ = ["ProbeOptions"]
