"""The commands of deployment: export, verify, predict."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    Path,
    typer.Argument(
        metavar="DIR", help="An export's folder; predict also takes a checkpoint or run."
    ),
]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="Threads of the runtime [all cores].")
]


def register(app: typer.Typer) -> None:
    """Adds the commands to the command line."""
    for command in (export, verify, predict):
        app.command()(command)


def export(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="A finished run's folder, as in runs/search_query."),
    ],
    fmt: Annotated[
        str,
        typer.Option("--format", metavar="FORMAT", help="onnx, onnx-int8, …; asked for or not."),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="A new or empty folder, or an export.")
    ],
    flip_rate: Annotated[
        float | None,
        typer.Option(
            "--flip-rate", help="Largest share of test rows decided otherwise than by the student."
        ),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Hold int8 to the recipe's evaluate.flip_rate as well."),
    ] = False,
    imports: Annotated[
        list[str] | None,
        typer.Option(
            "--import", metavar="MODULE", help="A module that registers formats; repeat for more."
        ),
    ] = None,
) -> None:
    """Export a finished run's student, judged by the task on all test rows.

    Exits with 1, and writes nothing, if it decides too many of them otherwise than the student:
    more than the recipe's evaluate.flip_rate in full precision, or than --flip-rate.
    """
    from rich.console import Console

    from .deployment import export_run, print_measured

    content = export_run(
        run, fmt, out, flip_rate=flip_rate, strict=strict, imports=imports or (), quiet=False
    )
    print_measured(content, out, Console(highlight=False, soft_wrap=True))


def verify(
    folder: Model,
    flip_rate: Annotated[
        float | None,
        typer.Option("--flip-rate", help="Share of decisions that may differ [what DIR states]."),
    ] = None,
    threads: Threads = None,
) -> None:
    """Run an export's golden rows again: does it answer here as where it was made?

    Exits with 3 if more decisions differ than may, or a value differs by more than its tolerance;
    with 1 if a file is missing, damaged or was changed.
    """
    from .answering import verify as verify_export

    found = verify_export(folder, flip_rate=flip_rate, threads=threads)
    for line in found.lines:
        print(line)
    print("Verified." if found.met else "Not verified.")
    if not found.met:
        raise typer.Exit(3)


def predict(
    folder: Model,
    file: Annotated[
        str | None,
        typer.Argument(metavar="FILE", help="A .txt, .jsonl, .csv or .tsv file [stdin]."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Where answers go [stdout].")
    ] = None,
    index: Annotated[
        Path | None, typer.Option(help="Embeddings of the texts to be found, a .npy file.")
    ] = None,
    texts: Annotated[Path | None, typer.Option(help="The texts of the index, JSONL.")] = None,
    top: Annotated[
        int | None, typer.Option(min=1, help="Classes [1] or answers [10] of a row.")
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option("--format", help="Of the rows: txt, jsonl, csv or tsv [by FILE's ending]."),
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="Key or column of the text [text, query, sentence].")
    ] = None,
    pair_column: Annotated[
        str | None, typer.Option(help="Key or column of the second text [text_pair].")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Rows read before answering.")] = 32,
    threads: Threads = None,
) -> None:
    """Answer rows: one JSON object each, in their order, for a file of any size.

    DIR is an export, a stock checkpoint (a run's student/), or a run: its student. Exits with 1 if
    a row could not be answered; it has an error in its place.
    """
    from .answering import predict_file

    with contextlib.suppress(AttributeError):  # a stream that is none of Python's own
        sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    try:
        total, failed = predict_file(
            folder,
            file,
            out,
            kind=kind,
            column=column,
            pair_column=pair_column,
            index=index,
            texts=texts,
            top=top,
            batch=batch,
            threads=threads,
        )
    except BrokenPipeError:  # the reader, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    if failed:
        print(f"paredown: {failed} of {total} rows could not be answered", file=sys.stderr)
        raise typer.Exit(1)
