"""Which source files a stage is made of, so that a change to any of them makes it anew."""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path

SILENT = ("store", "progress", "world", "sources", "schema", "consistency")
# Modules that are named in text and imported when they are needed.
BY_NAME = {("export", "formats"): (("export", "runner"),)}
# Files that a module reads beside it.
READ = {
    ("recipes", "html"): ("report.html",),
    ("recipes", "page"): (
        "page.html", "page_parts.html", "page.css", "page.js", "plotly-basic.min.js"
    ),
}  # fmt: skip
PACKAGES = ("eval", "distill", "prune", "export", "recipes")


def _file(package: str, module: str) -> Path | None:
    """The file of ``paredown.<package>.<module>`` (the package's own file for an empty module)."""
    folder = Path(str(resources.files(f"paredown.{package}")))
    path = folder / f"{module or '__init__'}.py"
    return path if path.is_file() else None


@lru_cache
def _imports(package: str, module: str) -> tuple[tuple[str, str], ...]:
    """The modules of ours that one module imports anywhere in it, by its import statements."""
    path = _file(package, module)
    if path is None:
        return ()
    found = []
    for node in ast.walk(ast.parse(path.read_bytes())):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        parts = (node.module or "").split(".") if node.module else []
        here = package if node.level == 1 else (parts.pop(0) if parts else "")
        if here not in PACKAGES:
            continue
        if parts:
            found.append((here, parts[0]))
        else:  # from . import a, from .. import b: names may be modules
            found.append((here, ""))
            found += [(here, name.name) for name in node.names if _file(here, name.name)]
    return (*found, *BY_NAME.get((package, module), ()))


@lru_cache
def source_hash(package: str, module: str) -> str:
    """A sha256 over a module and every module of ours that it imports, however far.

    What runs stages, shows progress or checks recipes has no say in a result and is left out: what
    a recipe says is in a stage's settings.
    """
    silent = {("recipes", name) for name in SILENT}
    seen: set[tuple[str, str]] = set()
    todo = [(package, module)]
    while todo:
        at = todo.pop()
        if at in seen or at in silent:
            continue
        seen.add(at)
        todo += _imports(*at)
    digest = hashlib.sha256()
    for at in sorted(seen):
        path = _file(*at)
        if path is not None:
            digest.update(f"{at[0]}.{at[1]}\0".encode() + path.read_bytes() + b"\0")
            for name in READ.get(at, ()):
                digest.update(path.with_name(name).read_bytes())
    return digest.hexdigest()


def extension_hashes(modules: Sequence[str]) -> dict[str, str]:
    """A sha256 of the file of each module that ``--import`` names."""
    found = {}
    for name in modules:
        file = getattr(sys.modules.get(name), "__file__", None)
        content = Path(file).read_bytes() if file else name.encode()
        found[name] = hashlib.sha256(content).hexdigest()
    return found
