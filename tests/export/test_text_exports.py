"""Language models: exported with a cache of keys and values, they write what PyTorch writes."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paredown.eval.checkpoints import save_model
from paredown.eval.errors import RunError
from paredown.eval.generating import Generated, generate
from paredown.eval.models import load_model
from paredown.eval.tasks import get_task
from paredown.eval.timing import Engine, measure
from paredown.export import FORMATS, export_model, load
from paredown.export import check as checks
from paredown.export.folder import Answering

from ..eval.generation_models import CHAT, language_model
from .test_predict import BARE, predict
from .test_runtimes import fresh, needs

TASK = get_task("generation")
NEW = 12
ENDS = [2, 40, 41, 42, 43, 44, 45]
Written = Callable[[str, str], tuple[Path, Path, dict[str, Any]]]


def prompts(count: int = 9, seed: int = 3) -> list[str]:
    """Short texts of many lengths; what they say is nothing."""
    draw = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz 0123456789é"
    return ["".join(draw.choices(letters, k=draw.randint(1, 30))) for _ in range(count)]


def checkpoint_of(kind: str, folder: Path) -> Path:
    """A random model that ends its answers at different lengths, saved."""
    changes = {"sliding_window": 8} if kind == "mistral" else {}
    model = language_model(kind, **changes)
    model.backbone.generation_config.eos_token_id = ENDS
    model.tokenizer.chat_template = CHAT
    save_model(model, folder)
    return folder


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Gives (checkpoint, export, facts) of an architecture and a format, each made once."""
    made: dict[tuple[str, str], tuple[Path, Path, dict[str, Any]]] = {}
    checkpoints: dict[str, Path] = {}

    def get(kind: str, fmt: str) -> tuple[Path, Path, dict[str, Any]]:
        if kind not in checkpoints:
            checkpoints[kind] = checkpoint_of(kind, tmp_path_factory.mktemp(kind) / "checkpoint")
        if (kind, fmt) not in made:
            source, base = checkpoints[kind], None
            if FORMATS[fmt].base is not None:
                base = get(kind, str(FORMATS[fmt].base))[1]
            out = source.parent / fmt
            facts = export_model(
                source, TASK, fmt, out, sample_texts=prompts(4, seed=1), threads=1, base=base,
                answering=Answering(NEW),
            )  # fmt: skip
            made[kind, fmt] = source, out, facts
        return made[kind, fmt]

    return get


def answers(checkpoint: Path, texts: list[str]) -> list[Generated]:
    """What PyTorch writes, greedily."""
    model = load_model(checkpoint, TASK)
    ids = [Answering(NEW).dialogues(model).prompt_ids(text) for text in texts]
    return generate(model, ids, max_new_tokens=NEW)


@pytest.mark.parametrize(
    ("kind", "fmt"),
    [
        pytest.param("llama", "onnx", marks=pytest.mark.slow),
        ("gemma3_text", "onnx"),
        pytest.param("mistral", "onnx", marks=pytest.mark.slow),
        pytest.param("qwen2", "openvino", marks=pytest.mark.slow),
        ("qwen3", "openvino"),
        ("qwen3", "safetensors"),
    ],
)
def test_answers_are_pytorchs_token_by_token(kind: str, fmt: str, written: Written) -> None:
    needs(fmt)
    checkpoint, folder, facts = written(kind, fmt)
    if fmt != "safetensors":
        assert facts["same_answer"] == 1 and facts["max_difference"] <= facts["tolerance"]
    runner, texts = load(folder, threads=1), prompts()
    expected = answers(checkpoint, texts)
    found = runner.generate(texts)
    assert [(a.ids, a.text, a.finished) for a in found] == [
        (a.ids, a.text, a.finished) for a in expected
    ]
    if kind == "llama":
        assert len({len(answer.ids) for answer in expected}) > 2
    assert [runner.generate([text], batch=1)[0] for text in texts] == found
    assert runner.predict(texts[:2]) == [
        {"text": a.text, "finished": a.finished} for a in found[:2]
    ]
    assert runner.tokens(found) == sum(len(a.ids) + a.finished for a in found)


def test_the_signal_is_the_next_tokens_logits(written: Written) -> None:
    checkpoint, folder, _ = written("llama", "onnx")
    model = load_model(checkpoint, TASK)
    found = load(folder, threads=1).signal(prompts())
    np.testing.assert_allclose(found, model.predict(prompts()), atol=1e-3)
    assert load(folder).signal([]).shape == (0, model.width)


