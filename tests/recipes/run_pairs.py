"""Runs to compare: made of their reports alone, or with data and answers on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from paredown.eval.arrow_files import LABELLED, ArrowFiles
from paredown.eval.compare import Interval
from paredown.recipes.compare import Comparison, Entry, Run
from paredown.recipes.compare_rows import Difference

from .full_report import full_report

Make = Callable[..., dict[str, Any]]
LABELS = ["a", "b", "c"]


def made_up_comparison(make_report: Make) -> Comparison:
    """Three runs whose figures are given."""
    entries = []
    for place, name in enumerate(("query_intent", "query_intent-4-layers", "query_intent-int8")):
        report = full_report(make_report)
        report["recipe"]["prune"]["layers"] = 2 + place
        run = Run(name, Path(name), report)
        kept = 0.985 - 0.006 * place
        entries.append(Entry(run, kept, [kept - 0.009, kept + 0.008], 0.18 / (1 + place)))
    pairs = [(1, 0, -0.004), (2, 0, -0.012), (2, 1, -0.008)]
    differences = [
        Difference(
            entries[a].run.name,
            entries[b].run.name,
            Interval(value, value - 0.007, value + 0.006, 3080),
        )
        for a, b, value in pairs
    ]
    return Comparison("accuracy", 3080, entries, differences, ["A note."])


def run_folder(
    folder: Path,
    make_report: Make,
    labels: Sequence[int],
    teacher: Sequence[int],
    students: Sequence[Sequence[int]],
    *,
    texts: Sequence[str] | None = None,
    fingerprint: str = "a1b2",
    **changes: Any,
) -> Path:
    """A finished run of a classifier: its report, its test rows, and every model's decisions."""
    rows = len(labels)
    report = full_report(make_report)
    right = np.asarray(labels) == np.asarray(teacher)
    kept = [float(np.mean(np.asarray(labels) == np.asarray(one))) for one in students]
    report["quality"] |= {
        "teacher": float(right.mean()),
        "student": float(np.mean(kept)),
        "retention": float(np.mean(kept) / right.mean()),
        "examples": rows,
        "seeds": [{"seed": i, "student": k, "retention": None} for i, k in enumerate(kept)],
    }
    report["stages"] = [{"name": "data", "seconds": 1.0, "fingerprint": fingerprint}]
    report |= changes
    data, evaluation = folder / "stages" / "data", folder / "stages" / "evaluate"
    data.mkdir(parents=True)
    evaluation.mkdir()
    with ArrowFiles(data, {"test": LABELLED}) as files:
        for place, label in enumerate(labels):
            files.add("test", texts[place] if texts else f"text {place}", label)
    info = {"task": "classification", "rows": {"test": rows}, "labels": LABELS, "fingerprint": "x"}
    (data / "data.json").write_text(json.dumps(info))
    answers = {"teacher": teacher, **{f"student-{i}": one for i, one in enumerate(students)}}
    table = pa.table({name: pa.array([[int(one)] for one in a]) for name, a in answers.items()})
    with (
        pa.OSFile(str(evaluation / "scores.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table)
    (folder / "report.json").write_text(json.dumps(report))
    (folder / "recipe.yaml").write_text("name: query_intent\n")
    return folder
