"""The house's rules: imports go one way, folders are flat, and the wheel has all of them."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "eval": set(),
    "distill": {"eval"},
    "prune": {"eval"},
    "export": {"eval"},
    "recipes": {"eval", "distill", "prune", "export", "paredown"},
    "paredown": {"eval", "distill", "prune", "export", "recipes"},
}
FOLDERS = tuple(MAY_IMPORT)
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.py"))]
STANDALONE = (
    "export/predict.py", "export/predict_text.py", "export/generator.py", "export/verify.py",
)  # fmt: skip
BESIDE = {"rows", "generator", "jinja2"}  # files of the folder, and what messages need


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import in a file; relative ones start with paredown."""
    package = "paredown" if path.parent.name == "paredown" else f"paredown.{path.parent.name}"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                kept = package.split(".")[: len(package.split(".")) - node.level + 1]
                assert kept, f"{path.name}:{node.lineno} imports from above paredown"
                base = ".".join([*kept, base]).rstrip(".")
            for name in node.names:
                yield node.lineno, f"{base}.{name.name}"


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_go_one_way(path: Path) -> None:
    own = path.parent.name
    for line, target in imported(path):
        parts = target.split(".")
        if parts[0] in FOLDERS and parts[0] != "paredown":
            pytest.fail(f"{name(path)}:{line} imports {target}; write it as relative to paredown")
        if parts[0] != "paredown":
            continue
        to = parts[1] if len(parts) > 1 and parts[1] in FOLDERS else "paredown"
        allowed = MAY_IMPORT[own] | {own}
        assert to in allowed, f"{name(path)}:{line}: {own} may not import {to} ({target})"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_inside_the_house_imports_are_relative(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and not node.level:
            assert (node.module or "").split(".")[0] != "paredown", f"{name(path)}:{node.lineno}"


@pytest.mark.parametrize("file", STANDALONE)
def test_what_a_folder_carries_runs_where_only_three_packages_are(file: str) -> None:
    allowed = {"numpy", "onnxruntime", "tokenizers", *sys.stdlib_module_names}
    others = {target for _, target in imported(ROOT / file) if target.split(".")[0] not in allowed}
    here = {target for target in others if target.startswith("paredown.export.")}
    shipped = {name.removesuffix(".py").replace("/", ".") for name in STANDALONE}
    assert {target.rpartition(".")[0] for target in here} <= {f"paredown.{n}" for n in shipped}
    assert {target.split(".")[0] for target in others - here} <= BESIDE


def test_folders_are_flat_and_all_in_the_package_list() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    setuptools = config["tool"]["setuptools"]
    expected = {"paredown" if f == "paredown" else f"paredown.{f}": f for f in FOLDERS}
    assert set(setuptools["packages"]) == set(expected)
    assert setuptools["package-dir"] == expected
    for folder in FOLDERS:
        assert (ROOT / folder / "__init__.py").is_file()
        inside = [p.name for p in (ROOT / folder).iterdir() if p.is_dir()]
        assert set(inside) <= {"__pycache__"}, f"{folder}/ has a folder that no wheel would hold"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_nothing_unsafe_is_read_or_run(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    unsafe = r"trust_remote_code\s*=\s*True|weights_only\s*=\s*False|pickle\.loads?\(|yaml\.load\("
    assert not re.search(unsafe, text)


def test_every_pin_is_exact_and_covers_what_is_declared() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", pin) for pin in pins)
    pinned = {canonical(pin.split("==")[0]) for pin in pins}
    extras = config["optional-dependencies"]
    used = [*config["dependencies"], *extras["demo"], *extras["bench"], *extras["dev"]]
    declared = {canonical(re.split(r"[<>=\[;!~ ]", entry)[0]) for entry in used} - {"paredown"}
    assert declared <= pinned


def canonical(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def test_the_wheel_holds_every_module_recipe_and_template(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for folder in FOLDERS:
        copytree(ROOT / folder, source / folder, ignore=ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "LICENSE", "README.md"):
        (source / file).write_bytes((ROOT / file).read_bytes())
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--quiet"]
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, "-w", str(tmp_path), str(source)],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        texts = {n: archive.read(n).decode() for n in names if n.endswith(("entry_points.txt",))}
    for folder in FOLDERS:
        inside = "paredown" if folder == "paredown" else f"paredown/{folder}"
        for path in (ROOT / folder).iterdir():
            if path.suffix in (".py", ".yaml", ".html", ".css", ".js", ".txt", ".typed"):
                assert f"{inside}/{path.name}" in names
    assert {n.split("/")[0].split("-")[0] for n in names} == {"paredown"}
    assert any(n.endswith("licenses/LICENSE") for n in names)
    assert "paredown = paredown.recipes.cli:main" in "".join(texts.values())
