"""What a team deploys, checked against the model it came from."""

from .formats import FORMATS, Exporter, Format, export_model, get_format, register_format
from .runner import load

__all__ = [
    "FORMATS",
    "Exporter",
    "Format",
    "export_model",
    "get_format",
    "load",
    "register_format",
]
