"""Runs of the task generation from end to end, on tiny models: each kind of teacher and student."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from paredown.distill.token_outputs import TokenOutputs
from paredown.distill.token_targets import TopK
from paredown.eval.errors import RunError
from paredown.recipes.api import run
from paredown.recipes.pipeline import RunResult
from paredown.recipes.store import Store

from ..distill.fault_server import FaultServer, completion, serving
from . import generation_recipes as made


def ran(recipe: dict[str, Any], tmp_path: Path, **sections: dict[str, Any]) -> RunResult:
    """Runs a recipe with some of its sections changed; its student is a stock checkpoint."""
    for name, values in sections.items():
        recipe[name] = {**(recipe.get(name) or {}), **values}
    result = run(recipe, out=tmp_path / "run")
    folder = result.folder / "student"
    loaded, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert loaded.num_parameters() == report(result)["cost"]["student"]["parameters"]
    assert AutoTokenizer.from_pretrained(folder).eos_token is not None
    return result


def report(result: RunResult) -> dict[str, Any]:
    assert result.report is not None
    return result.report


def stage(result: RunResult, name: str) -> dict[str, Any]:
    text = (result.folder / "stages" / name / "stage.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def test_prompts_and_completions(tmp_path: Path) -> None:
    result = ran(made.recipe(tmp_path), tmp_path)
    found = report(result)
    assert found["quality"]["metric"] == "exact_match" and found["quality"]["examples"] == 8
    assert [(s["name"], s["rows"]) for s in found["quality"]["slices"]] == [("even", 4), ("odd", 4)]
    teacher, student = (found["cost"][side] for side in ("teacher", "student"))
    for side in (teacher, student):
        answer = side["answer"]
        whole = answer["prefill_flops"] + answer["decode_flops"]
        assert side["flops_per_example"] == pytest.approx(whole)
        assert 0 < answer["new_tokens"] <= 4 and 0 <= answer["unfinished"] <= 8
    assert student["answer"]["kv_cache_bytes"] < teacher["answer"]["kv_cache_bytes"]
    assert found["cost"]["ratio"]["flops"] < 1
    told = found["recorded"]
    assert (told["kind"], told["encoding"], told["k"], told["over"]) == (
        "checkpoint", "topk", 8, "references",
    )  # fmt: skip
    assert told["truncated"] == {"capture": 0, "distill": 0} and told["endpoint"] == {}
    assert told["bytes_per_token"] > 0 and told["divergence"]["kl_bucketed"] < 1e-5
    card = (result.folder / "student" / "README.md").read_text(encoding="utf-8")
    assert "text-generation" in card and "None" not in card
    assert "What was recorded" in (result.folder / "report.html").read_text(encoding="utf-8")


def test_a_second_run_makes_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = made.recipe(tmp_path)
    assert not run(recipe, out=tmp_path / "run").cached
    again = []
    ensure = Store.ensure

    def counted(self: Store, stage: Any, trial: str | None = None) -> Any:
        folder = ensure(self, stage, trial)
        again.extend([] if folder.cached else [stage.name])
        return folder

    monkeypatch.setattr(Store, "ensure", counted)
    assert run(recipe, out=tmp_path / "run").cached and not again
    run({**recipe, "generation": {"max_new_tokens": 5}}, out=tmp_path / "run")
    assert "data" not in again and {"capture", "distill", "evaluate"} <= set(again)


@pytest.mark.parametrize("train_on", ["completion", "all"])
def test_messages(train_on: str, tmp_path: Path) -> None:
    rows = made.messages(made.pairs(32)), made.messages(made.pairs(8, 100))
    recipe = made.recipe(tmp_path, *rows)
    tokenizer = AutoTokenizer.from_pretrained(recipe["teacher"]["model"])
    tokenizer.chat_template = "{% if brief %}Be brief.\n{% endif %}" + tokenizer.chat_template
    tokenizer.save_pretrained(recipe["teacher"]["model"])
    generation = {"train_on": train_on, "template": {"brief": True}}
    result = ran(recipe, tmp_path, generation=generation)
    assert report(result)["recorded"]["items"] > 0
    card = (result.folder / "student" / "README.md").read_text(encoding="utf-8")
    assert "brief" in card


def test_completions_that_do_not_fit_are_counted(tmp_path: Path) -> None:
    rows = made.pairs(32)
    for row in rows[:3]:
        row["completion"] = "card open " * 120
    result = ran(made.recipe(tmp_path, rows), tmp_path, distill={"max_length": 60})
    cut = report(result)["recorded"]["truncated"]
    assert 1 <= cut["capture"] <= 3 and 1 <= cut["distill"] <= 3
    page = (result.folder / "report.html").read_text(encoding="utf-8")
    assert f"{cut['capture']} in the stage capture" in page


@pytest.mark.parametrize(
    ("encoding", "losses"),
    [
        ({"encoding": "full", "k": None}, {"reverse_kl": 1.0}),
        ({"encoding": "sampled", "k": None, "draws": 6}, {"forward_kl": 1.0}),
        ({"encoding": "topk", "k": 4}, {"jsd": {"weight": 1.0, "beta": 0.3}}),
        ({"encoding": "text", "k": None}, {"cross_entropy": 1.0}),
    ],
    ids=lambda value: str(value.get("encoding", "")),
)
@pytest.mark.parametrize("over", ["references", "generations"])
def test_each_encoding_over_each_kind_of_completion(
    encoding: dict[str, Any], losses: dict[str, Any], over: str, tmp_path: Path
) -> None:
    recipe = made.recipe(tmp_path)
    recipe["distill"]["losses"] = losses
    result = ran(recipe, tmp_path, capture={**encoding, "over": over})
    told = report(result)["recorded"]
    assert told["encoding"] == encoding["encoding"] and told["over"] == over
    outputs = TokenOutputs(result.folder / "stages" / "capture")
    (record,) = outputs.get([int(outputs.rows("train")[0])])
    assert (record.blob is None) == (encoding["encoding"] == "text")
    assert (record.text is not None) == (over == "generations")
    if over == "generations":
        ends = int(AutoTokenizer.from_pretrained(recipe["teacher"]["model"]).eos_token_id)
        items = range(len(outputs))
        assert told["unfinished"] == sum(r.ids[-1] != ends for r in outputs.get(list(items)))


@pytest.mark.parametrize("scored", [False, True], ids=["texts", "log-probabilities"])
def test_a_recorded_teacher(scored: bool, tmp_path: Path) -> None:
    student = made.model(tmp_path / "student")
    train, test = made.pairs(32), made.pairs(8, 100)
    recipe = made.recipe(tmp_path, train, test) | {"student": {"model": student}, "prune": None}
    files = {
        split: made.answered(
            tmp_path / f"{split}-answers.jsonl",
            rows,
            [row["completion"] for row in rows],
            student if scored else None,
        )
        for split, rows in (("train", train), ("test", test))
    }
    recipe["teacher"] = {"kind": "recorded", "files": files}
    recipe["capture"] = {}
    recipe["distill"]["losses"] = {"cross_entropy": 1.0}
    if scored:
        recipe["teacher"]["tokenizer"] = student
        recipe["capture"] = {"encoding": "topk", "k": 3}
        recipe["distill"]["losses"] = {"forward_kl": 1.0}
    result = ran(recipe, tmp_path)
    found = report(result)
    assert found["quality"]["teacher"] == 1.0
    assert found["cost"]["teacher"]["answer"] is None and found["cost"]["ratio"]["flops"] is None
    assert found["differing"][0]["teacher"] == found["differing"][0]["expected"]
    told = found["recorded"]
    assert (told["kind"], told["over"]) == ("recorded", None)
    assert (told["unmapped_mass"] is not None) == scored
    if scored:
        assert told["unmapped_mass"] < 0.01 and told["refused"] == {}


def test_only_what_a_server_lists_is_recorded(tmp_path: Path) -> None:
    recipe = recorded_teacher(tmp_path)
    result = ran(recipe, tmp_path, capture={"k": 32})
    assert report(result)["recorded"]["k"] == 4  # three largest, and the chosen token
    outputs = TokenOutputs(result.folder / "stages" / "capture")
    (record,) = outputs.get([0])
    said = outputs.targets([record])
    assert isinstance(said, TopK)
    # 0.7 and 0.2 are listed; the end is certain
    assert said.rest.tolist() == pytest.approx([0.1] * (len(said) - 1) + [0.0], abs=1e-3)
    found = [ids[p.isfinite()].tolist() for ids, p in zip(said.ids, said.log_probs, strict=True)]
    tokenizer = AutoTokenizer.from_pretrained(recipe["teacher"]["tokenizer"])
    own = [int(record.ids[place]) for place in record.positions]
    for ids, token in zip(found[:-1], own[:-1], strict=True):
        assert token in ids and len(ids) == 3
        assert {tokenizer.decode([i]) for i in ids if i != token} <= set("abc d")
    assert found[-1] == [tokenizer.eos_token_id] == own[-1:]


def served(server: FaultServer, student: str, top: int) -> dict[str, Any]:
    teacher = {"kind": "endpoint", "model": "big", "endpoint": {"base_url": server.url}}
    if top:
        teacher["endpoint"]["top_logprobs"] = top  # type: ignore[index]
        teacher["tokenizer"] = student
    return teacher


@pytest.mark.parametrize("top", [0, 3])
def test_a_teacher_behind_an_endpoint(top: int, tmp_path: Path) -> None:
    pytest.importorskip("openai", reason="the `endpoint` extra is not installed")
    student = made.model(tmp_path / "student")
    right = {row["prompt"]: row["completion"] for row in [*made.pairs(32), *made.pairs(8, 100)]}

    def answer(number: int, body: dict[str, Any]) -> dict[str, Any]:
        text = right[body["messages"][-1]["content"]]
        listed = {"content": made.logprobs(student, text)} if top else None
        return completion(text, logprobs=listed)

    recipe = made.recipe(tmp_path) | {"student": {"model": student}, "prune": None}
    with serving(answer) as server:
        recipe["teacher"] = served(server, student, top)
        recipe["capture"] = {}
        recipe["distill"]["losses"] = {"forward_kl" if top else "cross_entropy": 1.0}
        result = ran(recipe, tmp_path)
        trained = len(TokenOutputs(result.folder / "stages" / "capture").rows("train"))
        # no row to validate on is asked for: nothing reads what a teacher says of it
        assert server.requests == trained + 8 < 40 and max(server.asked.values()) == 1
        assert {body.get("top_logprobs") for body in server.bodies} == {top or None}
        assert {body["max_tokens"] for body in server.bodies} == {4}
        assert run(recipe, out=tmp_path / "run").cached and server.requests == trained + 8
    found = report(result)
    assert found["quality"]["teacher"] == 1.0 and found["quality"]["examples"] == 8
    asked = found["recorded"]["endpoint"]
    uses = {name: (use["recorded"], use["requests"]) for name, use in asked.items()}
    assert uses == {"capture": (trained, trained), "evaluate-teacher": (8, 8)}
    assert found["recorded"]["encoding"] == ("topk" if top else "text")
    page = (result.folder / "report.html").read_text(encoding="utf-8")
    assert f"The endpoint gave {trained} answers for the stage capture" in page


def test_labels_alone_are_a_baseline_and_seeds_are_told_apart(tmp_path: Path) -> None:
    recipe = made.recipe(tmp_path) | {"seeds": 2}
    recipe["evaluate"]["baselines"] = ["labels"]
    result = ran(recipe, tmp_path)
    quality = report(result)["quality"]
    assert [entry["seed"] for entry in quality["seeds"]] == [0, 1]
    assert [name for b in quality["baselines"] if "labels" in (name := b["name"])]
    labels = stage(result, "distill-labels")["settings"]
    assert list(labels["losses"]) == ["cross_entropy"]
    names = [entry["name"] for entry in report(result)["stages"]]
    assert {"distill", "distill-1", "distill-labels"} <= set(names)


def test_adapters_are_merged_into_a_stock_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    result = ran(made.recipe(tmp_path), tmp_path, distill={"lora": {"r": 2, "alpha": 4.0}})
    files = {path.name for path in (result.folder / "student").iterdir()}
    assert not [name for name in files if "adapter" in name]
    card = (result.folder / "student" / "README.md").read_text(encoding="utf-8")
    assert "Low-rank adapters were trained, and merged." in card


@pytest.mark.parametrize(
    ("share", "capture"), [(0.5, {}), (1.0, {"encoding": "text", "k": None})], ids=["half", "all"]
)
def test_the_student_writes_and_a_live_teacher_scores(
    share: float, capture: dict[str, Any], tmp_path: Path
) -> None:
    recipe = made.recipe(tmp_path)
    recipe["distill"]["losses"] = {"jsd": 1.0}
    recipe["capture"] |= capture
    result = ran(recipe, tmp_path, distill={"on_policy": share})
    assert stage(result, "distill")["settings"]["on_policy"] == share


def test_a_cut_vocabulary(tmp_path: Path) -> None:
    result = ran(made.recipe(tmp_path), tmp_path, prune={"vocabulary": "task"})
    words = report(result)["vocabulary"]
    assert 0 < words["kept"] < words["of"] and words["training_identical"]


def test_a_teacher_made_in_the_run(tmp_path: Path) -> None:
    recipe = made.recipe(tmp_path)
    config = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
              "num_attention_heads": 4, "num_key_value_heads": 2,
              "max_position_embeddings": 96}  # fmt: skip
    new = {"architecture": "qwen3", "vocabulary": 320, "config": config}
    recipe["teacher"] = {"new": new, "finetune": {"epochs": 1, "batch_size": 8,
                                                  "precision": "fp32"}}  # fmt: skip
    result = ran(recipe, tmp_path)
    assert set(report(result)["recorded"]["truncated"]) == {"teacher", "capture", "distill"}
    card = (result.folder / "student" / "README.md").read_text(encoding="utf-8")
    assert "a `qwen3` of random weights" in card
    assert "None" not in card and "base_model" not in card


def recorded_teacher(
    tmp_path: Path, scored: bool = True, test: made.Rows | None = None
) -> dict[str, Any]:
    """A recipe whose teacher's answers are on file, right ones."""
    student = made.model(tmp_path / "student")
    train, test = made.pairs(32), made.pairs(8, 100) if test is None else test
    recipe = made.recipe(tmp_path, train, test) | {"student": {"model": student}, "prune": None}
    files = {
        split: made.answered(
            tmp_path / f"{split}-answers.jsonl",
            rows,
            [row["completion"] for row in rows],
            student if scored else None,
        )
        for split, rows in (("train", train), ("test", test))
    }
    recipe["teacher"] = {"kind": "recorded", "files": files}
    recipe["capture"] = {}
    recipe["distill"]["losses"] = {"cross_entropy": 1.0}
    if scored:
        recipe["teacher"]["tokenizer"] = student
        recipe["capture"] = {"encoding": "topk", "k": 3}
        recipe["distill"]["losses"] = {"forward_kl": 1.0}
    return recipe


