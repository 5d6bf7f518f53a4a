"""The loss of a language model's training, against full logits and formulas written here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from paredown.distill.language import LanguageDistiller
from paredown.distill.language_rows import BLANK, LanguageRows, join_targets, split_targets
from paredown.distill.language_trainer import last_start
from paredown.distill.token_targets import Full, Sampled, TopK
from paredown.eval.errors import RecipeError, RunError

from ..eval.generation_models import language_model
from .language_parts import full_logits, make_examples, record, recorded_rows, terms_of

FULL = {"encoding": "full"}
TOPK = {"encoding": "topk", "k": 5}
SAMPLED = {"encoding": "sampled", "draws": 20}


def inputs_of(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name != "rows"}


def kl_of(targets: Any, q: Tensor) -> Tensor:
    """Forward KL over what was recorded, from the student's full distribution, (N,)."""
    log_q = q.log()
    if isinstance(targets, Full):
        p = targets.logits.double().softmax(-1)
        return (torch.special.xlogy(p, p) - p * log_q).sum(-1)
    if isinstance(targets, Sampled):
        w = targets.weights.double()
        return (torch.special.xlogy(w, w) - w * log_q.gather(-1, targets.ids)).sum(-1)
    p, inside = targets.log_probs.double().exp(), q.gather(-1, targets.ids)
    rest = targets.rest.double()
    return (p * (p / inside).log()).sum(-1) + rest * (rest / (1 - inside.sum(-1))).log()


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3_text"])
@pytest.mark.parametrize("encoding", [FULL, TOPK, SAMPLED], ids=lambda e: str(e["encoding"]))
def test_the_loss_from_recorded_outputs_is_that_of_full_logits(
    kind: str, encoding: dict[str, Any], tmp_path: Path
) -> None:
    student = language_model(kind, seed=1)
    rows = recorded_rows(language_model(kind), tmp_path, encoding, count=6)
    batch = rows.collate([4, 0, 5])
    q = full_logits(student, batch).softmax(-1)
    labels = batch["labels"][batch["labels"] != -100]
    targets = join_targets(dict(batch))
    expected_kl = kl_of(targets, q).mean()
    expected_label = -q.gather(-1, labels[:, None]).log().mean()

    terms = terms_of({"forward_kl": 2.0, "cross_entropy": 0.5})
    total, each = LanguageDistiller(student, terms)(**inputs_of(batch))
    expected = torch.stack([expected_kl, expected_label]).detach()
    torch.testing.assert_close(each.double(), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        total.item(), float(2 * expected[0] + 0.5 * expected[1]), rtol=1e-5, atol=1e-6
    )


def test_the_loss_from_a_live_teacher_is_that_of_full_logits_and_so_is_its_gradient(
    tmp_path: Path,
) -> None:
    teacher, student = language_model(seed=0), language_model("qwen3", seed=1)
    rows = LanguageRows(make_examples(teacher, tmp_path, 6), 0)
    batch = rows.collate([1, 2, 3])
    with torch.no_grad():
        p = full_logits(teacher, batch).softmax(-1)
    expected = (p * (p.log() - full_logits(student, batch).log_softmax(-1))).sum(-1).mean()
    wanted = torch.autograd.grad(expected, list(student.parameters()))

    distiller = LanguageDistiller(student, terms_of(), teacher)
    total, _ = distiller(**inputs_of(batch))
    total.backward()
    torch.testing.assert_close(total.double(), expected, atol=1e-6, rtol=1e-5)
    for parameter, gradient in zip(student.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-5, rtol=1e-4)
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert not any("teacher" in name for name, _ in distiller.named_parameters())


def test_a_student_like_its_teacher_has_no_loss(tmp_path: Path) -> None:
    model = language_model()
    rows = recorded_rows(model, tmp_path, FULL, count=4)
    total, _ = LanguageDistiller(model, terms_of())(**inputs_of(rows.collate([0, 1, 2, 3])))
    assert 0 <= total.item() < 1e-5  # fp16 of the record


