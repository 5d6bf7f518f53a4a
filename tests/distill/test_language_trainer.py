"""Training of language models: it learns, resumes exactly, accumulates and writes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from paredown.distill.language import LanguageDistiller
from paredown.distill.language_rows import BLANK, LanguageRows
from paredown.distill.language_trainer import LanguageTrainer, OnPolicy
from paredown.distill.optimizers import MuonWithAdamW, muon_matrices
from paredown.distill.trainer import last_checkpoint, run
from paredown.eval.checkpoints import save_model
from paredown.eval.errors import RecipeError
from paredown.eval.models import TextModel, load_model
from paredown.eval.tasks import get_task

from ..eval.generation_models import language_model
from .language_parts import (
    full_logits,
    logged,
    make_examples,
    make_trainer,
    recorded_rows,
    same_state,
    state_of,
    terms_of,
)

TOPK = {"encoding": "topk", "k": 5}


def tied(seed: int = 1) -> TextModel:
    return language_model("qwen3", seed=seed, tie_word_embeddings=True)


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


def killed_at(step: int) -> Any:
    """What is called after each step, and never comes back from one of them."""
    done = 0

    def after_step() -> None:
        nonlocal done
        done += 1
        if done == step:
            raise Killed

    return after_step


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resume_after_a_kill_in_a_later_epoch_gives_the_same_student(
    optimizer: str, tmp_path: Path
) -> None:
    rows = recorded_rows(language_model(), tmp_path / "rows", TOPK)  # 6 steps an epoch
    settings: dict[str, Any] = {"optimizer": optimizer, "epochs": 4, "learning_rate": 3e-3}
    undisturbed = tied()
    before = state_of(undisturbed)
    trained = run(make_trainer(undisturbed, rows, tmp_path / "one", **settings), undisturbed)
    losses = logged(trained.history)
    assert sum(losses[-6:]) < 0.8 * sum(losses[:6])
    assert not same_state(before, state_of(undisturbed))

    student = tied()
    trainer = make_trainer(student, rows, tmp_path / "two", **settings)
    with pytest.raises(Killed):
        run(trainer, student, after_step=killed_at(15))  # in the third epoch
    student = tied()
    resumed = run(make_trainer(student, rows, tmp_path / "two", **settings), student)
    assert resumed.resumed_from == 12
    assert logged(resumed.history) == losses
    assert same_state(state_of(undisturbed), state_of(student))


def test_a_resumed_muon_has_its_momenta(tmp_path: Path) -> None:
    """With fresh momenta the steps after a resume would be others."""
    rows = recorded_rows(language_model(), tmp_path / "rows", TOPK)
    student = tied()
    run(make_trainer(student, rows, tmp_path / "run", optimizer="muon"), student)
    checkpoint = last_checkpoint(tmp_path / "run", 1)
    assert checkpoint is not None
    saved = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    muon, adamw = saved["inner"]
    assert len(muon["state"]) == len(muon_matrices(student))
    assert all("momentum_buffer" in state for state in muon["state"].values())
    assert all("exp_avg" in state for state in adamw["state"].values())


def test_muon_steps_the_matrices_of_layers_and_adamw_all_else() -> None:
    student = tied()
    parameters = dict(student.named_parameters())
    groups = [{"params": list(parameters.values()), "weight_decay": 0.0}]
    made = MuonWithAdamW(student, 1e-3, 0.0, groups)
    muon, adamw = ({id(p) for g in inner.param_groups for p in g["params"]} for inner in made.inner)
    names = {n for n, p in parameters.items() if id(p) in muon}
    assert muon.isdisjoint(adamw) and len(muon) + len(adamw) == len(parameters)
    assert len(names) == 3 * 7  # q, k, v, o, gate, up, down
    assert all(".layers." in name and "proj" in name for name in names)
    assert made.param_groups[0]["lr"] == made.param_groups[-1]["lr"] == 1e-3


def test_muon_without_a_matrix_is_refused() -> None:
    student = tied()
    for name, parameter in student.named_parameters():
        parameter.requires_grad_("norm" in name)
    with pytest.raises(RecipeError, match="none is trained here; say adamw"):
        MuonWithAdamW(student, 1e-3, 0.0, [{"params": list(student.parameters())}])


def test_tied_embeddings_are_saved_once_and_come_back_tied(tmp_path: Path) -> None:
    from safetensors import safe_open

    rows = recorded_rows(language_model(), tmp_path / "rows", TOPK)
    student = tied()
    # The best epoch is the first: its weights are read again from the checkpoint.
    figures = iter([1.0, 0.0])
    trainer = make_trainer(
        student,
        rows,
        tmp_path / "run",
        epochs=2,
        validate=lambda _: {"exact_match": next(figures)},
    )
    run(trainer, student)
    first = tmp_path / "run" / "checkpoint-6" / "model.safetensors"
    with safe_open(first, "pt") as file:
        names = list(file.keys())
        saved = file.get_tensor("student.backbone.model.embed_tokens.weight")
    assert "student.backbone.lm_head.weight" not in names
    embeddings = student.backbone.get_input_embeddings().weight
    assert student.head.weight is embeddings
    assert torch.equal(embeddings, saved)
    save_model(student, tmp_path / "student")
    again = load_model(tmp_path / "student", get_task("generation"))
    assert again.head.weight is again.backbone.get_input_embeddings().weight


def test_accumulated_batches_step_as_one_large_batch(tmp_path: Path) -> None:
    rows = recorded_rows(language_model(), tmp_path / "rows", TOPK)
    counts = rows.examples.learned
    assert len(set(counts.tolist())) > 4
    found = {}
    losses = {"forward_kl": 1.0, "cross_entropy": 0.5}
    for size, steps in ((8, 1), (2, 4)):
        student = tied()
        # Plain steps: AdamW's first ones hardly depend on the size of the gradient.
        trainer = make_trainer(
            student,
            rows,
            tmp_path / f"{size}",
            losses,
            batch_size=size,
            optim="sgd",
            learning_rate=1e-2,
            gradient_accumulation_steps=steps,
        )
        _in_order(trainer)
        trained = run(trainer, student)
        found[size] = (trained, state_of(student))
    for name in ("loss", "loss_forward_kl", "loss_cross_entropy"):
        one, other = (logged(trained.history, name) for trained, _ in found.values())
        assert len(one) == 3
        assert one == pytest.approx(other, abs=1e-5)
    for name, value in found[8][1].items():
        torch.testing.assert_close(value, found[2][1][name], atol=1e-5, rtol=0)


def _in_order(trainer: LanguageTrainer) -> None:
    """Batches in the order of the rows, whatever their size."""
    rows = torch.utils.data.SequentialSampler(range(len(trainer.rows)))
    trainer._get_train_sampler = lambda *_: rows  # type: ignore[method-assign, assignment, return-value]


# The student writes -----------------------------------------------------------------------------


def policy(share: float) -> OnPolicy:
    return OnPolicy(share, max_new_tokens=6, eos=2)


def one_batch(trainer: LanguageTrainer, rows: LanguageRows, numbers: list[int]) -> dict[str, Any]:
    batches, counted = trainer.get_batch_samples(
        iter([rows.collate(numbers)]), 1, trainer.args.device
    )
    (batch,) = batches
    batch["counted"] = counted
    return dict(batch)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_what_the_student_writes_is_scored_by_the_teacher_alone(
    share: float, tmp_path: Path
) -> None:
    teacher, student = language_model(seed=0), language_model("qwen3", seed=1)
    rows = recorded_rows(teacher, tmp_path / "rows", {"encoding": "full"})
    trainer = make_trainer(
        student,
        rows,
        tmp_path / "run",
        {"forward_kl": 1.0, "cross_entropy": 0.5},
        teacher=teacher,
        on_policy=policy(share),
    )
    batch = one_batch(trainer, rows, list(range(12)))
    counted = batch.pop("counted")
    left = len(batch["input_ids"])
    written = {n[8:]: v for n, v in batch.items() if n.startswith("written_")}
    assert left + len(written["input_ids"]) == 12
    assert left == 0 if share == 1 else 0 < left < 12
    _prompts_are_kept(rows, batch, written)

    own = {n: v for n, v in batch.items() if not n.startswith("written_")}
    tokens = int((own["labels"] != -100).sum() + (written["labels"] != -100).sum())
    assert counted == tokens
    with torch.no_grad():
        sums = _kl_sum(teacher, student, written)
        if left:
            # From the record itself, whose fp16 is in it; its rows must be those that stayed.
            p = own["teacher_full_logits"].double().softmax(-1)
            log_q = full_logits(student, own).log_softmax(-1)
            sums = sums + (torch.special.xlogy(p, p) - p * log_q).sum()
            labels = own["labels"][own["labels"] != -100]
            sums = sums - 0.5 * log_q.gather(-1, labels[:, None]).sum()
    trainer.current_gradient_accumulation_steps = 1  # as the Trainer sets it before a step
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=counted)
    assert loss.item() == pytest.approx(float(sums) / tokens, abs=1e-5)


def _kl_sum(teacher: TextModel, student: TextModel, batch: Mapping[str, Tensor]) -> Tensor:
    p = full_logits(teacher, batch).softmax(-1)
    return (p * (p.log() - full_logits(student, batch).log_softmax(-1))).sum()


def _prompts_are_kept(
    rows: LanguageRows, batch: Mapping[str, Tensor], written: Mapping[str, Tensor]
) -> None:
    """Each written row starts with the prompt of a row that is no longer in the batch."""
    gone = [i for i in range(12) if i not in batch["rows"].tolist()]
    for row, ids, labels in zip(gone, written["input_ids"], written["labels"], strict=True):
        known, learned = rows.examples[row]
        start = int(learned.argmax())
        assert ids[:start].tolist() == known[:start].tolist()
        assert (labels[:start] == -100).all()
        assert 1 <= int((labels != -100).sum()) <= 6
        assert torch.equal(labels[labels != -100], ids[labels != -100])


def test_what_the_student_writes_depends_on_seed_and_step_alone(tmp_path: Path) -> None:
    teacher, student = language_model(seed=0), language_model("qwen3", seed=1)
    rows = LanguageRows(make_examples(teacher, tmp_path / "rows"), 0)

    def written(seed: int, step: int) -> list[Any]:
        torch.manual_seed(step + 17 * seed)  # of no account
        trainer = make_trainer(
            student, rows, tmp_path / "run", teacher=teacher, on_policy=policy(1.0), seed=seed
        )
        trainer.state.global_step = step
        found = one_batch(trainer, rows, [0, 1, 2])["written_input_ids"].tolist()
        return list(found)

    assert written(0, 3) == written(0, 3)
    assert written(0, 3) != written(0, 4)
    assert written(0, 3) != written(1, 3)


def test_a_student_that_writes_learns_and_resumes(tmp_path: Path) -> None:
    teacher = language_model(seed=0)
    rows = LanguageRows(make_examples(teacher, tmp_path / "rows", 12), 0)
    settings: dict[str, Any] = {
        "teacher": teacher,
        "on_policy": policy(0.5),
        "epochs": 3,
        "learning_rate": 5e-3,
    }
    one = language_model("qwen3", seed=1)
    trained = run(make_trainer(one, rows, tmp_path / "one", **settings), one)
    losses = logged(trained.history)
    assert losses[-1] < losses[0]
    two = language_model("qwen3", seed=1)
    with pytest.raises(Killed):
        run(make_trainer(two, rows, tmp_path / "two", **settings), two, after_step=killed_at(8))
    two = language_model("qwen3", seed=1)
    resumed = run(make_trainer(two, rows, tmp_path / "two", **settings), two)
    assert resumed.resumed_from == 6
    assert same_state(state_of(one), state_of(two))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "muon"}, "muon needs whole matrices"),
        ({"on_policy": OnPolicy(0.5, 6, 2)}, r"distill\.on_policy: .* launch with DDP"),
    ],
)
def test_what_needs_whole_weights_is_refused_where_a_launch_shards_them(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    student = tied()
    rows = LanguageRows(make_examples(student, tmp_path / "rows", 4), 0)
    trainer = make_trainer(student, rows, tmp_path / "run", **settings)
    trainer.check_launch()  # whole weights are fine
    trainer.is_fsdp_enabled = True
    with pytest.raises(RecipeError, match=message):
        trainer.check_launch()


def test_adapters_are_refused_where_a_launch_shards_the_weights(tmp_path: Path) -> None:
    student = tied()
    rows = LanguageRows(make_examples(student, tmp_path / "rows", 4), 0)
    trainer = make_trainer(student, rows, tmp_path / "run")
    trainer.is_fsdp_enabled = True
    trainer.check_launch()
    student.head.weight.requires_grad_(False)
    with pytest.raises(RecipeError, match=r"distill\.lora: .* launch with DDP"):
        trainer.check_launch()


def test_accelerate_finds_the_layers_to_shard_and_ties_what_it_moved() -> None:
    student = tied()
    distiller = LanguageDistiller(student, terms_of())
    (layer,) = distiller._no_split_modules
    assert type(student.backbone.model.layers[0]).__name__ == layer
    assert not hasattr(distiller, "get_output_embeddings")
    distiller.to("meta")
    distiller.tie_weights()
    assert student.head.weight is student.backbone.get_input_embeddings().weight


def test_a_distiller_keeps_its_teacher_out_of_what_is_saved() -> None:
    student = language_model(seed=1)
    distiller = LanguageDistiller(student, [], copy.deepcopy(student))
    assert len(list(distiller.parameters())) == len(list(student.parameters()))
    assert set(distiller.state_dict()) == {f"student.{name}" for name in student.state_dict()}


def test_blank_rows_are_never_written_by_the_student(tmp_path: Path) -> None:
    teacher, student = language_model(seed=0), language_model("qwen3", seed=1)
    rows = LanguageRows(make_examples(teacher, tmp_path / "rows", 4), 0)
    trainer = make_trainer(student, rows, tmp_path / "run", teacher=teacher, on_policy=policy(1.0))
    batch = one_batch(trainer, rows, [0, BLANK, 2])
    assert len(batch["written_input_ids"]) == 2
    assert batch["rows"].tolist() == [BLANK]
