"""Recording a language model: what is recorded is what it says, once, whoever shares the work."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from paredown.distill import token_capture
from paredown.distill.examples import Examples
from paredown.distill.token_capture import Writing, capture_tokens, distinct
from paredown.distill.token_outputs import TokenOutputs
from paredown.distill.token_targets import Full, TopK
from paredown.eval.dialogues import Dialogues, Example
from paredown.eval.errors import RunError
from paredown.eval.generating import generate
from paredown.eval.models import TextModel

from ..eval.generation_models import CHAT, language_model
from .language_parts import make_examples, record

FULL = {"encoding": "full"}
TOPK = {"encoding": "topk", "k": 5}


def logits_of(model: TextModel, ids: Any, positions: Any) -> torch.Tensor:
    """The stock class's logits of one row alone, (T, V)."""
    with torch.no_grad():
        logits = model.backbone(input_ids=torch.tensor([list(ids)])).logits[0]
    return logits[torch.as_tensor(positions) - 1]


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_what_is_recorded_is_what_the_model_says(kind: str, tmp_path: Path) -> None:
    model = language_model(kind)
    examples = make_examples(model, tmp_path / "tokens", 7)
    outputs = record(model, examples, tmp_path / "out", FULL, batch_tokens=120)
    for row, item in enumerate(outputs.rows("train").tolist()):
        (found,) = outputs.get([item])
        ids, learned = examples[row]
        assert found.ids.tolist() == ids.tolist()  # type: ignore[union-attr]
        assert found.positions.tolist() == np.flatnonzero(learned).tolist()
        targets = outputs.targets([found])
        assert isinstance(targets, Full)
        own = logits_of(model, ids, found.positions).log_softmax(-1)
        torch.testing.assert_close(targets.logits.log_softmax(-1), own, atol=0.02, rtol=1e-3)
        assert (targets.logits.softmax(-1) - own.exp()).abs().max() < 1e-3
        assert found.text is None


def test_full_distributions_of_a_shard_are_bounded_by_their_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = language_model()
    examples = make_examples(model, tmp_path / "tokens", 9)
    largest = 2 * model.width * int(examples.learned.max())
    monkeypatch.setattr(token_capture, "SHARD_BYTES", 2 * largest)
    full = record(model, examples, tmp_path / "full", FULL)
    held = [shard["blob_bytes"] for shard in full.manifest["shards"]]
    assert len(held) > 1 and max(held) <= 2 * largest
    topk = record(model, examples, tmp_path / "topk", TOPK)
    assert len(topk.manifest["shards"]) == 1 and len(topk) == len(full)


def test_equal_rows_are_one_item_and_rows_of_other_completions_are_not(tmp_path: Path) -> None:
    model = language_model()
    rows = [([1, 9, 10, 2], 2), ([1, 9, 11, 2], 2), ([1, 9, 10, 2], 2), ([1, 9, 10, 2], 3)]
    examples = Examples(
        (Example(ids, [0] * at + [1] * (4 - at), False) for ids, at in rows), tmp_path / "tokens"
    )
    chosen, items = distinct(examples)
    assert len(chosen) == 3
    assert items[0] == items[2] and len({items[0], items[1], items[3]}) == 3
    outputs = record(model, examples, tmp_path / "out", TOPK)
    assert len(outputs) == 3
    assert outputs.rows("train").tolist() == items.tolist()


def test_streams_keep_their_rows_apart(tmp_path: Path) -> None:
    model = language_model()
    examples = make_examples(model, tmp_path / "tokens", 9)
    streams = {"train": range(6), "validation": range(6, 9)}
    capture_tokens(
        model, examples, streams, tmp_path / "out", identity={"teacher": "a"}, encoding=TOPK
    )
    outputs = TokenOutputs(tmp_path / "out", {"teacher": "a"})
    for stream, part in streams.items():
        found = [r.ids.tolist() for r in outputs.get(outputs.rows(stream))]  # type: ignore[union-attr]
        assert found == [examples[row][0].tolist() for row in part]
    with pytest.raises(RunError, match="belong to another teacher"):
        TokenOutputs(tmp_path / "out", {"teacher": "b"})


@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "temperature": 0.7}])
def test_a_teacher_that_writes_is_recorded_as_it_wrote(
    settings: Mapping[str, Any], tmp_path: Path
) -> None:
    model = language_model()
    prompts = make_examples(model, tmp_path / "tokens", 6, answers=False)
    writing = Writing(9, settings, seed=5)
    outputs = record(model, prompts, tmp_path / "out", FULL, writing=writing)
    texts = set()
    for row, item in enumerate(outputs.rows("train").tolist()):
        (found,) = outputs.get([item])
        prompt, _ = prompts[row]
        ids = np.asarray(found.ids).tolist()
        assert ids[: len(prompt)] == prompt.tolist()
        assert found.positions.tolist() == list(range(len(prompt), len(ids)))
        new = ids[len(prompt) :]
        assert 1 <= len(new) <= 9
        assert found.text == model.tokenizer.decode(new, skip_special_tokens=True)
        texts.add(found.text)
        targets = outputs.targets([found])
        assert isinstance(targets, Full)
        own = logits_of(model, ids, found.positions).softmax(-1)
        assert (targets.logits.softmax(-1) - own).abs().max() < 1e-3
        if not settings:
            (greedy,) = generate(model, [prompt.tolist()], max_new_tokens=9)
            assert new == ([*greedy.ids, 2] if greedy.finished else greedy.ids)
    assert len(texts) > 1
    assert outputs.manifest["divergence"]["kl"] < 1e-3