def test_a_teachers_loss_without_a_teacher_is_refused(tmp_path: Path) -> None:
    model = language_model()
    rows = LanguageRows(make_examples(model, tmp_path, 2), 0)
    with pytest.raises(RecipeError, match="neither recorded outputs nor a live teacher"):
        LanguageDistiller(model, terms_of())(**inputs_of(rows.collate([0, 1])))


def test_padding_changes_no_loss(tmp_path: Path) -> None:
    """Rows alone, each divided by the tokens of all, sum to the batch."""
    student = language_model(seed=1)
    rows = recorded_rows(language_model(), tmp_path, TOPK, count=6)
    distiller = LanguageDistiller(student, terms_of())
    together = distiller(**inputs_of(rows.collate([0, 1, 2])))[0]
    tokens = int(rows.examples.learned[:3].sum())
    alone = [distiller(divisor=tokens, **inputs_of(rows.collate([i])))[0] for i in range(3)]
    assert len(set(rows.lengths[:3].tolist())) > 1
    torch.testing.assert_close(torch.stack(alone).sum(), together)


# A vocabulary of 6 whose ids 1 and 4 are gone; the student's order is another one.
TABLE = np.array([2, -1, 0, 3, -1, 1])


def renumber(targets: Any) -> Any:
    rows = LanguageRows(None, 0, renumbered=TABLE)  # type: ignore[arg-type]
    return rows._renumber(targets)


def test_full_targets_are_renumbered_and_what_is_gone_leaves_the_others_in_proportion() -> None:
    p = torch.tensor([[0.1, 0.2, 0.3, 0.05, 0.25, 0.1]])
    found = renumber(Full(p.log())).logits.softmax(-1)
    kept = torch.tensor([[0.3, 0.1, 0.1, 0.05]])  # the student's 0, 1, 2, 3 are 2, 5, 0, 3
    torch.testing.assert_close(found, kept / kept.sum())


def test_topk_targets_are_renumbered_and_what_is_gone_joins_the_rest() -> None:
    made = TopK(
        torch.tensor([[0, 1, 3]]), torch.tensor([[0.4, 0.3, 0.2]]).log(), torch.tensor([0.1])
    )
    found = renumber(made)
    assert found.ids[0, [0, 2]].tolist() == [2, 3]
    torch.testing.assert_close(found.log_probs.exp(), torch.tensor([[0.4, 0.0, 0.2]]))
    torch.testing.assert_close(found.rest, torch.tensor([0.4]))


def test_sampled_targets_are_renumbered_and_draws_that_are_gone_count_nothing() -> None:
    found = renumber(Sampled(torch.tensor([[1, 3, 5]]), torch.tensor([[0.5, 0.3, 0.2]])))
    assert found.ids[0, 1:].tolist() == [3, 1]
    torch.testing.assert_close(found.weights, torch.tensor([[0.0, 0.3, 0.2]]))


@pytest.mark.parametrize("encoding", [FULL, TOPK, SAMPLED], ids=lambda e: str(e["encoding"]))
def test_the_loss_of_a_cut_vocabulary_is_that_over_the_ids_that_stayed(
    encoding: dict[str, Any], tmp_path: Path
) -> None:
    teacher = language_model()
    examples = make_examples(teacher, tmp_path / "tokens", 5)
    outputs = record(teacher, examples, tmp_path / "outputs", encoding)
    used = np.unique(np.concatenate([examples[row][0] for row in range(5)]))
    kept = np.unique(np.concatenate([np.arange(40), used]))
    table = np.full(teacher.width, -1)
    table[kept] = np.arange(len(kept))
    student = _cut(len(kept))
    own = make_renumbered(examples, table, tmp_path / "own")
    rows = LanguageRows(own, 0, outputs.rows("train"), outputs, table)
    batch = rows.collate([0, 1, 2, 3, 4])
    q = full_logits(student, batch).softmax(-1)

    records = outputs.get(outputs.rows("train").tolist())
    said = outputs.targets(records)
    gone = torch.from_numpy(table < 0)
    if isinstance(said, Full):
        p = said.logits.double().softmax(-1)[:, torch.from_numpy(kept)]
        p = p / p.sum(-1, keepdim=True)
        expected = (torch.special.xlogy(p, p) - p * q.log()).sum(-1)
    elif isinstance(said, Sampled):
        w = said.weights.double() * ~gone[said.ids]
        w = w / w.sum(-1, keepdim=True).clamp(min=1e-12)
        ids = torch.from_numpy(table)[said.ids].clamp(min=0)
        expected = (torch.special.xlogy(w, w) - w * q.gather(-1, ids).log()).sum(-1)
    else:
        values = []
        for i in range(len(said)):
            stay = ~gone[said.ids[i]]
            p = said.log_probs[i].double().exp()[stay]
            ids = torch.from_numpy(table)[said.ids[i][stay]]
            rest, inside = 1 - p.sum(), q[i, ids]
            tail = rest * (rest / (1 - inside.sum())).log()
            values.append((p * (p / inside).log()).sum() + tail)
        expected = torch.stack(values)
    total, _ = LanguageDistiller(student, terms_of())(**inputs_of(batch))
    torch.testing.assert_close(total.double(), expected.mean(), atol=1e-5, rtol=1e-5)


