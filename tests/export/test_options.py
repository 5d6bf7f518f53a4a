"""Options of a format: known ones alone, each with an effect."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paredown.eval.errors import RecipeError
from paredown.eval.tasks import get_task
from paredown.export import FORMATS, format_options
from paredown.export.options import resolve_options

TASK = get_task("classification")
PLAIN = {"calibration": "dynamic", "calibration_rows": 256}


def test_what_is_not_said_has_its_default() -> None:
    assert format_options("onnx", TASK, {}) == {}
    assert format_options("onnx-int8", TASK, {}) == PLAIN
    static = {"calibration": "static", "calibration_rows": 8}
    assert format_options("onnx-int8", TASK, static) == static
    assert format_options("onnx-int8", TASK, {"calibration": "dynamic"}) == PLAIN


def test_an_answer_is_not_calibrated_on_rows() -> None:
    with pytest.raises(RecipeError, match="is for models that give class_logits or embedding"):
        format_options("onnx-int8", get_task("generation"), {"calibration": "static"})
    assert format_options("onnx-int8", get_task("generation"), {}) == PLAIN


@given(
    given_options=st.dictionaries(
        st.sampled_from(["calibration", "calibration_rows", "rows", ""]),
        st.sampled_from(["static", "dynamic", "statik", 1, 64, 0, -1, True, None, 2.5]),
    )
)
def test_options_are_resolved_or_refused_by_name(given_options: dict[str, Any]) -> None:
    known = FORMATS["onnx-int8"].options
    try:
        found = resolve_options("onnx-int8", known, given_options, "embedding")
    except RecipeError as error:
        assert "'onnx-int8'" in str(error)
        return
    assert set(found) == set(known)
    assert all(found[name] == value for name, value in given_options.items())
    assert resolve_options("onnx-int8", known, {}, "embedding") == PLAIN