def test_texts_alone_have_no_distributions(tmp_path: Path) -> None:
    model = language_model()
    prompts = make_examples(model, tmp_path / "tokens", 3, answers=False)
    found = capture_tokens(
        model,
        prompts,
        {"train": range(3)},
        tmp_path / "out",
        identity={},
        encoding=None,
        writing=Writing(4),
    )
    assert found is not None
    (first,) = found.get([0])
    assert first.text is not None and first.blob is None
    with pytest.raises(RunError, match="texts without distributions"):
        found.targets([first])


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("writes", [False, True], ids=["completions", "writing"])
@pytest.mark.parametrize("encoding", ["topk", "sampled"])
def test_what_was_killed_goes_on_to_the_same_bytes(
    writes: bool, encoding: str, tmp_path: Path
) -> None:
    model = language_model()
    examples = make_examples(model, tmp_path / "tokens", 20, answers=not writes)
    spec = {"topk": TOPK, "sampled": {"encoding": "sampled", "draws": 8}}[encoding]
    more: dict[str, Any] = {"shard_rows": 4, "batch_tokens": 200}
    if writes:
        more["writing"] = Writing(5, {"do_sample": True, "temperature": 0.9}, seed=3)
    record(model, examples, tmp_path / "one", spec, **more)

    seen: list[int] = []

    def kill(done: int, _: int) -> None:
        seen.append(done)
        if len(seen) == 10:  # in the third shard
            raise Killed

    with pytest.raises(Killed):
        record(model, examples, tmp_path / "two", spec, progress=kill, **more)
    begun = hashes(tmp_path / "two")
    assert "shard-00001.json" in begun and "shard-00002.json" not in begun
    totals: list[int] = []
    record(model, examples, tmp_path / "two", spec, progress=lambda _, n: totals.append(n), **more)
    items = len(distinct(examples)[0])
    assert totals == [items - 8] * (items - 8)  # what was whole is not asked again
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")


def test_two_processes_share_the_work(tmp_path: Path) -> None:
    model = language_model()
    examples = make_examples(model, tmp_path / "tokens", 20)
    shared: dict[str, Any] = {"identity": {}, "encoding": TOPK, "shard_rows": 4}
    streams, done = {"train": range(20)}, {0: 0, 1: 0}
    for rank in (1, 0):  # the first one finishes, and must come last here

        def count(number: int, _: int, rank: int = rank) -> None:
            done[rank] = number

        found = capture_tokens(
            model, examples, streams, tmp_path / "two", rank=rank, world_size=2, progress=count,
            **shared,
        )  # fmt: skip
        assert (found is None) == (rank == 1)
    items = len(distinct(examples)[0])
    assert done[0] + done[1] == items and min(done.values()) >= 4
    two = TokenOutputs(tmp_path / "two")
    one = capture_tokens(model, examples, streams, tmp_path / "one", **shared)
    assert one is not None
    assert {shard["rank"] for shard in two.manifest["shards"]} == {0, 1}
    assert two.rows("train").tolist() == one.rows("train").tolist()
    for mine, other in zip(one.get(range(items)), two.get(range(items)), strict=True):
        assert mine.blob == other.blob and list(mine.ids) == list(other.ids)


def test_every_turn_of_the_assistants_is_recorded_where_all_are_learned(tmp_path: Path) -> None:
    model = language_model()
    model.tokenizer.chat_template = CHAT
    prompt = (
        '[{"role":"user","content":"a"},{"role":"assistant","content":"bcd"},'
        '{"role":"user","content":"e"}]'
    )
    last = Dialogues(model.tokenizer, "messages", 128).example(prompt, "fg", 0)
    every = Dialogues(model.tokenizer, "messages", 128, train_on="all").example(prompt, "fg", 0)
    assert last.ids == every.ids and sum(every.mask) > sum(last.mask)
    examples = Examples([every], tmp_path / "tokens")
    outputs = record(model, examples, tmp_path / "out", TOPK)
    (found,) = outputs.get([0])
    assert len(found.spans) == 2
    texts = [model.tokenizer.decode(np.asarray(found.ids)[a:b]) for a, b in found.spans]
    assert texts[0].startswith("bcd") and texts[1].startswith("fg")
    targets = outputs.targets([found])
    assert isinstance(targets, TopK)
    own = logits_of(model, found.ids, found.positions).log_softmax(-1)
    torch.testing.assert_close(targets.log_probs, own.gather(-1, targets.ids), atol=0.02, rtol=1e-3)


def test_a_teacher_that_gives_no_numbers_is_refused(tmp_path: Path) -> None:
    model = language_model()
    with torch.no_grad():
        model.head.weight[7] = torch.nan
    examples = make_examples(model, tmp_path / "tokens", 3)
    with pytest.raises(RunError, match=r"not finite numbers in fp32; set capture\.precision"):
        record(model, examples, tmp_path / "out", TOPK)


def test_the_divergence_is_measured_on_rows_of_all_lengths(tmp_path: Path) -> None:
    model = language_model()
    examples = make_examples(model, tmp_path / "tokens", 30)
    outputs = record(model, examples, tmp_path / "out", TOPK)
    measured = outputs.manifest["divergence"]
    assert measured["tokens"] == int(examples.learned[distinct(examples)[0]].sum())
    assert 0 <= measured["kl_bucketed"] < measured["kl"]
    assert 0 < measured["rest"] < 1
