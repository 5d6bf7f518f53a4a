"""Answers prompts with the language model in this folder; needs numpy, onnxruntime, tokenizers.

    python predict.py < prompts.txt                     one prompt a line
    python predict.py rows.jsonl                        {"prompt": …} or {"messages": […]} a line
    python predict.py rows.csv --column question        a column of a CSV or TSV file

One JSON object a row goes to stdout, in the order of the rows: {"text", "finished"}. `finished` is
false where an answer reached the longest allowed. Answers are greedy: the likeliest token each
time. A row that cannot be answered gives {"row", "error"} in its place, and the exit code is 1.
Where the model was trained on messages, a prompt that is a text is the user's turn, and jinja2 is
needed to write the turns as the model knows them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING or __package__:
    from .generator import Generator
    from .predict import FORMATS, PredictError, Row, checked, json_line, read_rows, refuse_names
else:  # in an exported folder, where export/predict.py is called rows.py
    from generator import Generator
    from rows import FORMATS, PredictError, Row, checked, json_line, read_rows, refuse_names

KEYS = ("prompt", "messages", "text")
"""Keys of a row in JSON, in the order they are looked for."""


def read_prompts(file: BinaryIO, kind: str, column: str | None) -> Iterator[tuple[Any, str | None]]:
    """Yields each row's prompt, or what is wrong with it."""
    lines = "txt" if kind == "jsonl" else kind
    names = column if kind in ("txt", "jsonl") else column or "prompt"
    for row in read_rows(file, lines, names, None):
        if row.error is not None:
            yield None, row.error
        else:
            yield _json_prompt(row, column) if kind == "jsonl" else (row.text, None)


def _json_prompt(row: Row, column: str | None) -> tuple[Any, str | None]:
    try:
        found = json.loads(row.text)
    except (ValueError, RecursionError) as error:
        return None, f"not JSON: {error}"
    if isinstance(found, str | list):  # a prompt, or the turns of a conversation
        found = {column or "prompt": found}
    if not isinstance(found, dict):
        return None, "expected a text, messages, or an object with them"
    key = next((name for name in ([column] if column else KEYS) if name in found), None)
    if key is None:
        wanted = column or " or ".join(KEYS)
        return None, f"no key {wanted} (there are: {', '.join(map(str, found)) or 'none'})"
    prompt = found[key]
    if not isinstance(prompt, str | list):
        return None, f"expected a text or messages, found {json.dumps(prompt)[:40]}"
    text = prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)
    wrong = checked(text, None).error
    return (None, wrong) if wrong else (prompt, None)


def answer_prompts(
    generator: Generator, rows: Iterator[tuple[Any, str | None]], batch: int
) -> Iterator[dict[str, Any]]:
    """Yields one answer or error a row, in order, reading no more than a batch ahead."""
    done = 0
    while waiting := list(itertools.islice(rows, batch)):
        ids: list[list[int] | None] = []
        errors: list[str | None] = []
        for prompt, error in waiting:
            try:
                ids.append(None if error else generator.prompt_ids(prompt))
            except PredictError as refused:
                error = str(refused)
                ids.append(None)
            errors.append(error)
        found = iter(generator.answers([one for one in ids if one is not None]))
        for one, error in zip(ids, errors, strict=True):
            done += 1
            if one is None:
                yield {"row": done, "error": error}
            else:
                answer = next(found)
                yield {"text": answer.text, "finished": answer.finished}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("file", nargs="?", help="a .txt, .jsonl, .csv or .tsv file; without one, stdin")
    add("--format", choices=sorted(set(FORMATS.values())), help="of the rows (default: by ending)")
    add("--column", help=f"key or column of the prompt (default: {' or '.join(KEYS)})")
    add("--batch", type=_positive, help="prompts answered together (default: the folder's)")
    add("--max-new-tokens", type=_positive, help="longest answer (default: the folder's)")
    add("--threads", type=_positive, help="threads (default: all cores)")
    add("--providers", help="ONNX Runtime's providers, separated by commas (default: the CPU's)")
    return parser.parse_args(arguments)


def _positive(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got '{word}'")
    return int(word)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; 0 if every row was answered, 1 if some were not, 2 if none could be."""
    options = parse(arguments)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false" if options.threads == 1 else "true")
    providers = options.providers.split(",") if options.providers else None
    kind = options.format or FORMATS.get(Path(options.file or "").suffix.lower(), "txt")
    failed = total = 0
    try:
        refuse_names(kind, options.column)
        generator = Generator(Path(__file__).parent, threads=options.threads, providers=providers)
        generator.batch = options.batch or generator.batch
        longest = options.max_new_tokens or generator.settings["max_new_tokens"]
        generator.settings["max_new_tokens"] = longest
        file = open(options.file, "rb") if options.file else sys.stdin.buffer  # noqa: SIM115
        with file:
            rows = read_prompts(file, kind, options.column)
            for answer in answer_prompts(generator, rows, generator.batch):
                total += 1
                failed += "error" in answer
                print(json_line(answer), flush=total % generator.batch == 0)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (PredictError, OSError) as error:
        sys.stdout.flush()
        print(f"predict.py: {error}", file=sys.stderr)
        return 2 if not total else 1
    if failed:
        print(f"predict.py: {failed} of {total} rows could not be answered", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    try:
        sys.exit(main())
    except ImportError as missing:
        print(f"predict.py: {missing}; pip install numpy onnxruntime tokenizers", file=sys.stderr)
        sys.exit(2)
