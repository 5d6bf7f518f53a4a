"""The example of docs/add-a-criterion.md decides what is kept, registered as `--import` does it."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from paredown.eval.models import TextModel
from paredown.eval.tasks import get_task
from paredown.prune import CRITERIA, prune_model
from paredown.prune.calibration import batches_of, sample_rows
from paredown.recipes import cli
from paredown.recipes.extensions import import_extensions

PAGE = (Path(__file__).parents[2] / "docs" / "add-a-criterion.md").read_text(encoding="utf-8")
TEXTS = [f"{a} {b} {c}" for a in ("open", "sort") for b in ("a", "the") for c in ("file", "x", "b")]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The page's example as a module in the current folder."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "my_criterion.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = dict(CRITERIA)
    yield "my_criterion"
    sys.modules.pop("my_criterion", None)
    CRITERIA.clear()
    CRITERIA.update(before)


def spread_by_hand(model: TextModel, layer: int) -> np.ndarray:
    """The variance of what each FFN channel carries on the rows that `prune_model` draws."""
    rows, _ = sample_rows(model, TEXTS, None, None, 1024, 0)
    seen = []
    dense = model.backbone.encoder.layer[layer].output.dense
    for batch in batches_of(model, rows):
        mask = batch["attention_mask"].bool()
        handle = dense.register_forward_pre_hook(lambda m, a, mask=mask: seen.append(a[0][mask]))
        with torch.no_grad():
            model(**batch)
        handle.remove()
    found: np.ndarray = torch.cat(seen).double().var(0, correction=0).numpy()
    return found


@pytest.mark.parametrize("compensate", [True, False])
def test_it_decides_what_is_kept(
    compensate: bool, module: str, tiny_model: Callable[..., TextModel]
) -> None:
    import_extensions([module])
    model = tiny_model("bert", get_task("retrieval"))
    pruned = prune_model(
        model, TEXTS, intermediate_size=24, importance="spread", compensate=compensate
    )
    for layer, kept in enumerate(pruned.index_map["channels"]):
        best = np.argsort(-spread_by_hand(model, layer))[:24]
        assert set(kept) == set(best.tolist())
    plain = prune_model(model, TEXTS, intermediate_size=24, compensate=compensate)
    assert plain.index_map["channels"] != pruned.index_map["channels"]


def test_a_recipe_can_name_it_once_it_is_imported(
    module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = re.findall(r"^paredown (check .*)$", PAGE, re.MULTILINE)
    words = shlex.split(line)
    without = words[: words.index("--import")]
    assert cli.main(without) == 2
    assert "unknown criterion 'spread'" in capsys.readouterr().err
    assert cli.main(words) == 0
    assert cli.main([word for word in words if "layers" not in word]) == 2
    assert "'spread' does not score layers" in capsys.readouterr().err
