"""What a team deploys, checked against the model it came from."""

from .formats import FORMATS, Exporter, Format, export_model, get_format, register_format

__all__ = ["FORMATS", "Exporter", "Format", "export_model", "get_format", "register_format"]
