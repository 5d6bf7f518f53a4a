"""Rows in, answers out, with models that are none: numbers of rows, and texts that are no texts."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paredown.export.generator import Answer
from paredown.export.predict import PredictError, Row
from paredown.export.predict_text import read_prompts
from paredown.export.text_runner import TextRunner
from paredown.recipes import answering, cli
from paredown.recipes.row_files import prompt_rows


class Writer:
    """Writes each prompt back, and refuses some."""

    settings = {"signal": "token_distribution", "precision": "fp32", "width": 3}  # noqa: RUF012

    def prompt_ids(self, prompt: Any) -> list[int]:
        if "long" in prompt:
            raise PredictError(f"the prompt has {len(prompt)} tokens; 1 to 3 can be answered")
        return [len(prompt)]

    def signal(self, prompts: Sequence[list[int]]) -> Any:
        return np.zeros((len(prompts), 3), np.float32)

    def answers(self, prompts: Sequence[list[int]], **_: Any) -> list[Answer]:
        return [Answer(ids, str(ids[0]), True) for ids in prompts]


class Classes:
    """Says one thing of all texts."""

    settings = {"signal": "class_logits"}  # noqa: RUF012

    def predict(self, texts: Sequence[str], *_: Any, **__: Any) -> list[dict[str, Any]]:
        return [{"label": "größe \udfff"} for _ in texts]


def test_an_error_names_the_row_of_the_input_alone() -> None:
    prompts = ["a", "bb", "long", "cc", "longer"]
    rows = (Row(prompt) for prompt in prompts * 9)
    found = list(answering.answers(TextRunner(Writer(), "x"), rows, index=None, top=None, batch=8))
    errors = [one for one in found if "error" in one]
    assert [one["row"] for one in errors] == [n + 1 for n in range(45) if n % 5 in (2, 4)]
    assert errors[0] == {"row": 3, "error": "the prompt has 4 tokens; 1 to 3 can be answered"}
    assert not any("Row" in one["error"] for one in errors)
    assert found[3] == {"text": "2", "finished": True}


def test_rows_of_a_language_model_are_read_as_the_exported_program_reads_them() -> None:
    lines = ['{"text": "a"}', '{"prompt": "b", "text": "c"}', '"d"', '[{"role": "user"}]']
    lines += ["[1]", "1", '{"other": "e"}', "{", '{"prompt": 2}']
    file = "\n".join(lines).encode()
    found = list(prompt_rows(io.BytesIO(file), "jsonl", None, None))
    assert [row.text for row in found[:5]] == ["a", "b", "d", [{"role": "user"}], [1]]
    assert all(row.error for row in found[5:])
    program = list(read_prompts(io.BytesIO(file), "jsonl", None))
    assert [row.error for row in found] == [error for _, error in program]


@pytest.mark.parametrize("model", [Classes(), TextRunner(Writer(), "x")])
def test_half_a_surrogate_pair_ends_no_stream(
    model: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(answering, "open_model", lambda *_: model)
    path, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    lines = ['{"\\ud800": 1}', '{"text": "a \\ud800"}', '[{"role": "\\ud800"}]', '"fine"']
    path.write_text("\n".join(lines))
    assert cli.main(["predict", "model", str(path), "--out", str(out)]) == 1
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    assert cli.main(["predict", "model", str(path)]) == 1
    said = sys.stdout.buffer.getvalue()  # type: ignore[attr-defined]
    assert said == out.read_bytes()
    found = [json.loads(line) for line in said.decode("utf-8").splitlines()]
    assert "(there are: \ud800)" in found[0]["error"] and found[1]["error"].startswith("not UTF-8")
    assert found[2]["row"] == 3 and set(found[3]) in ({"label"}, {"text", "finished"})
    assert "Traceback" not in capsys.readouterr().err
