"""Answers rows with the ONNX model in this folder; needs only numpy, onnxruntime and tokenizers.

    python predict.py < rows.txt                        one text a line
    python predict.py rows.jsonl                        {"text": …, "text_pair": …} a line
    python predict.py rows.csv --column question        a column of a CSV or TSV file
    python predict.py --index index.npy --texts texts.jsonl < queries.txt

One JSON object a row goes to stdout, in the order of the rows: {"label", "probability"} of a
classifier, {"embedding"} of an embedding model, {"answers"} where an index is given. A row that
cannot be answered gives {"row", "error"} in its place, and the exit code is 1. A text longer than
the model takes is cut, as in training; that is no error.
"""

from __future__ import annotations

import argparse
import codecs
import csv
import json
import os
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

MAX_CHARACTERS = 1_000_000  # a longer row is not a text but a mistake, and would fill the memory
RECORD_BYTES = 1 << 23  # of a row of CSV or TSV, with all its columns
KEYS = ("text", "query", "sentence")
BATCH_TOKENS = 8192  # rows × longest row of a batch, so that long rows do not fill the memory
CHARACTERS = (
    1 << 17
)  # held, or tokenised, together: a token takes a hundred bytes until it is an id
BLOCK_NUMBERS = 1 << 22  # numbers of an index that are looked at together: 16 MB
CPU = "CPUExecutionProvider"
FORMATS = {".txt": "txt", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv"}

T = TypeVar("T")


class PredictError(Exception):
    """Something a person can act on."""


class Row(NamedTuple):
    """One row of the input: a text with perhaps a second one, or what is wrong with it."""

    text: str = ""
    pair: str | None = None
    error: str | None = None


def session_options(threads: int | None, providers: Sequence[str] = (CPU,)) -> Any:
    """How ONNX Runtime should run a graph: for all cores, unless told."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    # Threads that go on spinning after an answer would slow down whatever else runs here.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if list(providers) == [CPU]:
        # An addition and a norm fused into one take several times as long there as the two apart.
        unwanted = "SkipLayerNormFusion"
        options.add_session_config_entry("optimization.disable_specified_optimizers", unwanted)
    return options


def open_session(path: Path, threads: int | None, providers: Sequence[str] | None) -> Any:
    """Opens an ONNX file, for all cores and ONNX Runtime's CPU provider unless told."""
    import onnxruntime

    if not path.is_file():
        raise PredictError(f"'{path.parent}' has no {path.name}; give the folder of an export.")
    wanted = list(providers or [CPU])
    there = onnxruntime.get_available_providers()
    if missing := [name for name in wanted if name not in there]:
        raise PredictError(f"No provider '{missing[0]}' here; there are {', '.join(there)}.")
    options = session_options(threads, wanted)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=wanted)
    except Exception as error:  # ONNX Runtime has a dozen kinds, without a common base
        raise PredictError(f"'{path}' cannot be loaded: {error}") from error


