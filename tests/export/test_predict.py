"""predict.py runs by itself and answers as the runner; hostile rows get one clear error each."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.eval.errors import RunError
from paredown.export.predict import CPU, Index, session_options
from paredown.export.runner import load

from .conftest import TEXTS, Exported

# What an environment with numpy, onnxruntime and tokenizers alone refuses to import.
BARE = """
import runpy, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "paredown", "onnx", "safetensors"):
            raise ModuleNotFoundError(f"No module named '{name}'")

sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
sys.path[0] = sys.argv[0].rpartition("/")[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def predict(
    folder: Path, *arguments: str | Path, rows: bytes = b""
) -> tuple[int, list[dict[str, Any]], str]:
    """Runs a folder's predict.py where torch cannot be imported: exit code, answers, stderr."""
    command = [sys.executable, "-c", BARE, str(folder / "predict.py"), *map(str, arguments)]
    done = subprocess.run(command, input=rows, capture_output=True, timeout=120, check=False)
    answers = [json.loads(line) for line in done.stdout.decode("utf-8").splitlines()]
    return done.returncode, answers, done.stderr.decode("utf-8")


def lines(texts: Sequence[str]) -> bytes:
    """Rows as a text file."""
    return "".join(f"{text}\n" for text in texts).encode()


@pytest.fixture
def classifier(exported: Exported) -> Path:
    return exported("bert", "classification", "onnx")[1]


@pytest.fixture
def encoder(exported: Exported) -> Path:
    return exported("bert", "retrieval", "onnx")[1]


@pytest.mark.parametrize("fmt", ["onnx", "onnx-int8"])
def test_rows_are_answered_as_by_the_runner(fmt: str, exported: Exported) -> None:
    _, folder, _ = exported("bert", "classification", fmt)
    code, answers, said = predict(folder, "--threads", "1", "--top", "2", rows=lines(TEXTS * 8))
    assert (code, said) == (0, "")
    expected = load(folder, threads=1).predict(TEXTS * 8, top=2)
    assert [a["label"] for a in answers] == [e["label"] for e in expected]
    for answer, one in zip(answers, expected, strict=True):
        assert [b["label"] for b in answer["top"]] == [b["label"] for b in one["top"]]
        assert answer["probability"] == pytest.approx(one["probability"], abs=2e-6)
        assert answer["probability"] == answer["top"][0]["probability"]


@pytest.mark.parametrize("fmt", ["onnx", "onnx-int8"])
def test_additions_and_norms_are_not_fused(fmt: str, exported: Exported, tmp_path: Path) -> None:
    """On a processor; and no ONNX Runtime is to ignore in silence what it was asked."""
    _, folder, _ = exported("bert", "classification", fmt)
    operators = []
    for options in (session_options(1, ["CUDAExecutionProvider", CPU]), session_options(1)):
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        graph = onnx.load(tmp_path / "optimized.onnx").graph
        operators.append({node.op_type for node in graph.node})
    assert "SkipLayerNormalization" in operators[0]
    assert "SkipLayerNormalization" not in operators[1]
    assert "LayerNormalization" in operators[1]


def test_probabilities_are_the_softmax_of_the_logits(classifier: Path) -> None:
    runner = load(classifier, threads=1)
    logits = runner.signal(TEXTS).astype(np.float64)
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    _, answers, _ = predict(classifier, rows=lines(TEXTS))
    assert [a["probability"] for a in answers] == pytest.approx(chances.max(1), abs=1e-5)


def test_embeddings_are_the_runners(encoder: Path) -> None:
    code, answers, _ = predict(encoder, rows=lines(TEXTS))
    found = np.array([answer["embedding"] for answer in answers])
    assert code == 0
    np.testing.assert_allclose(found, load(encoder, threads=1).signal(TEXTS), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_top_answers_come_from_an_index(encoder: Path, tmp_path: Path) -> None:
    runner = load(encoder, threads=1)
    vectors = runner.signal(TEXTS, role="query")
    np.save(tmp_path / "index.npy", vectors)
    texts = [json.dumps({"id": f"t{i}", "text": text}) for i, text in enumerate(TEXTS)]
    (tmp_path / "texts.jsonl").write_text("\n".join(texts) + "\n", encoding="utf-8")
    index = ["--index", str(tmp_path / "index.npy")]
    code, answers, _ = predict(
        encoder, *index, "--texts", tmp_path / "texts.jsonl", "--top", "3", rows=lines(TEXTS)
    )
    assert code == 0
    for i, answer in enumerate(answers):
        first = answer["answers"][0]
        assert (first["row"], first["id"], first["text"]) == (i, f"t{i}", TEXTS[i])
        assert first["score"] == pytest.approx(1, abs=1e-4)
        order = np.argsort(-(vectors @ vectors[i]), kind="stable")[:3]
        assert [a["row"] for a in answer["answers"]] == order.tolist()
    code, answers, _ = predict(encoder, *index, rows=lines(TEXTS[:1]))
    assert [sorted(a) for a in answers[0]["answers"]] == [["row", "score"]] * len(TEXTS)


def test_jsonl_and_csv_give_what_lines_give(classifier: Path, tmp_path: Path) -> None:
    _, plain, _ = predict(classifier, rows=lines(TEXTS))
    rows = [json.dumps({"label": 1, "text": text}) for text in TEXTS[:-1]] + [json.dumps(TEXTS[-1])]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    assert predict(classifier, tmp_path / "rows.jsonl")[1] == plain
    table = "id,question\r\n" + "".join(f'{i},"{text}"\r\n' for i, text in enumerate(TEXTS))
    (tmp_path / "rows.csv").write_text(table, encoding="utf-8-sig")
    assert predict(classifier, tmp_path / "rows.csv", "--column", "question")[1] == plain
    assert (
        predict(classifier, "--format", "csv", "--column", "question", rows=table.encode())[1]
        == plain
    )


def test_pairs_are_answered_as_pairs(classifier: Path, tmp_path: Path) -> None:
    runner = load(classifier, threads=1)
    rows = [{"text": a, "text_pair": b} for a, b in zip(TEXTS, TEXTS[::-1], strict=True)]
    rows.insert(2, {"text": "alone"})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    code, answers, _ = predict(classifier, tmp_path / "rows.jsonl")
    alone = answers.pop(2)
    assert code == 0
    found = [a["probability"] for a in answers]
    expected = [a["probability"] for a in runner.predict(TEXTS, TEXTS[::-1])]
    assert found == pytest.approx(expected, abs=2e-6)
    assert alone["label"] == runner.predict(["alone"])[0]["label"]


def test_each_bad_line_has_its_error_and_the_rest_its_answer(classifier: Path) -> None:
    rows = b"good one\n\n   \nbad \xff byte\n" + b"x" * 4_000_100 + b"\n" + b"y" * 1_000_001
    rows += b"\nlong " + b"word " * 5000 + b"\nlast"
    code, answers, said = predict(classifier, rows=rows)
    assert code == 1
    assert "5 of 8 rows could not be answered" in said
    errors = {answer["row"]: answer["error"] for answer in answers if "error" in answer}
    assert errors == {
        2: "empty",
        3: "empty",
        4: "not UTF-8: byte 5 of the line; convert the file",
        5: "longer than 1,000,000 characters",
        6: "longer than 1,000,000 characters",
    }
    good = load(classifier, threads=1).predict(["good one", "long " + "word " * 5000, "last"])
    assert [a["label"] for a in answers if "label" in a] == [a["label"] for a in good]


def test_bad_jsonl_rows_say_what_was_expected(classifier: Path, tmp_path: Path) -> None:
    rows = ["{", '{"words": "a"}', '{"text": 3}', "[1]", '"\\ud800"', '{"text": null}', '"fine"']
    (tmp_path / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    code, answers, _ = predict(classifier, tmp_path / "rows.jsonl")
    assert code == 1
    said = [answer.get("error", "") for answer in answers]
    assert said[0].startswith("not JSON")
    assert said[1] == "no key text or query or sentence (there are: words); name one: --column"
    assert said[2] == "expected a text, found 3"
    assert said[3] == "expected an object or a string"
    assert said[4].startswith("not UTF-8")
    assert said[5] == "expected a text, found null"
    assert "label" in answers[6]


def test_bad_csv_rows_are_told_apart_from_a_bad_csv_file(classifier: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"id,text\n1,fine\n2\n3,caf\xe9\n4,\n5,also fine\n")
    code, answers, _ = predict(classifier, path)
    assert code == 1
    assert [answer.get("error", "")[:8] for answer in answers] == [
        "",
        "1 fields",
        "not UTF-",
        "empty",
        "",
    ]
    path.write_bytes(b"id,words\n1,fine\n")
    code, answers, said = predict(classifier, path)
    assert (code, answers) == (2, [])
    assert "No column text or query or sentence (there are: id, words)" in said


def test_no_rows_are_no_error(classifier: Path) -> None:
    assert predict(classifier) == (0, [], "")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nowhere.txt"], "nowhere.txt"),
        (["--top", "0"], "at least 1"),
        (["--column", "question"], "--column is for rows with keys or columns"),
        (["--pair-column", "b"], "--pair-column is for rows with keys or columns"),
        (["--texts", "a.jsonl"], "--texts needs --index"),
        (["--providers", "NoProvider"], "No provider 'NoProvider' here"),
        (["--index", "a.npy"], "--index is for embedding models"),
    ],
)
def test_wrong_arguments_are_told(classifier: Path, arguments: list[str], expected: str) -> None:
    code, answers, said = predict(classifier, *arguments, rows=b"x\n")
    assert (code, answers) == (2, [])
    assert expected in said
    assert "Traceback" not in said


def test_an_index_that_does_not_fit_is_refused(encoder: Path, tmp_path: Path) -> None:
    path = tmp_path / "index.npy"
    code, _, said = predict(encoder, "--top", "3", rows=b"x\n")
    assert code == 2 and "--top needs --index" in said
    np.save(path, np.full((3, 32), "a"))
    code, _, said = predict(encoder, "--index", path, rows=b"x\n")
    assert code == 2 and "need numbers of shape (number of texts, 32)" in said
    np.save(path, np.zeros((3, 5), np.float32))
    code, _, said = predict(encoder, "--index", path, rows=b"x\n")
    assert code == 2 and "of shape (3, 5)" in said and "(number of texts, 32)" in said
    np.save(path, np.array([{"a": 1}], dtype=object))
    code, _, said = predict(encoder, "--index", path, rows=b"x\n")
    assert code == 2 and "cannot be read" in said
    np.save(path, np.zeros((3, 32), np.float32))
    (tmp_path / "texts.jsonl").write_text('"one"\n')
    code, _, said = predict(
        encoder, "--index", path, "--texts", tmp_path / "texts.jsonl", rows=b"x\n"
    )
    assert code == 2 and "has 1 texts, the index 3 vectors" in said


def test_texts_of_an_index_are_read_when_they_are_found(encoder: Path, tmp_path: Path) -> None:
    runner = load(encoder, threads=1)
    np.save(tmp_path / "index.npy", runner.signal(TEXTS[:3]))
    lines_of = ['{"id": 1}', "", '"größe"', '{"text": "broken', ""]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines_of), encoding="utf-8-sig")
    options = ["--index", tmp_path / "index.npy", "--texts", tmp_path / "texts.jsonl", "--top", "1"]
    code, answers, said = predict(encoder, *options, "--batch", "1", rows=lines(TEXTS[:3]))
    assert [answer["answers"][0].get("text") for answer in answers] == [None, "größe"]
    assert answers[0]["answers"][0]["id"] == 1
    assert code == 1 and "text 3 of" in said and "is not JSONL in UTF-8" in said


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 12),
    st.integers(1, 9),
    st.integers(1, 8),
    st.sampled_from(["<f4", "<f8", "<f2", "<i4"]),
    st.randoms(use_true_random=False),
)
def test_an_index_in_blocks_finds_what_one_product_finds(
    size: int, top: int, block: int, queries: int, kind: str, random: Any
) -> None:
    """Small whole numbers: scores are exact, and many are equal."""
    draw = np.random.default_rng(random.randrange(2**32))
    vectors = draw.integers(-2, 3, (size, 3)).astype(kind)
    asked = draw.integers(-2, 3, (queries, 3)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("paredown.export.predict.BLOCK_NUMBERS", 3 * block)
        np.save(Path(folder, "index.npy"), vectors)
        index = Index(Path(folder, "index.npy"), None, 3)
        found = index.search(asked, top)
    scores = asked @ vectors.astype(np.float32).T
    for row, answers in zip(scores, found, strict=True):
        order = np.argsort(-row, kind="stable")[:top]
        assert [answer["row"] for answer in answers] == order.tolist()
        assert [answer["score"] for answer in answers] == row[order].tolist()


def test_long_rows_come_in_small_batches(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = load(classifier, threads=1)
    whole, sizes = runner.signal(TEXTS * 4), []
    forward = runner.predictor.forward

    def counted(batch: dict[str, Any]) -> Any:
        sizes.append(batch["input_ids"].shape)
        return forward(batch)

    monkeypatch.setattr("paredown.export.predict.BATCH_TOKENS", 40)
    monkeypatch.setattr(runner.predictor, "forward", counted)
    np.testing.assert_allclose(runner.signal(TEXTS * 4), whole, atol=1e-5)
    assert sum(rows for rows, _ in sizes) == len(TEXTS) * 4
    assert all(rows * longest <= 40 or rows == 1 for rows, longest in sizes)
    assert len(sizes) > 4


def test_a_damaged_folder_is_one_message(classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"has no paredown\.json"):
        load(tmp_path)
    for name in ("tokenizer.json", "model.onnx"):
        folder = tmp_path / name
        shutil.copytree(classifier, folder)
        (folder / name).write_bytes((folder / name).read_bytes()[:50])
        code, answers, said = predict(folder, rows=b"x\n")
        assert (code, answers) == (2, [])
        assert "damaged" in said or "cannot be loaded" in said
        assert "Traceback" not in said


def test_a_reader_that_stops_early_is_no_error(classifier: Path) -> None:
    command = [sys.executable, str(classifier / "predict.py"), "--batch", "1"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdin.write(b"first\n")
        process.stdin.flush()
        assert "label" in json.loads(process.stdout.readline())  # rows are answered as they come
        process.stdout.close()
        process.stdin.write(b"second\nthird\n")
        process.stdin.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0
