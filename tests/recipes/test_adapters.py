"""Low-rank adapters: they alone are trained, and nothing of them is left in what is saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from paredown.distill.trainer import run
from paredown.eval.checkpoints import save_model
from paredown.eval.errors import RecipeError
from paredown.eval.models import load_model
from paredown.eval.tasks import get_task
from paredown.recipes.schema import Lora
from paredown.recipes.stage_distill_tokens import with_adapters

from ..distill.language_parts import full_logits, make_trainer, recorded_rows, state_of
from ..eval.generation_models import language_model

TOPK = {"encoding": "topk", "k": 5}


def test_only_adapters_are_trained_and_the_merged_student_is_a_stock_checkpoint(
    tmp_path: Path,
) -> None:
    rows = recorded_rows(language_model(), tmp_path / "rows", TOPK)
    student = language_model("qwen3", seed=1, tie_word_embeddings=True)
    before = state_of(student)
    names = set(before)
    adapters = with_adapters(student, Lora(r=4, alpha=8, dropout=0.0))
    trained = {n for n, p in student.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    run(make_trainer(student, rows, tmp_path / "run", learning_rate=1e-2), student)
    after = state_of(student)
    for name in names:
        layer = name.replace("_proj.weight", "_proj.base_layer.weight")
        assert torch.equal(before[name], after[layer if layer in after else name])

    batch = rows.collate([0, 1, 2])
    with torch.no_grad():
        unmerged = full_logits(student, batch)
        student.backbone = adapters.merge_and_unload()  # type: ignore[assignment]
        untrained = full_logits(language_model("qwen3", seed=1, tie_word_embeddings=True), batch)
    save_model(student, tmp_path / "student")
    again = load_model(tmp_path / "student", get_task("generation"))
    with torch.no_grad():
        torch.testing.assert_close(full_logits(again, batch), unmerged, atol=1e-4, rtol=1e-4)
    assert (unmerged - untrained).abs().max() > 0.01
    with safe_open(tmp_path / "student" / "model.safetensors", "pt") as file:
        assert not any("lora" in name or "base_layer" in name for name in file.keys())  # noqa: SIM118
    assert not (tmp_path / "student" / "adapter_config.json").exists()


def test_adapters_on_layers_that_are_not_there_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"distill\.lora: .*c_attn"):
        with_adapters(language_model(), Lora(target_modules=["c_attn"]))
