"""Hidden states of a language model, recorded compressed, and the loss that reads them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from paredown.distill import token_capture
from paredown.distill.examples import Examples
from paredown.distill.hidden_encoding import Moments, rank_for
from paredown.distill.language import LanguageDistiller, token_terms
from paredown.distill.language_rows import BLANK, LanguageRows
from paredown.distill.layer_terms import HiddenTerm
from paredown.distill.token_capture import Writing, capture_tokens
from paredown.distill.token_outputs import TokenOutputs
from paredown.distill.token_recording import TokenOutputsWriter
from paredown.eval.byte_pairs import train_byte_pairs
from paredown.eval.dialogues import Example
from paredown.eval.encoding import Encoding
from paredown.eval.errors import RecipeError, RunError
from paredown.eval.models import TextModel

HIDDEN, LAYERS, ROWS = 16, 3, 24
TOPK = {"encoding": "topk", "k": 4}


def model(layers: int = LAYERS, hidden: int = HIDDEN, seed: int = 0) -> TextModel:
    """A tiny random decoder."""
    tokenizer = train_byte_pairs(["red shoes under 80"] * 3, 270, 64)
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.25,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    backbone = AutoModelForCausalLM.from_config(config)
    return TextModel(backbone, tokenizer, "token_distribution", Encoding(64)).eval()


def rows(folder: Path, prompts: bool = False) -> Examples:
    """Rows of several lengths; two turns are learned in some."""
    random = np.random.default_rng(0)
    made = []
    for i in range(ROWS):
        ids = random.integers(3, 260, 6 + i % 7).tolist()
        mask = [0, 0, 1, 0, *[1] * (len(ids) - 4)]
        made.append(Example(ids, [0] * len(ids) if prompts else mask, False))
    return Examples(made, folder)


def record(folder: Path, teacher: TextModel, **changes: Any) -> TokenOutputs | None:
    prompts = changes.get("writing") is not None
    given: dict[str, Any] = {"encoding": TOPK, "hidden_layers": [1, 3], "shard_rows": 8}
    return capture_tokens(
        teacher,
        rows(folder.with_name(f"{folder.name}-rows-{changes.get('rank', 0)}"), prompts),
        {"train": range(ROWS)},
        folder,
        identity={"teacher": "tiny"},
        **(given | changes),
    )


def states_of(teacher: TextModel, row: np.ndarray[Any, Any], layer: int) -> torch.Tensor:
    """A layer's states of one row as the stock class gives them, (T, H)."""
    with torch.no_grad():
        ids = torch.from_numpy(row)[None]
        return teacher.backbone(ids, output_hidden_states=True).hidden_states[layer][0]


@pytest.mark.parametrize("encoding", [TOPK, None])
def test_states_are_those_that_predict_the_learned_tokens(
    tmp_path: Path, encoding: dict[str, Any] | None
) -> None:
    teacher = model()
    outputs = record(tmp_path / "out", teacher, hidden_rank=HIDDEN, encoding=encoding)
    assert outputs is not None
    examples = rows(tmp_path / "again")
    records = outputs.get(outputs.rows("train").tolist())
    for layer in (1, 3):
        found = outputs.states(layer, records)
        for number, values in enumerate(found):
            ids, marks = examples[number]
            whole = states_of(teacher, ids, layer)[np.flatnonzero(marks) - 1]
            off = (values - whole).norm() / (whole - whole.mean(0)).norm()
            assert off < 0.03  # int8
    assert (records[0].blob is None) == (encoding is None)


