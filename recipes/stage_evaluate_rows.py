"""Stage ``evaluate-rows``: what the evaluation reads beside the task's own rows.

It comes right after ``data``, so that a column or file that is missing is told before anything is
trained, and depends on nothing else, so that asking for another slice makes nothing anew but the
evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..eval.checkpoints import sha256
from ..eval.data import Data
from ..eval.errors import RecipeError
from ..eval.out_of_scope import read_out_of_scope
from ..eval.slice_columns import read_slice_columns
from ..eval.sources import open_source
from ..eval.tables import Table
from ..eval.tasks import get_task
from .schema import Recipe
from .stage_data import data_settings
from .store import Context, Folder, Stage

if TYPE_CHECKING:
    import pyarrow as pa

SLICES = "slices.arrow"
OUT_OF_SCOPE = "out_of_scope.arrow"


def evaluate_rows_stage(recipe: Recipe, data: Folder) -> Stage | None:
    """Reads the columns that slice the test rows, and the rows out of scope; None for neither."""
    names, file = recipe.evaluate.slices, recipe.evaluate.out_of_scope
    if not names and file is None:
        return None
    if file is not None and not Path(file).is_file():
        raise RecipeError(f"evaluate.out_of_scope: there is no file '{file}'.")
    settings: dict[str, Any] = {
        "task": recipe.task,
        "seed": recipe.data.seed,
        "slices": names,
        "columns": recipe.data.columns,
        "out_of_scope": sha256(Path(file)) if file else None,
        "suffix": Path(file).suffix if file else None,
    }

    def work(context: Context) -> None:
        rows = Data.open(context.inputs["data"])
        if names:
            tables = _tables(recipe)
            columns = read_slice_columns(
                tables, recipe.data.columns, get_task(recipe.task), rows, names
            )
            _write(context.out / SLICES, columns)
        if file is not None:
            texts = read_out_of_scope(Path(file), recipe.data.columns, rows)
            pair = {"text_pair": [row[1] for row in texts]} if len(texts[0]) > 1 else {}
            _write(context.out / OUT_OF_SCOPE, {"text": [row[0] for row in texts], **pair})

    return Stage("evaluate-rows", "stage_evaluate_rows", settings, {"data": data}, work)


def _tables(recipe: Recipe) -> Mapping[str, Table]:
    said = data_settings(recipe)
    source = open_source(
        said.source,
        said.files,
        config=said.config,
        revision=said.revision,
        seed=recipe.data.seed,
    )
    return source.tables


def slice_values(folder: Path | None) -> dict[str, list[str]]:
    """By column, the value of each test row; nothing where no column was asked for."""
    table = None if folder is None else _read(folder / SLICES)
    return {} if table is None else {n: table[n].to_pylist() for n in table.column_names}


def out_of_scope_texts(folder: Path | None) -> tuple[list[str], list[str] | None] | None:
    """Texts and second texts of the rows out of scope; None where there are none."""
    table = None if folder is None else _read(folder / OUT_OF_SCOPE)
    if table is None:
        return None
    columns = {name: table[name].to_pylist() for name in table.column_names}
    return columns["text"], columns.get("text_pair")


def _write(path: Path, columns: dict[str, list[str]]) -> None:
    import pyarrow as pa

    table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _read(path: Path) -> pa.Table | None:
    import pyarrow as pa

    if not path.exists():
        return None
    with pa.OSFile(str(path), "rb") as source:
        return pa.ipc.open_file(source).read_all()