def _cut(size: int) -> Any:
    """A model of another vocabulary; its tokenizer is not asked."""
    model = language_model(seed=1)
    model.backbone.resize_token_embeddings(size)
    return model


def make_renumbered(examples: Any, table: Any, folder: Path) -> Any:
    from paredown.distill.examples import Examples
    from paredown.eval.dialogues import Example

    def every() -> Any:
        for row in range(len(examples)):
            ids, learned = examples[row]
            yield Example(table[ids].tolist(), learned.astype(int).tolist(), False)

    return Examples(every(), folder)


def test_outputs_of_other_tokens_are_refused(tmp_path: Path) -> None:
    teacher = language_model()
    outputs = record(teacher, make_examples(teacher, tmp_path / "a", 4), tmp_path / "outputs", TOPK)
    others = make_examples(teacher, tmp_path / "b", 4, seed=1)
    rows = LanguageRows(others, 0, items=outputs.rows("train"), outputs=outputs)
    with pytest.raises(RunError, match="Training row 2: the recorded outputs are of other tokens"):
        rows.collate([2, 3])


def test_targets_travel_in_a_batch_and_come_back() -> None:
    for made in (
        Full(torch.randn(3, 4)),
        TopK(torch.ones(3, 2, dtype=torch.long), torch.randn(3, 2), torch.rand(3)),
        Sampled(torch.ones(3, 2, dtype=torch.long), torch.rand(3, 2)),
    ):
        batch: dict[str, Any] = {"input_ids": torch.zeros(1, 1)} | split_targets(made)
        back = join_targets(batch)
        assert type(back) is type(made) and len(back) == 3
        assert list(batch) == ["input_ids"]
        assert join_targets(batch) is None


def test_the_last_run_of_learned_tokens_is_found() -> None:
    ignored = -100
    assert last_start(torch.tensor([ignored, 5, 6, ignored, 7, 8])) == 4
    assert last_start(torch.tensor([ignored, 5, 6, ignored])) == 1
    assert last_start(torch.tensor([ignored, ignored])) == 0


@pytest.mark.parametrize("encoding", [FULL, TOPK, SAMPLED], ids=lambda e: str(e["encoding"]))
def test_blank_rows_change_no_loss_and_a_batch_of_them_has_none(
    encoding: dict[str, Any], tmp_path: Path
) -> None:
    """Processes that share a short batch get rows of nothing to learn, and all have gradients."""
    student = language_model(seed=1)
    rows = recorded_rows(language_model(), tmp_path, encoding, count=4)
    distiller = LanguageDistiller(student, terms_of({"forward_kl": 1.0, "cross_entropy": 1.0}))
    plain = distiller(**inputs_of(rows.collate([3, 1])))[0]
    filled = distiller(**inputs_of(rows.collate([3, BLANK, 1, BLANK])))[0]
    torch.testing.assert_close(filled, plain)
    empty, each = distiller(divisor=7, **inputs_of(rows.collate([BLANK, BLANK])))
    empty.backward()
    assert empty.item() == 0 and each.tolist() == [0, 0]
    for parameter in student.parameters():
        assert parameter.grad is not None and (parameter.grad == 0).all()