def test_answers_that_cannot_be_mapped_are_counted_and_left_out(tmp_path: Path) -> None:
    recipe = recorded_teacher(tmp_path)
    path = Path(recipe["teacher"]["files"]["train"])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[5]["completion"] = "something else entirely"
    lines[9]["logprobs"] = None
    made.write(path, lines)
    result = ran(recipe, tmp_path)
    told = report(result)["recorded"]
    assert told["refused"] == {"the tokens do not spell the answer": 1, "no log-probabilities": 1}
    rows = TokenOutputs(result.folder / "stages" / "capture").rows("train")
    assert (rows < 0).sum() == 2 and rows.max() < 30


def test_unusual_answers_to_test_rows_are_scored_row_by_row(tmp_path: Path) -> None:
    pytest.importorskip("openai", reason="the `endpoint` extra is not installed")
    student = made.model(tmp_path / "student")
    tests = made.pairs(6, 100)
    tests.append(dict(tests[0]))
    right = {row["prompt"]: row["completion"] for row in [*made.pairs(32), *tests]}
    seen: list[str] = []

    def answer(number: int, body: dict[str, Any]) -> dict[str, Any]:
        prompt = body["messages"][-1]["content"]
        seen.append(prompt)
        if prompt == tests[1]["prompt"]:
            return completion("I cannot", message={"refusal": "I cannot"})
        if prompt == tests[2]["prompt"]:
            return completion("", finish="content_filter")
        if prompt == tests[3]["prompt"]:
            return completion("")
        # a server that draws: what is asked twice is answered twice
        again = prompt == tests[0]["prompt"] and seen.count(prompt) > 1
        return completion("something else" if again else right[prompt])

    recipe = made.recipe(tmp_path, test=tests) | {"student": {"model": student}, "prune": None}
    recipe["distill"]["losses"] = {"cross_entropy": 1.0}
    recipe["capture"] = {}
    with serving(answer) as server:
        recipe["teacher"] = served(server, student, 0)
        recipe["teacher"]["endpoint"]["concurrency"] = 1
        result = ran(recipe, tmp_path)
    found = report(result)
    assert found["quality"]["teacher"] == pytest.approx(3 / 7)
    asked = found["recorded"]["endpoint"]["evaluate-teacher"]
    assert (asked["refused"], asked["filtered"], asked["empty"]) == (1, 1, 2)
    page = (result.folder / "report.html").read_text(encoding="utf-8")
    assert "1 refused, 2 empty (without a text, an answer counts as wrong)" in page


