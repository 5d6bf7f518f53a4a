"""Makes pages of one file: style, scripts, the plots' library and the data within, nothing outside.

Texts of the data are a stranger's. The template engine escapes them, characters that cannot be seen
are made visible, and the page's policy lets nothing run but its own scripts, each by its hash, and
nothing be fetched at all. Plots are drawn by plotly.js (``plotly-basic.min.js``, MIT licence) from
figures that stand in the page as JSON.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from . import figures, plot

if TYPE_CHECKING:
    from jinja2 import Environment

PLOTLY = "plotly-basic.min.js"
# plotly.js adds a style element that is empty, and fills it by rules, which needs no further leave.
_EMPTY = "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="


def render(template: str, charts: Mapping[str, Any], **values: Any) -> str:
    """A whole page as text.

    Args:
        template: Name of a template in this folder that extends ``page.html``.
        charts: Figures (`charts.py`) by the name that the template gives their place.
        values: What the template shows. Texts are escaped there.
    """
    from markupsafe import Markup

    style = read_part("page.css")
    scripts = [read_part(PLOTLY), read_part("page.js")] if charts else [read_part("page.js")]
    return (
        _environment()
        .get_template(template)
        .render(
            style=Markup(style),
            scripts=[Markup(script) for script in scripts],
            policy=policy(style, scripts),
            charts=set(charts),
            charts_json=Markup(embedded(charts)),
            **values,
        )
    )


@lru_cache
def _environment() -> Environment:
    """Reads templates once."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(read_part),
    )
    environment.filters.update(
        count=figures.count,
        size=figures.size,
        share=figures.share,
        fine_share=figures.fine_share,
        span=figures.span,
        points=figures.points,
        whole=figures.whole,
        digits=figures.digits,
        quality=figures.quality,
        seconds=figures.seconds,
        signed=figures.signed,
        signed_span=figures.signed_span,
        metric_name=figures.metric_name,
        visible=visible,
        bar=lambda value: Markup(plot.share_bar(value)),
    )
    return environment


def policy(style: str, scripts: list[str]) -> str:
    """A content security policy: one style and some scripts may run, nothing may be fetched."""
    running = " ".join(f"'{_digest(script)}'" for script in scripts)
    return (
        f"default-src 'none'; style-src '{_digest(style)}' '{_EMPTY}'; script-src {running}; "
        "base-uri 'none'; form-action 'none'"
    )


@lru_cache
def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def embedded(value: Any) -> str:
    r"""JSON that can stand in a script element, whatever texts are in it.

    Examples:
        >>> print(embedded({"a": "</script>"}))
        {"a":"\u003c/script\u003e"}
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate({ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"})


@lru_cache
def read_part(name: str) -> str:
    """A file of a page: a template, the style, a script."""
    text = resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
    # a script's or style's hash is of what the browser reads: with its line ends made plain
    return text.replace("\r\n", "\n").replace("\r", "\n")


def unbroken(text: str) -> str:
    """Keeps numbers and their units on one line, and sets typographic apostrophes."""
    apostrophes = text.replace("'", "\N{RIGHT SINGLE QUOTATION MARK}")
    return re.sub(r"(?<=\d) (?=[%kMGTms])", "\N{NO-BREAK SPACE}", apostrophes)


def visible(text: Any) -> str:
    """Makes control, formatting and unassigned characters visible, so that none rearranges text."""
    return "".join(
        char
        if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Cn", "Co")
        else "\N{REPLACEMENT CHARACTER}"
        for char in str(text)
    )