def test_int8_writes_and_answers_each_prompt_alone(written: Written) -> None:
    _, plain, _ = written("llama", "onnx")
    _, folder, facts = written("llama", "onnx-int8")
    assert facts["tolerance"] is None and 0 <= facts["same_answer"] <= 1
    assert facts["mean_cosine"] > 0.9
    runner, texts = load(folder, threads=1), prompts()
    assert (runner.precision, runner.settings["batch"]) == ("int8", 1)
    found = runner.generate(texts)
    assert found == [runner.generate([text])[0] for text in texts]
    assert (folder / "model.onnx").stat().st_size < (plain / "model.onnx").stat().st_size


def test_an_answer_ends_where_the_context_does(written: Written) -> None:
    checkpoint, folder, _ = written("gemma3_text", "onnx")
    runner = load(folder, threads=1)
    long = "x" * 122  # 123 tokens of 128
    (answer,) = runner.generate([long], max_new_tokens=50)
    model = load_model(checkpoint, TASK)
    (expected,) = generate(
        model, [Answering(NEW).dialogues(model).prompt_ids(long)], max_new_tokens=50
    )
    assert (answer.ids, answer.finished) == (expected.ids, expected.finished)
    for bad in ("x" * 127, "x" * 5000):
        with pytest.raises(RunError, match=r"Row 1: the prompt has \d+ tokens; 1 to 127"):
            runner.generate(["fine", bad])


def test_predict_py_answers_where_torch_is_not(written: Written, tmp_path: Path) -> None:
    _, folder, _ = written("llama", "onnx")
    texts = prompts(5)
    expected = load(folder, threads=1).predict(texts)
    rows = "".join(f"{text}\n" for text in texts).encode()
    code, found, said = predict(folder, "--threads", "1", rows=rows)
    assert (code, said, found) == (0, "", expected)
    lines = [json.dumps({"prompt": text, "id": i}) for i, text in enumerate(texts[:-1])]
    (tmp_path / "rows.jsonl").write_text("\n".join([*lines, json.dumps(texts[-1])]))
    assert predict(folder, tmp_path / "rows.jsonl", "--batch", "2")[1] == expected
    table = "id,question\n" + "".join(f'{i},"{text}"\n' for i, text in enumerate(texts))
    (tmp_path / "rows.csv").write_text(table, encoding="utf-8")
    assert predict(folder, tmp_path / "rows.csv", "--column", "question")[1] == expected
    code, _, said = predict(folder, "--column", "question", rows=rows)
    assert code == 2 and "--column is for rows with keys or columns" in said
    bad = ["{", '{"question": "a"}', '{"prompt": 3}', '{"prompt": " "}', '{"messages": []}',
           json.dumps({"prompt": "x" * 500}), '{"prompt": "fine"}']  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("\n".join(bad))
    code, found, said = predict(folder, tmp_path / "rows.jsonl", "--max-new-tokens", "3")
    assert code == 1 and "6 of 7 rows could not be answered" in said
    errors = [answer.get("error", "") for answer in found]
    assert errors[0].startswith("not JSON")
    assert errors[1] == "no key prompt or messages or text (there are: question)"
    assert errors[2] == "expected a text or messages, found 3" and errors[3] == "empty"
    assert "was trained on texts" in errors[4] and "500 tokens" not in errors[5]
    assert "501 tokens" in errors[5] and "text" in found[6]


def test_messages_are_written_as_the_template_has_them(written: Written, tmp_path: Path) -> None:
    checkpoint, plain, _ = written("llama", "onnx")
    how = Answering(NEW, "messages", {"brief": True})
    turns = [[{"role": "user", "content": text}] for text in prompts(4)]
    out = tmp_path / "chat"
    export_model(
        checkpoint, TASK, "onnx-int8", out, sample_texts=[json.dumps(one) for one in turns],
        threads=1, base=plain, answering=how,
    )  # fmt: skip
    runner, model = load(out, threads=1), load_model(checkpoint, TASK)
    dialogues = how.dialogues(model)
    for one in [*turns, [{"role": "system", "content": "é\n"}, *turns[0]]]:
        expected = dialogues.prompt_ids(json.dumps(one))
        assert runner.generator.prompt_ids(one) == expected
        assert runner.generator.prompt_ids(json.dumps(one)) == expected
    assert runner.predict(turns[:1]) == runner.predict([turns[0][0]["content"]])
    (tmp_path / "rows.jsonl").write_text(
        "\n".join([json.dumps({"messages": turns[0]}), '{"messages": [{"role": "user"}]}'])
    )
    code, found, _ = predict(out, tmp_path / "rows.jsonl")
    assert code == 1 and found[0] == runner.predict(turns[:1])[0]
    assert "messages: expected a list of" in found[1]["error"]
    settings = json.loads((out / "paredown.json").read_text(encoding="utf-8"))
    (out / "paredown.json").write_text(json.dumps(settings | {"template": "{% if"}))
    with pytest.raises(RunError, match=r"chat template of paredown\.json is damaged"):
        load(out).generate(["x"])


