"""Recorded answers are found by the prompts that the data folder has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paredown.distill.recorded_texts import read_answers
from paredown.eval.errors import DataError
from paredown.eval.generation_rows import canonical_prompt

TURNS = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]


def written(path: Path, *prompts: Any) -> Path:
    lines = [json.dumps({"prompt": prompt, "completion": "yes"}) for prompt in prompts]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_messages_are_found_as_the_rows_write_them(tmp_path: Path) -> None:
    found = read_answers(written(tmp_path / "a.jsonl", TURNS, "plain"), "teacher.files.train")
    assert set(found) == {canonical_prompt(TURNS), "plain"}


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ([{"role": "user"}], "expected a text as content"),
        ([*TURNS, {"role": "assistant", "content": "no"}], "ends with an answer"),
    ],
)
def test_a_prompt_that_is_none_is_named_by_its_line(prompt: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"line 2.*{says}"):
        read_answers(written(tmp_path / "a.jsonl", "plain", prompt), "teacher.files.train")