def told_again(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What students are given of a teacher's texts: for each row its learned ids, to be filled."""
    from paredown.recipes import stage_distill_tokens as distill

    found: list[Any] = []
    made_before = distill._retold

    def spy(*given: Any) -> Any:
        examples = made_before(*given)
        for row in range(len(examples)):
            ids, learned = examples[row]
            found.append(ids[learned].tolist())
        return examples

    monkeypatch.setattr(distill, "_retold", spy)
    return found


def test_cut_answers_get_no_end_and_refused_ones_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openai", reason="the `endpoint` extra is not installed")
    student = made.model(tmp_path / "student")
    kinds = (
        completion("card op", finish="length"),
        completion(None, message={"refusal": "I cannot"}),
        completion("card", finish="content_filter"),
        completion("card open"),
    )
    recipe = made.recipe(tmp_path, made.pairs(16)) | {"student": {"model": student}, "prune": None}
    recipe["distill"]["losses"] = {"cross_entropy": 1.0}
    recipe["capture"] = {}
    learned = told_again(monkeypatch)
    with serving(lambda number, body: kinds[number % 4]) as server:
        recipe["teacher"] = served(server, student, 0)
        recipe["teacher"]["endpoint"]["concurrency"] = 1
        result = ran(recipe, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(student)
    end = tokenizer.eos_token
    assert {tokenizer.decode(ids) for ids in learned} == {"card op", f"card open{end}"}
    told = report(result)["recorded"]["refused"]
    assert told["refused"] >= 3 and told["stopped by a content filter"] >= 3


def test_completions_that_a_teacher_did_not_end_are_learned_without_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned = told_again(monkeypatch)
    recipe = made.recipe(tmp_path)
    recipe["distill"]["losses"] = {"cross_entropy": 1.0}
    result = ran(recipe, tmp_path, capture={"encoding": "text", "k": None, "over": "generations"})
    outputs = TokenOutputs(result.folder / "stages" / "capture")
    end = int(AutoTokenizer.from_pretrained(recipe["teacher"]["model"]).eos_token_id)
    wrote = [list(r.ids)[r.start :] for r in outputs.get(outputs.rows("train"))]
    assert [ids[-1:] == [end] for ids in learned] == [ids[-1] == end for ids in wrote]
    assert not all(ids[-1] == end for ids in wrote)


def test_tokens_that_the_teacher_wrote_are_kept_in_a_cut_vocabulary(tmp_path: Path) -> None:
    train = [{"prompt": f"zz {i} ", "completion": f"qq{i % 5}"} for i in range(32)]
    recipe = made.recipe(tmp_path, train, train[:4])
    recipe["generation"] = {"max_new_tokens": 30, "settings": {"do_sample": True}}
    result = ran(recipe, tmp_path, capture={"over": "generations"}, prune={"vocabulary": "task"})
    outputs = TokenOutputs(result.folder / "stages" / "capture")
    kept = json.loads((result.folder / "stages" / "prune" / "prune.json").read_text())
    kept = set(kept["index_map"]["vocabulary"])
    rows = outputs.get(outputs.rows("train"))
    lost = sum(not set(map(int, record.ids)) <= kept for record in rows)
    left = stage(result, "distill")["not_in_vocabulary"]
    assert left == lost < len(rows)
    told = report(result)["recorded"]["refused"]
    assert told == ({"a token that prune.vocabulary cut": lost} if lost else {})


def test_answers_are_paid_for_once_and_from_one_budget(tmp_path: Path) -> None:
    pytest.importorskip("openai", reason="the `endpoint` extra is not installed")
    student = made.model(tmp_path / "student")
    other = Path(shutil.copytree(student, tmp_path / "other"))
    content = json.loads((other / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    bare = [token for token in sorted(vocabulary, key=vocabulary.get) if len(token) == 1][:40]
    content["model"] |= {"vocab": {t: vocabulary[t] for t in bare}, "merges": []}
    (other / "tokenizer.json").write_text(json.dumps(content))
    right = {row["prompt"]: row["completion"] for row in [*made.pairs(16), *made.pairs(8, 100)]}

    def answer(number: int, body: dict[str, Any]) -> dict[str, Any]:
        text = right[body["messages"][-1]["content"]]
        return completion(text, logprobs={"content": made.logprobs(student, text)})

    recipe = made.recipe(tmp_path, made.pairs(16)) | {"student": {"model": student}, "prune": None}
    recipe["capture"] = {}
    with serving(answer) as server:
        recipe["teacher"] = served(server, str(other), 3)
        endpoint = recipe["teacher"]["endpoint"]
        endpoint |= {"budget_requests": 17, "extra_body": {"logit_bias": {50256: -100}}}
        with pytest.raises(RunError, match=r"cannot be matched.*teacher\.tokenizer"):
            run(recipe, out=tmp_path / "run")
        asked = server.requests
        recipe["teacher"]["tokenizer"] = student
        with pytest.raises(RunError, match=r"of 8 rows.*so far 17 requests.*budget_requests"):
            run(recipe, out=tmp_path / "run")
        assert asked < server.requests == 17
        endpoint["budget_requests"] = 30
        run(recipe, out=tmp_path / "run")
        run(recipe | {"capture": {"k": 2}}, out=tmp_path / "run")
        assert server.requests == asked + 8 and max(server.asked.values()) == 1


def test_answers_to_test_rows_are_written_where_the_teacher_was_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from paredown.recipes import text_evaluation

    found = []

    def stopped(model: Any, *_: Any, **__: Any) -> Any:
        found.append(model.backbone.device.type)
        raise RunError("enough")

    monkeypatch.setattr(text_evaluation, "model_device", lambda: "meta")
    monkeypatch.setattr(text_evaluation, "generate", stopped)
    with pytest.raises(RunError, match="enough"):
        run(made.recipe(tmp_path, made.pairs(8)), out=tmp_path / "run")
    assert found == ["meta"]


def test_signals_of_test_rows_are_made_there_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from paredown.eval.tasks import get_task
    from paredown.recipes import contenders

    class Model:
        """Tells where it was moved before it is asked."""

        device = "cpu"

        def to(self, device: str) -> Any:
            self.device = device
            return self

        def predict(self, *_: Any, **__: Any) -> str:
            return self.device

    monkeypatch.setattr(contenders, "model_device", lambda: "cuda:0")
    monkeypatch.setattr(contenders.TestRows, "load", lambda self, contender: Model())
    monkeypatch.setattr(contenders.TestRows, "texts", [], raising=False)
    monkeypatch.setattr(contenders.TestRows, "pairs", None, raising=False)
    rows = contenders.TestRows(get_task("classification"), None, {})  # type: ignore[arg-type]
    teacher = contenders.Contender("teacher", Path("teacher"))
    assert rows.signal(teacher, lambda count: None) == ("cuda:0", None)