@pytest.mark.parametrize("fmt", ["onnx", "openvino"])
def test_a_fresh_process_writes_alike(fmt: str, written: Written) -> None:
    needs(fmt)
    kind = "llama" if fmt == "onnx" else "qwen3"
    checkpoint, folder, _ = written(kind, fmt)
    found = fresh(folder, prompts(3), "torch,transformers")
    expected = answers(checkpoint, prompts(3))
    assert [a["text"] for a in found["answers"]] == [a.text for a in expected]
    assert found["loaded"] == []


def test_the_folder_names_its_ports_as_transformers_does(written: Written) -> None:
    import onnx

    _, folder, _ = written("llama", "onnx")
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "generator.py", "model.onnx", "paredown.json", "predict.py", "rows.py",
        "tokenizer.json",
    }  # fmt: skip
    graph = onnx.load(str(folder / "model.onnx")).graph

    def axes(value: Any) -> list[str | int]:
        return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]

    inputs = {value.name: axes(value) for value in graph.input}
    assert list(inputs)[:3] == ["input_ids", "attention_mask", "position_ids"]
    assert inputs["input_ids"] == inputs["position_ids"] == ["batch", "sequence"]
    assert inputs["past_key_values.2.value"] == ["batch", 2, "cached", 12]
    assert len(inputs) == 3 + 2 * 3
    assert [value.name for value in graph.output][:3] == ["logits", "present.0.key",
                                                          "present.0.value"]  # fmt: skip
    assert b"site-packages" not in (folder / "model.onnx").read_bytes()
    assert str(folder.parent).encode() not in (folder / "model.onnx").read_bytes()


def test_another_graph_than_the_settings_say_is_refused(written: Written, tmp_path: Path) -> None:
    _, folder, _ = written("llama", "onnx")
    for number, (change, message) in enumerate(
        [
            ({"layers": 2}, "is another than paredown.json says"),
            ({"width": 7}, "gives 261 numbers a row, and paredown.json says 7"),
            ({"form": "messages"}, "has no chat template"),
            ({"stop_ids": ["a"]}, "has something else than int in stop_ids"),
            ({"context": 0}, "says context 0"),
        ]
    ):
        copy = tmp_path / str(number)
        shutil.copytree(folder, copy)
        settings = json.loads((copy / "paredown.json").read_text(encoding="utf-8"))
        (copy / "paredown.json").write_text(json.dumps(settings | change))
        with pytest.raises(RunError, match=message):
            load(copy)


def test_an_export_that_writes_otherwise_is_refused(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, folder, _ = written("llama", "onnx")
    model, generator = load_model(checkpoint, TASK), load(folder, threads=1).generator
    dialogues = Answering(NEW).dialogues(model)
    facts = checks.compare_answers(model, generator, dialogues, prompts(3))
    assert facts["same_answer"] == 1
    checks.refuse_difference("ONNX", facts, model, {})
    right = generator.answers
    monkeypatch.setattr(
        generator,
        "answers",
        lambda *a, **k: [one._replace(ids=[9, *one.ids]) for one in right(*a, **k)],
    )
    facts = checks.compare_answers(model, generator, dialogues, prompts(3))
    with pytest.raises(RunError, match="writes other tokens than PyTorch on 100% of the prompts"):
        checks.refuse_difference("ONNX", facts, model, {})


def test_an_exported_writer_is_timed_from_text_to_text(written: Written) -> None:
    _, folder, _ = written("llama", "onnx")
    (found,) = measure(
        [Engine("student", str(folder), FORMATS["onnx"].loader or "")], prompts(4),
        runs=4, rounds=1, warmup=1, scenarios=["single_stream"],
    )  # fmt: skip
    assert (found["runtime"], found["precision"]) == ("onnxruntime", "fp32")
    assert found["tokens_per_s"] > 0 and found["ttft"]["p50"] <= found["p50"] * 2


def test_predict_py_starts_without_what_it_does_not_need(written: Written) -> None:
    _, folder, _ = written("llama", "onnx")
    command = [sys.executable, "-c", BARE, str(folder / "predict.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and "--max-new-tokens" in done.stdout
