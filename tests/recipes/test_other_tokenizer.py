"""A teacher with another tokenizer, from checkpoints and rows to a student."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paredown.eval.errors import RecipeError, RunError
from paredown.eval.models import load_tokenizer
from paredown.recipes.api import check, run
from paredown.recipes.smoke import write_model

Base = dict[str, Any]


@pytest.fixture
def base(tmp_path: Path) -> Base:
    """A student of 300 tokens learns from a teacher of 512."""
    for split, count in (("train", 48), ("test", 12)):
        words = ("open", "close", "find", "check")
        rows = [
            {
                "prompt": f"how do I {words[i % 4]} the {split} account {i}? ",
                "completion": f"{words[i % 4]} the account statement",
            }
            for i in range(count)
        ]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    write_model("llama", tmp_path / "teacher", 2, 32, 512)
    write_model("llama", tmp_path / "student", 2, 32, 300)
    return {
        "name": "translated",
        "task": "generation",
        "data": {"files": {s: str(tmp_path / f"{s}.jsonl") for s in ("train", "test")}},
        "teacher": {
            "model": str(tmp_path / "teacher"),
            "finetune": {"epochs": 4, "batch_size": 8, "learning_rate": 1e-2, "precision": "fp32"},
        },
        "student": {"model": str(tmp_path / "student")},
        "capture": {"precision": "fp32", "k": 8},
        "distill": {
            "epochs": 4,
            "batch_size": 8,
            "learning_rate": 1e-2,
            "losses": {"uld": 1.0, "cross_entropy": 1.0},
            "precision": "fp32",
            "arguments": {"logging_steps": 6},
        },
        "generation": {"max_new_tokens": 12},
        "evaluate": {"latency_rows": 0, "resamples": 100},
    }


def stage(folder: Path, name: str) -> tuple[Path, dict[str, Any]]:
    """A stage's folder of a run, and what it said."""
    path = folder / "stages" / name
    return path, json.loads((path / "stage.json").read_text(encoding="utf-8"))


def losses(folder: Path, name: str) -> list[float]:
    """A term's value each time it was logged."""
    history = json.loads((folder / "history.json").read_text(encoding="utf-8"))
    return [line[f"loss_{name}"] for line in history if f"loss_{name}" in line]


@pytest.mark.parametrize(
    "capture",
    [
        {"k": 8},
        pytest.param({"encoding": "full", "k": None}, marks=pytest.mark.slow),
        {"over": "generations"},
    ],
    ids=["topk", "full", "generations"],
)
def test_a_student_learns_from_a_teacher_with_another_tokenizer(
    base: Base, tmp_path: Path, capture: dict[str, Any]
) -> None:
    base["capture"] |= capture
    run(base, out=tmp_path / "run")
    folder, said = stage(tmp_path / "run", "distill")
    found = losses(folder, "uld")
    assert len(found) >= 3 and min(found) < 0.9 * found[0]
    assert losses(folder, "cross_entropy")[-1] < losses(folder, "cross_entropy")[0]
    assert said["aligned"] > 0.8
    if "over" not in capture:
        assert said["aligned"] == 1  # every token of the references, the end included


def test_uld_alone_teaches_and_needs_no_labels(base: Base, tmp_path: Path) -> None:
    base["distill"] |= {"losses": {"uld": 1.0}}
    run(base, out=tmp_path / "run")
    found = losses(stage(tmp_path / "run", "distill")[0], "uld")
    assert found[-1] < 0.7 * found[0]


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ({"forward_kl": 1.0}, "'forward_kl' compares teacher and student token by token"),
        ({"hidden_mse": 1.0}, "'hidden_mse' compares the hidden states"),
    ],
)
def test_losses_of_the_same_tokens_are_refused(
    base: Base, tmp_path: Path, losses: dict[str, float], message: str
) -> None:
    base["distill"] |= {"losses": losses}
    base["teacher"]["finetune"] = None
    with pytest.raises(RecipeError, match=message):
        run(base, out=tmp_path / "run")


