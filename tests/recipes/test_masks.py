"""A mask in a recipe: zeros that training keeps, and a report that calls them no saving."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from paredown.distill.trainer import DistillTrainer
from paredown.eval.errors import RecipeError, RunError
from paredown.eval.models import load_model
from paredown.eval.tasks import get_task
from paredown.prune.masks import Zeros, zeros_of
from paredown.recipes.api import check, run
from paredown.recipes.html import page
from paredown.recipes.model_card import model_card
from paredown.recipes.report import mask_sentence, print_summary
from paredown.recipes.smoke import smoke_recipe

Base = dict[str, Any]
Make = Callable[..., dict[str, Any]]


@pytest.fixture
def base(tmp_path: Path, tiny_checkpoint: Callable[..., Path]) -> Base:
    """A recipe that masks a tiny classifier and cuts nothing."""
    words = ("open", "close", "find")
    for split, count in (("train", 72), ("test", 24)):
        rows = [
            {"text": f"{words[i % 3]} the bank account {split} {i}", "label": words[i % 3]}
            for i in range(count)
        ]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {
        "name": "masked",
        "task": "classification",
        "data": {"files": {s: str(tmp_path / f"{s}.jsonl") for s in ("train", "test")}},
        "teacher": {
            "model": str(tiny_checkpoint("bert", "classification")),
            "finetune": {"epochs": 1, "precision": "fp32"},
        },
        "capture": {"precision": "fp32"},
        "prune": {"mask": {"pattern": "2:4"}, "calibration_rows": 16},
        "distill": {"epochs": 2, "batch_size": 16, "losses": {"kl": 1.0}, "precision": "fp32"},
        "evaluate": {"latency_rows": 0, "resamples": 100},
    }


def weights(folder: Path) -> dict[str, Tensor]:
    model = load_model(folder / "checkpoint", get_task("classification"))
    return dict(model.named_parameters())


def test_zeros_stay_zero_through_training_and_a_resume(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "runs" / "masked"
    lose = {**base, "distill": base["distill"] | {"learning_rate": 1e-3}}
    with monkeypatch.context() as broken, pytest.raises(RunError, match="no longer zero"):
        broken.setattr(Zeros, "keep", lambda self, model: None)
        run(lose, out=folder)

    loss, steps = DistillTrainer.compute_loss, [0]

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        steps[0] += 1
        if steps[0] == 7:  # 65 rows by 16: 5 steps an epoch, so this is in the second
            raise RunError("interrupted")
        return loss(*args, **kwargs)

    with monkeypatch.context() as stopped, pytest.raises(RunError, match="interrupted"):
        stopped.setattr(DistillTrainer, "compute_loss", interrupted)
        run(base, out=folder)
    result = run(base, out=folder)
    record = json.loads((folder / "stages" / "distill" / "stage.json").read_text())
    assert record["resumed_from"] == 5

    facts = json.loads((folder / "stages" / "prune" / "prune.json").read_text())["mask"]
    assert facts == {"method": "sparsegpt", "pattern": "2:4", "zeros": 0.5, "maps": 12}
    before, after = weights(folder / "stages" / "prune"), weights(folder / "stages" / "distill")
    masked = [name for name, weight in before.items() if ".layer." in name and weight.ndim == 2]
    assert len(masked) == 12
    for name in masked:
        assert torch.equal(before[name] == 0, after[name] == 0)
        assert not torch.equal(before[name], after[name])

    assert result.report is not None
    mask, cost = result.report["mask"], result.report["cost"]
    assert {key: mask[key] for key in facts} == facts and mask["cut"] is False
    assert mask["bytes"] == {side: cost[side]["bytes"] for side in ("teacher", "student")}
    assert cost["ratio"]["flops"] == cost["ratio"]["parameters"] == 1  # counted dense
    said = "50 % of the weights of 12 linear maps are zero (sparsegpt, 2:4)"
    assert said in (folder / "student" / "README.md").read_text()


def test_a_mask_comes_after_the_cuts_and_needs_no_training(base: Base, tmp_path: Path) -> None:
    base |= {"distill": None}
    base["prune"] = {"layers": 1, "vocabulary": "task", "mask": {"pattern": 0.25}}
    base["prune"]["mask"]["method"] = "magnitude"
    result = run(base, out=tmp_path / "runs" / "masked")
    assert result.report is not None
    mask = result.report["mask"]
    assert (mask["maps"], mask["zeros"], mask["cut"]) == (6, 0.25, True)
    assert result.report["cost"]["ratio"]["flops"] < 0.6
    student = load_model(result.folder / "student", get_task("classification"))
    assert 0.1 < zeros_of(student) < 0.25  # of all its numbers


def masked(make_report: Make, **changes: Any) -> dict[str, Any]:
    entry: dict[str, Any] = {"method": "wanda", "pattern": 0.5, "zeros": 0.5, "maps": 36}
    sizes = {"teacher": 90_870_000, "student": 90_870_000}
    times = {"teacher": 12.1, "student": 12.04}
    entry |= {"cut": False, "bytes": sizes, "latency_ms_p50": times}
    return make_report(mask=entry | changes)


def test_the_report_says_that_zeros_save_nothing(make_report: Make) -> None:
    report = masked(make_report)
    said = (
        "50 % of the weights of 36 linear maps are zero (wanda, unstructured). A dense runtime "
        "multiplies by zeros as by any number: no smaller (90.9 MB → 90.9 MB) and no faster "
        "(12.1 ms → 12.0 ms, measured)."
    )
    assert mask_sentence(report) == said
    stream = io.StringIO()
    print_summary(report, Console(file=stream, width=400))
    assert said in stream.getvalue()
    assert said in page(report, []).replace("\N{NO-BREAK SPACE}", " ")
    assert said in model_card(report)


def test_what_cuts_save_beside_a_mask_is_not_the_masks(make_report: Make) -> None:
    sizes = {"teacher": 90_870_000, "student": 27_800_000}
    said = mask_sentence(masked(make_report, cut=True, bytes=sizes, zeros=2 / 3, pattern="1:3"))
    assert said is not None and "66.7 %" in said and "(wanda, 1:3)" in said
    assert "of what the student saves (90.9 MB → 27.8 MB; 12.1 ms → 12.0 ms, measured)" in said
    unknown = mask_sentence(masked(make_report, latency_ms_p50=dict.fromkeys(sizes)))
    assert unknown is not None and "latency not measured" in unknown
    assert mask_sentence(make_report()) is None
    assert "Mask" not in page(make_report(), [])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prune": {"mask": {"pattern": "4:2"}}}, "prune.mask.pattern: A mask is a share of"),
        ({"prune": {"mask": {"pattern": 1.5}}}, "prune.mask.pattern: A mask is a share of"),
        ({"prune": {"mask": {"pattern": "2:4", "method": "wnda"}}}, "Did you mean 'wanda'"),
        ({"prune": {"mask": {}}}, "prune.mask.pattern: this key is required"),
        ({"budget": {"flops": 0.5}}, "prune.mask: saves nothing in a dense checkpoint"),
        ({"prune": {"layers": 1, "rounds": 2, "mask": {"pattern": 0.5}}}, "say rounds: 1"),
        ({"prune": {"mask": {"pattern": 0.5}, "compensate": False}}, "prune.compensate: fits"),
        (
            {"prune": {"mask": {"pattern": 0.5, "method": "magnitude"}, "calibration_rows": 9}},
            "prune.calibration_rows: nothing is measured on rows",
        ),
    ],
)
def test_masks_that_cannot_be_are_refused_when_the_recipe_is_read(
    base: Base, changes: Base, said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        check({**base, **changes})


@pytest.mark.parametrize("mask", [{"pattern": "3:6"}, {"method": "magnitude", "pattern": 0.5}])
def test_a_masked_recipe_can_be_smoked(base: Base, mask: Base, tmp_path: Path) -> None:
    recipe = check({**base, "prune": {"mask": mask}, "smoke": {"architecture": "bert"}})
    tiny = smoke_recipe(recipe, tmp_path).prune
    assert tiny is not None and tiny.mask is not None
    assert tiny.mask.pattern in ("2:4", 0.5)


def test_a_wrong_pattern_is_found_on_its_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\ntask: classification\ndata: {files: {train: a, test: b}}\n"
        "teacher: {model: a/b}\nprune:\n  mask:\n    method: wanda\n    pattern: 4:4\n"
    )
    with pytest.raises(RecipeError, match=r"line 8: prune\.mask\.pattern: A mask is .* got '4:4'"):
        check(str(path))