def test_the_manifest_states_bytes_and_error(tmp_path: Path) -> None:
    teacher, errors = model(), []
    for rank in (2, 8, HIDDEN):
        outputs = record(tmp_path / f"rank-{rank}", teacher, hidden_rank=rank)
        assert outputs is not None
        said = outputs.manifest["hidden"]
        assert {n: (s["rank"], s["bytes_per_token"]) for n, s in said.items()} == {
            n: (rank, rank + 2) for n in ("1", "3")
        }
        assert outputs.manifest["hidden_bytes_per_token"] == 2 * (rank + 2)
        assert outputs.manifest["hidden_size"] == HIDDEN
        errors.append([s["error"] for s in said.values()])
        assert not list((tmp_path / f"rank-{rank}").glob("compression*"))
    assert errors[0][0] > errors[1][0] > errors[2][0] and errors[2][0] < 1e-3
    assert errors[0][1] > errors[1][1] > errors[2][1]
    with pytest.raises(RecipeError, match=r"capture\.hidden_rank is 17; expected 1 to"):
        record(tmp_path / "wide", teacher, hidden_rank=HIDDEN + 1)


def test_the_error_is_measured_on_rows_that_were_not_fitted_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[set[int]] = []
    original = token_capture._Recorder.asked

    def remember(self: Any, some: Any, *rest: Any, **more: Any) -> Any:
        asked.append({row.item for row in some})
        return original(self, some, *rest, **more)

    monkeypatch.setattr(token_capture._Recorder, "asked", remember)
    record(tmp_path / "out", model(), shard_rows=64)
    fitted, _, measured = asked
    assert fitted and measured and not fitted & measured


def test_without_a_rank_enough_components_are_kept() -> None:
    random = np.random.default_rng(0)
    flat, steep = Moments(64), Moments(64)
    values = torch.from_numpy(random.normal(size=(4096, 64)))
    flat.add(values)
    assert rank_for(flat) in range(58, 63)  # 95 % of equal variances
    steep.add(values * torch.where(torch.arange(64) == 5, 1e3, 1.0))
    assert rank_for(steep) == 16  # one direction has all the variance, and is not all there is
    still = Moments(64)
    still.add(torch.ones(3, 64))
    assert rank_for(still) == 16


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.suffix != ".json"}