def test_uld_with_one_tokenizer_is_refused(base: Base, tmp_path: Path) -> None:
    base["student"] = {"model": base["teacher"]["model"]}
    base["teacher"]["finetune"] = None
    with pytest.raises(RecipeError, match="this one has the student"):
        run(base, out=tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student": None}, "cut from the teacher: add student.model"),
        ({"capture.encoding": "sampled", "capture.k": None}, "order of size"),
        ({"distill.losses": {"uld": {"weight": 1, "temperature": 2}}}, "needs capture.encoding"),
        (
            {
                "capture": {"encoding": "full"},
                "distill.losses": {"uld": {"weight": 1, "temperature": -1}},
            },
            "a number above 0",
        ),
        ({"distill.losses": {"uld": {"weight": 1, "beta": 0.1}}}, "has no such option"),
        ({"distill.on_policy": 0.5}, "nothing is of what the student writes"),
        ({"capture.encoding": "text", "capture.k": None}, "only texts are recorded"),
        ({"capture.hidden_rank": 4}, "recorded for hidden_mse alone"),
    ],
)
def test_what_uld_cannot_do_is_said_before_anything_runs(
    base: Base, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        check(base, changes)


def test_texts_that_differ_are_refused_before_training(base: Base, tmp_path: Path) -> None:
    from paredown.distill.byte_spans import ByteSpans

    def nothing(self: Any, student: Any, teacher: Any) -> Any:
        return np.full(len(student), -1), np.full(len(teacher), -1)

    base["teacher"]["finetune"] = None
    with pytest.MonkeyPatch.context() as patched, pytest.raises(RunError, match="no span of the"):
        patched.setattr(ByteSpans, "of", nothing)
        run(base, out=tmp_path / "run")


def test_a_smoke_run_gives_the_student_another_tokenizer(base: Base, tmp_path: Path) -> None:
    base |= {"smoke": {"architecture": "llama"}}
    base["distill"] |= {"epochs": 1}
    base["teacher"]["finetune"] = None
    run(base, out=tmp_path / "run", smoke=True)
    assert stage(tmp_path / "run", "distill")[1]["aligned"] == 1


def test_log_probabilities_on_file_teach_over_another_tokenizer(base: Base, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tmp_path / "teacher")

    def said(text: str) -> list[dict[str, Any]]:
        """What a server sends for each token: itself, and one other."""
        found = []
        for i in tokenizer(text, add_special_tokens=False)["input_ids"]:
            own = {"token": tokenizer.decode([i]), "logprob": -0.1}
            found.append({**own, "top_logprobs": [own, {"token": "z", "logprob": -3.0}]})
        return found

    for split in ("train", "test"):
        lines = (tmp_path / f"{split}.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        rows = [{**row, "logprobs": said(row["completion"])} for row in rows]
        (tmp_path / f"said-{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    base["teacher"] = {
        "kind": "recorded",
        "files": {s: str(tmp_path / f"said-{s}.jsonl") for s in ("train", "test")},
        "tokenizer": str(tmp_path / "teacher"),
    }
    base["capture"] = {"k": 2, "precision": "fp32"}
    base["distill"] |= {"epochs": 2, "losses": {"uld": 1.0}}
    run(base, out=tmp_path / "run")
    folder, record = stage(tmp_path / "run", "distill")
    assert record["aligned"] == 1
    assert losses(folder, "uld")[-1] < losses(folder, "uld")[0]
    base["student"] = {"model": str(tmp_path / "teacher")}
    with pytest.raises(RecipeError, match="this one has the student"):
        run(base, out=tmp_path / "same")


def test_log_probabilities_on_file_are_of_other_ids_than_the_students(
    base: Base, tmp_path: Path
) -> None:
    from . import generation_recipes as made

    teacher = tmp_path / "teacher"
    for split in ("train", "test"):
        rows = [json.loads(x) for x in (tmp_path / f"{split}.jsonl").read_text().splitlines()]
        said = [row["completion"] for row in rows]
        made.answered(tmp_path / f"said-{split}.jsonl", rows, said, str(teacher))
    base["teacher"] = {
        "kind": "recorded",
        "files": {s: str(tmp_path / f"said-{s}.jsonl") for s in ("train", "test")},
        "tokenizer": str(teacher),
    }
    base["capture"] = {"k": 3}
    base["distill"] |= {"epochs": 1, "losses": {"forward_kl": 1.0}}
    swapped = shutil.copytree(teacher, tmp_path / "swapped")
    tokenizer = json.loads((swapped / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    a, b = vocabulary["a"], vocabulary["e"]
    vocabulary |= {"a": b, "e": a}
    (swapped / "tokenizer.json").write_text(json.dumps(tokenizer))
    for student, cut in ((swapped, None), (swapped, {"vocabulary": "task"})):
        base |= {"student": {"model": str(student)}, "prune": cut}
        with pytest.raises(RecipeError, match=r"tokenizers differ: .* Use 'uld'"):
            run(base, out=tmp_path / "run")
    base |= {"student": {"model": str(teacher)}, "prune": None}
    run(base, out=tmp_path / "run")
