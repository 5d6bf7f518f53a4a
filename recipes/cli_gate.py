"""The commands of a CI job: ``paredown gate`` and ``paredown cache-key``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def gate(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The run's folder, as in runs/search_query.")
    ],
    retain: Annotated[
        float | None,
        typer.Option(help="Least share of quality kept, at the lower end of the interval."),
    ] = None,
    compute: Annotated[
        float | None, typer.Option(help="Largest share of the teacher's FLOPs.")
    ] = None,
    latency_ms: Annotated[
        float | None, typer.Option(help="Longest median of one row, in milliseconds.")
    ] = None,
    flip_rate: Annotated[
        float | None,
        typer.Option(help="Largest share of decisions that an export may change."),
    ] = None,
    size_mb: Annotated[float | None, typer.Option(help="Most megabytes of weights.")] = None,
    runtime: Annotated[
        str | None,
        typer.Option(
            metavar="FORMAT|pytorch",
            help="What time, size and quality are of [with time or size the fastest export].",
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="A run over the same rows that must not be better."),
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(help="How much lower the difference's lower end may lie [0.005]."),
    ] = None,
    junit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a JUnit report.")
    ] = None,
    summary: Annotated[
        bool, typer.Option("--summary", help="Add to the summary of a GitHub workflow's step.")
    ] = False,
    summary_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Add the summary to a file instead.")
    ] = None,
    allow_smoke: Annotated[
        bool,
        typer.Option("--allow-smoke", help="Compare a smoke run too, to try a workflow out."),
    ] = False,
    imports: Annotated[
        list[str] | None,
        typer.Option("--import", metavar="MODULE", help="A module that registers the metric."),
    ] = None,
) -> None:
    """Exit with 3 unless a run meets the criteria.

    Prints one line for each criterion: met, not met, or undecided, which is too few rows to tell.
    """
    from . import gate_files as files
    from .gate import gate as measure
    from .gate import read_report

    places = [(junit, "--junit"), (summary_file, "--summary-file")]
    for path, option in places:
        if path is not None:
            files.check_place(path, option)
    wanted = summary or summary_file is not None
    added_to = files.summary_file(summary_file) if wanted else None
    if added_to is not None:
        files.add_summary("", added_to)  # before anything is measured: can it be written?
    if junit is not None and junit.is_file():
        junit.unlink()  # where this gate ends early, an earlier one's must not stand for it
    criteria = measure(
        run,
        retain=retain,
        compute=compute,
        latency_ms=latency_ms,
        flip_rate=flip_rate,
        size_mb=size_mb,
        runtime=runtime,
        against=against,
        margin=margin,
        allow_smoke=allow_smoke,
        imports=imports or (),
    )
    report = read_report(run)
    for criterion in criteria:
        print(criterion.text)
    if junit is not None:
        files.write_junit(files.junit(criteria, report), junit)
    if added_to is not None:
        files.add_summary(files.markdown(criteria, report), added_to)
    if not all(criterion.met for criterion in criteria):
        raise typer.Exit(3)


def cache_key() -> None:
    """Print a name for the kept stages.

    It is the same where they are worth fetching: versions, sources and the machine are equal.
    """
    from .cache_key import cache_key as made

    print(made())