def test_a_capture_that_was_stopped_goes_on_with_the_same_compression(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = model()
    record(tmp_path / "whole", teacher)
    write, fits = TokenOutputsWriter.write, []

    def stopped(self: Any, number: int, records: Any) -> None:
        if number == 1:
            raise RunError("stopped")
        write(self, number, records)

    with monkeypatch.context() as broken, pytest.raises(RunError, match="stopped"):
        broken.setattr(TokenOutputsWriter, "write", stopped)
        record(tmp_path / "part", teacher)
    fit = token_capture._Recorder.fit
    monkeypatch.setattr(token_capture._Recorder, "fit", lambda *a: fits.append(1) or fit(*a))
    outputs = record(tmp_path / "part", teacher)
    assert not fits and outputs is not None
    assert files(tmp_path / "part") == files(tmp_path / "whole")
    assert outputs.manifest["hidden"] == TokenOutputs(tmp_path / "whole").manifest["hidden"]


def test_processes_share_one_compression(tmp_path: Path) -> None:
    record(tmp_path / "alone", model())
    together, failed = threading.Barrier(2, timeout=60), []

    def process(rank: int) -> None:
        try:
            out = tmp_path / "both"
            record(out, model_of[rank], rank=rank, world_size=2, barrier=lambda: together.wait())
        except BaseException as error:
            failed.append(error)
            together.abort()

    model_of = [model(), model()]
    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert files(tmp_path / "both") == files(tmp_path / "alone")


def test_states_of_what_the_teacher_writes_are_recorded(tmp_path: Path) -> None:
    teacher = model()
    outputs = record(tmp_path / "out", teacher, hidden_rank=HIDDEN, writing=Writing(5))
    assert outputs is not None
    (one,) = outputs.get([3])
    (found,) = outputs.states(3, [one])
    whole = states_of(teacher, np.asarray(one.ids, dtype=np.int64), 3)[one.positions - 1]
    assert one.text is not None and len(found) == one.tokens > 0
    assert (found - whole).norm() / whole.norm() < 0.05


def trained_rows(folder: Path, outputs: TokenOutputs) -> LanguageRows:
    return LanguageRows(
        rows(folder / "student"),
        0,
        items=outputs.rows("train"),
        outputs=outputs,
        hidden_layers=[1, 3],
        distributions=False,
    )


def test_the_loss_is_the_formula_over_layers_and_tokens(tmp_path: Path) -> None:
    teacher, student = model(), model(layers=2, hidden=8, seed=1)
    outputs = record(tmp_path / "out", teacher, hidden_rank=HIDDEN)
    assert outputs is not None
    data = trained_rows(tmp_path, outputs)
    distiller = LanguageDistiller(
        student, [HiddenTerm(0.5)], layers={1: 1, 2: 3}, teacher_hidden=HIDDEN
    )
    batch = data.collate(range(6))
    total, each = distiller(**{k: v for k, v in batch.items() if k != "rows"})
    total.backward()

    squares, count = [], 0
    for row in range(6):
        ids, marks = data.examples[row]
        places = np.flatnonzero(marks) - 1
        count += len(places)
        for s, t in ((1, 1), (2, 3)):
            linear = distiller.projections[str(s)]
            w = linear.weight.detach().double().numpy()
            ours = states_of(student, ids, s)[places].double().numpy() @ w.T
            ours = ours + linear.bias.detach().double().numpy()
            theirs = outputs.states(t, outputs.get([int(data.items[row])]))[0].double().numpy()
            squares.append(((ours - theirs) ** 2).sum() / HIDDEN)
    expected = sum(squares) / count / 2
    assert each.tolist() == [pytest.approx(expected, rel=1e-4)]
    assert total.item() == pytest.approx(0.5 * expected, rel=1e-4)
    for name, parameter in distiller.named_parameters():
        if "projections" in name or "layers.0" in name:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name

    parts = [
        distiller(**{k: v for k, v in data.collate(some).items() if k != "rows"}, divisor=count)[0]
        for some in ([0, BLANK, 1], range(2, 6), [BLANK])
    ]
    assert parts[-1].item() == 0
    assert sum(part.item() for part in parts) == pytest.approx(total.item(), rel=1e-5)


def test_a_student_equal_to_the_teacher_has_no_loss_but_that_of_rounding(tmp_path: Path) -> None:
    teacher = model()
    outputs = record(tmp_path / "out", teacher, hidden_rank=HIDDEN)
    assert outputs is not None
    distiller = LanguageDistiller(
        teacher, token_terms({"hidden_mse": 1.0}), layers={1: 1, 3: 3}, teacher_hidden=HIDDEN
    )
    for linear in distiller.projections.values():
        with torch.no_grad():
            linear.weight.copy_(torch.eye(HIDDEN))
            linear.bias.zero_()
    batch = trained_rows(tmp_path, outputs).collate(range(8))
    value, _ = distiller(**{k: v for k, v in batch.items() if k != "rows"})
    scale = torch.cat([batch["teacher_hidden_1"], batch["teacher_hidden_3"]]).square().mean()
    assert 0 <= value.item() < 1e-3 * scale.item()


def test_the_loss_says_what_it_lacks(tmp_path: Path) -> None:
    outputs = record(tmp_path / "out", model(), hidden_layers=[1])
    assert outputs is not None
    data = trained_rows(tmp_path, outputs)
    with pytest.raises(RunError, match="not recorded for layer 3"):
        data.collate(range(2))
    data.hidden_layers = [1]
    distiller = LanguageDistiller(
        model(2), [HiddenTerm()], layers={1: 1, 2: 3}, teacher_hidden=HIDDEN
    )
    batch = {k: v for k, v in data.collate(range(2)).items() if k != "rows"}
    with pytest.raises(RecipeError, match="compares with recorded hidden states"):
        distiller(**batch)
    for given, message in (
        ({"hidden_mse": {"weight": 0}}, "hidden_mse.weight must be above 0"),
        ({"hidden_mse": {"temperature": 2.0}}, "has no option 'temperature'"),
    ):
        with pytest.raises(RecipeError, match=message):
            token_terms(given)