class Predictor:
    """The model of a folder, from texts to signals and answers.

    Attributes:
        folder: Where model.onnx, tokenizer.json and paredown.json lie.
        settings: The content of paredown.json.
        batch: Rows of a batch where a call names none. It is 1 for int8: activations are
            quantised together with the rest of the batch, so that a row's answer would depend on
            its neighbours.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
    ) -> None:
        """Loads a folder's model, for all cores and ONNX Runtime's CPU provider unless told."""
        from tokenizers import Tokenizer

        self.folder = Path(folder)
        for name in ("paredown.json", "tokenizer.json", "model.onnx"):
            if not (self.folder / name).is_file():
                raise PredictError(f"'{self.folder}' has no {name}; give the folder of an export.")
        try:
            text = (self.folder / "paredown.json").read_text(encoding="utf-8")
            self.settings: dict[str, Any] = json.loads(text)
            self.tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        except Exception as error:  # tokenizers raises a bare Exception
            raise PredictError(f"A file of '{self.folder}' is damaged: {error}") from error
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(
            int(self.settings["max_length"]), direction=self.settings["truncation_side"]
        )
        self.batch = int(self.settings["batch"])
        self.session: Any = open_session(self.folder / "model.onnx", threads, providers)

    def tokenize(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, role: str | None = None
    ) -> list[dict[str, list[int]]]:
        """Turns texts into rows of ids, unpadded, cut to the model's length.

        The role (``query``, ``document``, ``text``) says whose prompt is put in front.
        """
        prompt = self.settings["prompts"].get(role or self.settings["role"], "")
        rows = zip(texts, [None] * len(texts) if pairs is None else pairs, strict=True)
        parts = {
            "input_ids": "ids",
            "attention_mask": "attention_mask",
            "token_type_ids": "type_ids",
        }
        names = self.settings["inputs"]
        found: list[dict[str, list[int]]] = []
        for some in blocks(rows, len(texts), _characters):
            encoded = self._encoded([(prompt + text, pair) for text, pair in some])
            found += [{name: getattr(row, parts[name]) for name in names} for row in encoded]
        return found

    def _encoded(self, rows: Sequence[tuple[str, str | None]]) -> list[Any]:
        """The rows' encodings, with special tokens, cut to the model's length."""
        short = 4 * int(self.settings["max_length"])
        # What is left over of two texts is kept in every combination of their parts.
        apart = self.tokenizer.num_special_tokens_to_add(True) >= 2
        long = [apart and row[1] is not None and _characters(row) > short for row in rows]
        together = [
            row[0] if row[1] is None else row
            for row, alone in zip(rows, long, strict=True)
            if not alone
        ]
        found = iter(self.tokenizer.encode_batch(together))
        return [
            self._long_pair(row[0], row[1] or "") if alone else next(found)
            for row, alone in zip(rows, long, strict=True)
        ]

    def _long_pair(self, text: str, pair: str) -> Any:
        """The encoding of two texts, each cut by itself before they are cut together.

        What is cut first is behind what the model takes of both, and the longer text stays the
        longer one, by which an odd token is given to one of them: the ids are the same.
        """
        longest = int(self.settings["max_length"])
        cut, lengths = [], []
        for part in (text, pair):
            one = self.tokenizer.encode(part, add_special_tokens=False)
            lengths.append(len(one) + sum(map(len, one.overflowing)))
            one.truncate(longest - 1, direction=self.settings["truncation_side"])
            cut.append(one)
        if lengths[0] > lengths[1]:
            cut[1].truncate(longest - 2, direction=self.settings["truncation_side"])
        first, second = cut
        return self.tokenizer.post_process(first, second)

    def collate(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, NDArray[np.int64]]:
        """Pads rows on the right into arrays of (B, T)."""
        longest = max(len(row["input_ids"]) for row in rows)
        filler = {
            "input_ids": self.settings["pad_id"],
            "token_type_ids": self.settings["pad_type_id"],
        }
        batch = {}
        for name in self.settings["inputs"]:
            block = np.full((len(rows), longest), filler.get(name, 0), dtype=np.int64)
            for i, row in enumerate(rows):
                block[i, : len(row[name])] = row[name]
            batch[name] = block
        return batch

    def forward(self, batch: dict[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        """Runs the model on a padded batch: (B, T) each to (B, W)."""
        values: NDArray[np.float32] = self.session.run([self.settings["output"]], batch)[0]
        return values

    def signal(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        role: str | None = None,
        batch: int | None = None,
    ) -> NDArray[np.float32]:
        """Class logits or embeddings of n texts, (n, W) float32, in the order of the texts.

        Batches hold rows of like length, and fewer of long ones; role and batch size are the
        folder's unless given.
        """
        out = np.empty((len(texts), int(self.settings["width"])), dtype=np.float32)
        if not len(texts):
            return out
        rows = self.tokenize(texts, pairs, role)
        order = np.argsort([-len(row["input_ids"]) for row in rows], kind="stable")
        start = 0
        while start < len(order):
            longest = max(1, len(rows[order[start]]["input_ids"]))
            size = batch or max(1, min(self.batch, BATCH_TOKENS // longest))
            chosen = order[start : start + size]
            out[chosen] = self.forward(self.collate([rows[i] for i in chosen]))
            start += size
        return out

    def predict(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        index: Index | None = None,
        top: int | None = None,
        batch: int | None = None,
    ) -> list[dict[str, Any]]:
        """One object a text, as this program prints them; ``top`` is 1 class or 10 answers."""
        values = self.signal(texts, pairs, batch=batch)
        return answers_of(values, self.settings, index=index, top=top)


def answers_of(
    values: NDArray[np.float32],
    settings: dict[str, Any],
    *,
    index: Index | None = None,
    top: int | None = None,
) -> list[dict[str, Any]]:
    """One object a row of class logits or embeddings, (n, W), as this program prints them."""
    if settings["signal"] == "class_logits":
        return [_classes(row, settings["labels"], top or 1) for row in values]
    if index is None:
        return [{"embedding": row.tolist()} for row in values]
    return [{"answers": found} for found in index.search(values, top or 10)]


def _classes(logits: NDArray[np.float32], labels: Sequence[str], top: int) -> dict[str, Any]:
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    chances = shifted / shifted.sum()
    order = np.argsort(-chances, kind="stable")[:top]
    best = [{"label": labels[i], "probability": round(float(chances[i]), 6)} for i in order]
    return best[0] if top == 1 else best[0] | {"top": best}


def blocks(rows: Iterable[T], count: int, size: Callable[[T], int]) -> Iterator[list[T]]:
    """Rows as lists of at most `count`, shorter where their sizes reach `CHARACTERS`."""
    some: list[T] = []
    held = 0
    for row in rows:
        some.append(row)
        held += size(row)
        if len(some) == count or held >= CHARACTERS:
            yield some
            some, held = [], 0
    if some:
        yield some


def _characters(row: tuple[str, str | None]) -> int:
    return len(row[0]) + len(row[1] or "")


def json_line(answer: dict[str, Any]) -> str:
    r"""An answer as JSON that any UTF-8 file takes: half a surrogate pair stays ``\ud800``."""
    text = json.dumps(answer, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class Lines:
    """The objects or strings of a JSONL file; each is read when it is asked for."""

    def __init__(self, path: str | Path) -> None:
        """Finds where the lines start; empty ones do not count."""
        self.path = path
        self.file = open(path, "rb")  # noqa: SIM115 (lives as long as this)
        self.starts = array("q")
        at = 0
        for line in self.file:
            if line.strip():
                self.starts.append(at)
            at += len(line)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, number: int) -> Any:
        self.file.seek(self.starts[number])
        try:
            return json.loads(self.file.readline().decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            where = f"text {number + 1} of '{self.path}'"
            raise PredictError(f"The {where} is not JSONL in UTF-8: {error}") from error


class Index:
    """Embeddings of the texts to be found, (N, d), and perhaps the texts; both stay on disk."""

    def __init__(self, vectors: str | Path, texts: str | Path | None, width: int) -> None:
        """Opens a .npy file, and a JSONL file of N objects or strings."""
        try:
            with np.errstate(over="ignore"):
                self.vectors = np.load(vectors, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # numpy has a dozen kinds for files that are damaged
            raise PredictError(f"The index '{vectors}' cannot be read: {error}") from error
        if not isinstance(self.vectors, np.ndarray):
            self.vectors.close()
            raise PredictError(f"The index '{vectors}' is an archive; save one array as .npy.")
        shape, numbers = self.vectors.shape, self.vectors.dtype.kind in "fiu"
        if len(shape) != 2 or shape[1] != width or not shape[0] or not numbers:
            raise PredictError(
                f"The index '{vectors}' is of shape {shape} and {self.vectors.dtype}; the model's "
                f"embeddings need numbers of shape (number of texts, {width})."
            )
        for start, block in self._blocks(max(1, BLOCK_NUMBERS // width)):
            finite = np.isfinite(block).all(1)
            if not finite.all():
                row = start + int(finite.argmin())
                raise PredictError(f"Row {row} of the index '{vectors}' holds NaN or infinity.")
        self.texts = None if texts is None else Lines(texts)
        if self.texts is not None and len(self.texts) != len(self.vectors):
            have = f"{len(self.texts)} texts, the index {len(self.vectors)} vectors"
            raise PredictError(f"'{texts}' has {have}.")

    def _blocks(self, step: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Rows from the first to the last, some at a time, and the number of each first one."""
        for start in range(0, len(self.vectors), step):
            with np.errstate(over="ignore"):
                yield start, np.asarray(self.vectors[start : start + step], dtype=np.float32)

    def search(self, queries: NDArray[np.float32], top: int) -> list[list[dict[str, Any]]]:
        """The texts with the largest dot products, (n, d) with (N, d); equal ones in order."""
        top = min(top, len(self.vectors))
        scores: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(queries)
        rows: list[NDArray[np.int64]] = [np.empty(0, np.int64)] * len(queries)
        if not len(queries):
            return []
        for start, block in self._blocks(max(top, BLOCK_NUMBERS // self.vectors.shape[1])):
            here = np.arange(start, start + len(block))
            for i, found in enumerate(queries @ block.T):
                found = np.concatenate([scores[i], found])
                among = np.flatnonzero(found >= np.partition(found, -top)[-top])
                best = among[np.argsort(-found[among], kind="stable")][:top]
                scores[i], rows[i] = found[best], np.concatenate([rows[i], here])[best]
        return [self._named(*found) for found in zip(rows, scores, strict=True)]

    def _named(self, rows: NDArray[np.int64], scores: NDArray[np.float32]) -> list[dict[str, Any]]:
        answers = []
        for row, score in zip(rows.tolist(), scores.tolist(), strict=True):
            text = {} if self.texts is None else self.texts[row]
            text = text if isinstance(text, dict) else {"text": text}
            answers.append({**text, "row": row, "score": round(score, 6)})
        return answers


def refuse_names(kind: str, column: str | None, pair_column: str | None = None) -> None:
    """`PredictError` where keys or columns are named of rows that have none."""
    if kind == "txt" and (column or pair_column):
        option = "--column" if column else "--pair-column"
        raise PredictError(f"{option} is for rows with keys or columns (jsonl, csv, tsv), not txt.")


def read_rows(
    file: BinaryIO, kind: str, column: str | None, pair_column: str | None
) -> Iterator[Row]:
    """Yields the rows of a file as they come; `PredictError` if it cannot be read as a whole."""
    if kind in ("csv", "tsv"):
        records = _csv_records(file) if kind == "csv" else _tsv_records(file)
        yield from _table_rows(records, column, pair_column)
        return
    for line in _lines(file, 4 * MAX_CHARACTERS + 1):
        if line is None:
            yield Row(error=f"longer than {MAX_CHARACTERS:,} characters")
            continue
        try:
            text = line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            yield Row(error=f"not UTF-8: byte {error.start + 1} of the line; convert the file")
        else:
            yield checked(text, None) if kind == "txt" else _json_row(text, column, pair_column)


def _lines(file: BinaryIO, limit: int) -> Iterator[bytes | None]:
    """Yields lines without a byte order mark, None for one that has more bytes than the limit."""
    mark = codecs.BOM_UTF8
    while line := file.readline(limit + 1):
        if len(line) > limit and not line.endswith(b"\n"):
            yield None
            while (rest := file.readline(1 << 20)) and not rest.endswith(b"\n"):
                pass
        else:
            yield line.removeprefix(mark)
        mark = b""


def _json_row(line: str, column: str | None, pair_column: str | None) -> Row:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Row(error=f"not JSON: {error}")
    if isinstance(found, str):
        return checked(found, None)
    if not isinstance(found, dict):
        return Row(error="expected an object or a string")
    names = [column] if column else KEYS
    key = next((name for name in names if name in found), None)
    if key is None:
        there = ", ".join(map(str, found)) or "none"
        return Row(error=f"no key {' or '.join(names)} (there are: {there}); name one: --column")
    if pair_column and pair_column not in found:
        return Row(error=f"no key {pair_column}")
    return checked(found[key], found.get(pair_column or "text_pair"))


def _csv_records(file: BinaryIO) -> Iterator[list[str]]:
    """Yields the fields of each record; blank lines are none."""
    held, start = 0, 1

    def lines() -> Iterator[str]:
        nonlocal held
        for line in _lines(file, RECORD_BYTES):
            if line is None or held + len(line) > RECORD_BYTES:
                raise csv.Error(f"more than {RECORD_BYTES:,} bytes")
            held += len(line)
            # Bytes that are not UTF-8 travel as lone surrogates: one bad row spoils no other.
            yield line.decode("utf-8", "surrogateescape")

    csv.field_size_limit(RECORD_BYTES)
    reader = csv.reader(lines(), strict=True)
    try:
        for fields in reader:
            held = 0
            if fields:
                yield fields
            start = reader.line_num + 1
    except csv.Error as error:
        raise PredictError(
            f"Not CSV from line {start} on: {error}. A field with a quote, comma or line break "
            'stands in quotes, and quotes in it are doubled ("").'
        ) from error


def _tsv_records(file: BinaryIO) -> Iterator[list[str] | None]:
    """Yields lines split at tabs; blank ones are none, and None is one that is too long."""
    for line in _lines(file, RECORD_BYTES):
        text = None if line is None else line.decode("utf-8", "surrogateescape").rstrip("\r\n")
        if text != "":
            yield None if text is None else [_unquoted(cell) for cell in text.split("\t")]


def _unquoted(cell: str) -> str:
    # Quotes are text, but for those that a writer put around a field with quotes, and doubled.
    if len(cell) >= 2 and cell[0] == cell[-1] == '"':
        inner = cell[1:-1]
        if '""' in inner and '"' not in inner.replace('""', ""):
            return inner.replace('""', '"')
    return cell


def _table_rows(
    records: Iterator[list[str] | None], column: str | None, pair_column: str | None
) -> Iterator[Row]:
    header = [name.strip() for name in next(records, None) or []]
    names = [column] if column else KEYS
    at = next((header.index(name) for name in names if name in header), None)
    if at is None or (pair_column and pair_column not in header):
        wanted = " or ".join(names) if at is None else pair_column
        raise PredictError(
            f"No column {wanted} (there are: {', '.join(header) or 'none'}); "
            "name them: --column, --pair-column."
        )
    second = pair_column or "text_pair"
    pair_at = header.index(second) if second in header else None
    for fields in records:
        if fields is None:
            yield Row(error=f"longer than {RECORD_BYTES:,} bytes")
        elif len(fields) != len(header):
            yield Row(error=f"{len(fields)} fields, the header has {len(header)}")
        else:
            yield checked(fields[at], None if pair_at is None else fields[pair_at])


def checked(text: Any, pair: Any) -> Row:
    """A row whose texts are texts."""
    for part in (text,) if pair is None else (text, pair):
        if not isinstance(part, str):
            return Row(error=f"expected a text, found {json.dumps(part)[:40]}")
        if not part.strip():
            return Row(error="empty")
        if len(part) > MAX_CHARACTERS:
            return Row(error=f"longer than {MAX_CHARACTERS:,} characters")
        try:
            part.encode("utf-8")
        except UnicodeEncodeError as error:
            return Row(error=f"not UTF-8: character {error.start + 1}; convert the file")
    return Row(text, pair)


def answer_rows(
    predictor: Predictor, rows: Iterator[Row], *, index: Index | None, top: int | None, batch: int
) -> Iterator[dict[str, Any]]:
    """Yields one answer or error a row, in order, reading no more than a batch ahead."""
    done = 0
    for waiting in blocks(rows, batch, lambda row: _characters(row[:2])):
        answers: dict[int, dict[str, Any]] = {}
        for paired in (False, True):
            some = [r for r in waiting if r.error is None and (r.pair is not None) == paired]
            pairs = [r.pair or "" for r in some] if paired else None
            found = predictor.predict([r.text for r in some], pairs, index=index, top=top)
            answers |= {id(row): answer for row, answer in zip(some, found, strict=True)}
        for row in waiting:
            done += 1
            yield answers[id(row)] if row.error is None else {"row": done, "error": row.error}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("file", nargs="?", help="a .txt, .jsonl, .csv or .tsv file; without one, stdin")
    add("--format", choices=sorted(set(FORMATS.values())), help="of the rows (default: by ending)")
    add("--column", help=f"key or column of the text (default: {', '.join(KEYS)})")
    add("--pair-column", help="key or column of the second text (default: text_pair, if there)")
    add("--index", help="embeddings of the texts to be found, a .npy file")
    add("--texts", help="the texts of the index, JSONL")
    add("--top", type=_positive, help="classes (default 1) or answers (default 10) of a row")
    add("--batch", type=_positive, default=32, help="rows read before answering (default 32)")
    add("--threads", type=_positive, help="threads (default: all cores)")
    add("--providers", help="ONNX Runtime's providers, separated by commas (default: the CPU's)")
    options = parser.parse_args(arguments)
    if options.texts and not options.index:
        parser.error("--texts needs --index")
    return options


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
        refuse_names(kind, options.column, options.pair_column)
        predictor = Predictor(Path(__file__).parent, threads=options.threads, providers=providers)
        index = None
        if options.index:
            if predictor.settings["signal"] != "embedding":
                raise PredictError("--index is for embedding models; this one gives classes.")
            index = Index(options.index, options.texts, int(predictor.settings["width"]))
        elif options.top and predictor.settings["signal"] == "embedding":
            raise PredictError("--top needs --index: without one an embedding is all there is.")
        file = open(options.file, "rb") if options.file else sys.stdin.buffer  # noqa: SIM115
        with file:
            rows = read_rows(file, kind, options.column, options.pair_column)
            top, batch = options.top, options.batch
            for answer in answer_rows(predictor, rows, index=index, top=top, batch=batch):
                total += 1
                failed += "error" in answer
                print(json_line(answer), flush=total % batch == 0)
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
