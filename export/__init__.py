"""What a team deploys, checked against the model it came from."""

from .formats import (
    FORMATS,
    Exporter,
    Format,
    export_model,
    format_options,
    get_format,
    register_format,
)
from .options import Option
from .runner import load

__all__ = [
    "FORMATS",
    "Exporter",
    "Format",
    "Option",
    "export_model",
    "format_options",
    "get_format",
    "load",
    "register_format",
]
