"""What a person does wrong with generation: one clear message each, naming what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from paredown.recipes import cli

from ..distill.fault_server import Reply, completion, serving
from . import generation_recipes as made

Refused = Callable[..., str]


@pytest.fixture
def base(tmp_path: Path) -> dict[str, Any]:
    """A recipe that runs."""
    return made.recipe(tmp_path)


@pytest.fixture
def refused(tmp_path: Path, base: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs the recipe and gives the one message it ends with."""

    def run(code: int, *overrides: str) -> str:
        path = tmp_path / "answers.yaml"
        path.write_text(yaml.safe_dump(base), encoding="utf-8")
        found = cli.main(["run", str(path), *overrides, "--out", str(tmp_path / "runs/answers")])
        seen = capsys.readouterr()
        assert found == code, seen.err
        assert "Traceback" not in seen.err and "Its log" not in seen.err
        return " ".join(seen.err.split())

    return run


def changed(path: Path, **fields: Any) -> None:
    """Changes a checkpoint's tokenizer_config.json or config.json."""
    content = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def test_messages_and_no_chat_template(
    refused: Refused, base: dict[str, Any], tmp_path: Path
) -> None:
    base["data"]["files"] = {
        "train": made.write(tmp_path / "m.jsonl", made.messages(made.pairs(32))),
        "test": made.write(tmp_path / "mt.jsonl", made.messages(made.pairs(8, 100))),
    }
    folder = Path(base["teacher"]["model"])
    changed(folder / "tokenizer_config.json", chat_template=None)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    message = refused(2)
    assert "no chat template" in message and "instruction-tuned" in message


def test_a_template_for_rows_without_turns(refused: Refused) -> None:
    message = refused(2, "generation.template={brief: true}")
    assert "generation.template (brief) is for rows of messages" in message
    message = refused(2, "generation.train_on=all")
    assert "generation.train_on: all is for rows of messages" in message


def test_a_template_that_refuses_a_conversation(
    refused: Refused, base: dict[str, Any], tmp_path: Path
) -> None:
    base["data"]["files"] = {
        "train": made.write(tmp_path / "m.jsonl", made.messages(made.pairs(32))),
        "test": made.write(tmp_path / "mt.jsonl", made.messages(made.pairs(8, 100))),
    }
    path = Path(base["teacher"]["model"]) / "chat_template.jinja"
    path.write_text("{{ raise_exception('roles must alternate') }}")
    message = refused(1)
    assert "chat template (roles must alternate)" in message and "user" in message


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_prompt_longer_than_the_context(
    split: str, refused: Refused, base: dict[str, Any], tmp_path: Path
) -> None:
    rows = made.pairs(32) if split == "train" else made.pairs(8, 100)
    rows[5]["prompt"] = "how do I open the violin " * 60
    base["data"]["files"][split] = made.write(tmp_path / "long.jsonl", rows)
    message = refused(1)
    assert "the maximum length is" in message and "no room for an answer" in message
    assert "how do I open the violin" in message
    assert {"train": "Training row", "test": "Test row 5"}[split] in message


def test_an_empty_completion(refused: Refused, base: dict[str, Any], tmp_path: Path) -> None:
    rows = made.pairs(32)
    rows[7]["completion"] = "  "
    base["data"]["files"]["train"] = made.write(tmp_path / "empty.jsonl", rows)
    message = refused(1)
    assert "has no completion to learn" in message and "capture.over: generations" in message
    refused(0, "capture.over=generations")  # where the teacher writes, none is needed


def test_an_empty_completion_to_test_with(
    refused: Refused, base: dict[str, Any], tmp_path: Path
) -> None:
    rows = made.pairs(8, 100)
    rows[2]["completion"] = ""
    base["data"]["files"]["test"] = made.write(tmp_path / "empty.jsonl", rows)
    message = refused(1)
    assert "line 3: the completion is empty" in message and "every test row needs one" in message


def endpoint(base: dict[str, Any], tmp_path: Path, url: str, **fields: Any) -> str:
    """Turns the recipe to a teacher behind an endpoint; its student."""
    student = made.model(tmp_path / "student")
    asked = {"base_url": url, "retries": 0, "timeout_s": 10.0, **fields}
    base["teacher"] = {"kind": "endpoint", "model": "big", "endpoint": asked}
    base |= {"student": {"model": student}, "prune": None, "capture": {}}
    base["distill"]["losses"] = {"cross_entropy": 1.0}
    if fields.get("top_logprobs"):
        base["teacher"]["tokenizer"] = student
        base["distill"]["losses"] = {"forward_kl": 1.0}
    return student


class TestEndpoints:
    """What a server does not give."""

    @pytest.fixture(autouse=True)
    def _client(self) -> None:
        pytest.importorskip("openai", reason="the `endpoint` extra is not installed")

    @pytest.mark.parametrize(
        "reply",
        [
            Reply(body="<html>welcome</html>", kind="text/html"),
            Reply(body='{"hello": "world"}'),
            Reply(404, body='{"error": {"message": "no such route"}}'),
        ],
        ids=["a page", "other JSON", "no such route"],
    )
    def test_no_chat_server(
        self, reply: Reply, refused: Refused, base: dict[str, Any], tmp_path: Path
    ) -> None:
        with serving(lambda number, body: reply) as server:
            endpoint(base, tmp_path, server.url)
            message = refused(1)
        assert server.url in message or "404" in message
        assert "no chat server" in message or "no such route" in message

    def test_nobody_there(self, refused: Refused, base: dict[str, Any], tmp_path: Path) -> None:
        endpoint(base, tmp_path, "http://127.0.0.1:9/v1")
        message = refused(1)
        assert "has no answer after 1 tries" in message

    def test_a_server_without_log_probabilities(
        self, refused: Refused, base: dict[str, Any], tmp_path: Path
    ) -> None:
        with serving() as server:
            endpoint(base, tmp_path, server.url, top_logprobs=3)
            message = refused(1)
        assert "log-probabilities" in message and "teacher.endpoint.top_logprobs" in message

    def test_a_vocabulary_that_is_not_the_servers(
        self, refused: Refused, base: dict[str, Any], tmp_path: Path
    ) -> None:
        def foreign(number: int, body: dict[str, Any]) -> dict[str, Any]:
            entry = {"token": "東京都", "logprob": -0.1}
            token = {**entry, "top_logprobs": [entry, entry, entry]}
            return completion("東京都", logprobs={"content": [token]})

        with serving(foreign) as server:
            endpoint(base, tmp_path, server.url, top_logprobs=3)
            message = refused(1)
        assert "vocabularies cannot be matched" in message and "teacher.tokenizer" in message

    def test_a_spent_budget_says_what_to_raise(
        self, refused: Refused, base: dict[str, Any], tmp_path: Path
    ) -> None:
        with serving() as server:
            endpoint(base, tmp_path, server.url, budget_requests=5)
            message = refused(1)
            assert server.requests == 5
        assert "teacher.endpoint.budget_requests is spent: 5 of " in message


def test_tokenizers_that_cannot_be_matched(
    refused: Refused, base: dict[str, Any], tmp_path: Path
) -> None:
    other = Path(made.model(tmp_path / "other"))
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    a, b = sorted(vocabulary, key=vocabulary.get)[40:42]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    base |= {"student": {"model": str(other)}, "prune": None}
    message = refused(2)
    assert "tokenizers differ" in message and "'forward_kl'" in message
    assert "cross_entropy" in message


def recorded(base: dict[str, Any], tmp_path: Path, **columns: list[str]) -> None:
    """Turns the recipe to a recorded teacher with the columns given for each split."""
    files = {}
    for split, rows in (("train", made.pairs(32)), ("test", made.pairs(8, 100))):
        kept = columns.get(split, ["prompt", "completion"])
        lines = [{name: row[name] for name in kept} for row in rows]
        files[split] = made.write(tmp_path / f"{split}-answers.jsonl", lines)
    base["teacher"] = {"kind": "recorded", "files": files}
    base |= {"student": {"model": made.model(tmp_path / "student")}, "prune": None}
    base["capture"] = {"encoding": "text"}
    base["distill"]["losses"] = {"cross_entropy": 1.0}


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_recorded_file_with_half_its_columns(
    split: str, refused: Refused, base: dict[str, Any], tmp_path: Path
) -> None:
    recorded(base, tmp_path, **{split: ["prompt", "slice"]})
    message = refused(2)
    assert f"teacher.files.{split}" in message and "no column 'completion'" in message
    assert "It has: prompt, slice" in message


def test_recorded_rows_without_an_answer(
    refused: Refused, base: dict[str, Any], tmp_path: Path
) -> None:
    recorded(base, tmp_path)
    path = Path(base["teacher"]["files"]["train"])
    path.write_text("\n".join(path.read_text().splitlines()[:20]) + "\n")
    message = refused(2)
    assert "teacher.files.train" in message and "no recorded answer for" in message


def test_no_recorded_answers_to_the_test_rows(
    refused: Refused, base: dict[str, Any], tmp_path: Path
) -> None:
    recorded(base, tmp_path)
    del base["teacher"]["files"]["test"]
    assert "add teacher.files.test" in refused(1)


def test_recorded_texts_for_a_loss_on_distributions(
    refused: Refused, base: dict[str, Any], tmp_path: Path
) -> None:
    recorded(base, tmp_path)
    base["capture"] = {}
    base["distill"]["losses"] = {"forward_kl": 1.0}
    message = refused(2)
    assert "teacher.tokenizer" in message
    base["teacher"]["tokenizer"] = base["student"]["model"]
    message = refused(2)
    assert "keeps log-probabilities" in message and "column logprobs" in message
    assert "teacher.endpoint" not in message


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"hidden_size": 30, "num_attention_heads": 4}, "hidden size (30) is not a multiple"),
        ({"hidden_sise": 32}, "has no such field. Did you mean 'hidden_size'?"),
        ({"hidden_size": 32, "num_attention_heads": 0}, "refuses it"),
        ({"hidden_size": "wide"}, "refuses it"),
    ],
)
def test_a_new_teacher_that_cannot_be(
    config: dict[str, Any], said: str, refused: Refused, base: dict[str, Any]
) -> None:
    base["teacher"] = {"new": {"config": config}, "finetune": {"epochs": 1}}
    message = refused(2)
    assert "teacher.new.config" in message and said in message


def test_a_new_teacher_of_no_known_architecture(refused: Refused, base: dict[str, Any]) -> None:
    base["teacher"] = {
        "new": {"architecture": "lama", "config": {"hidden_size": 32}},
        "finetune": {"epochs": 1},
    }
    assert "transformers has no 'lama'" in refused(2)


def test_adapters_on_modules_that_are_not_there(refused: Refused) -> None:
    message = refused(2, "distill.lora={target_modules: [query]}")
    assert "distill.lora" in message and "query" in message


def test_on_policy_with_a_cut_vocabulary(refused: Refused) -> None:
    message = refused(2, "prune.vocabulary=task", "distill.on_policy=0.5")
    assert "distill.on_policy" in message and "prune.vocabulary" in message


def test_a_tokenizer_that_ends_no_text(refused: Refused, base: dict[str, Any]) -> None:
    folder = Path(base["teacher"]["model"])
    changed(folder / "tokenizer_config.json", eos_token=None)
    if (folder / "special_tokens_map.json").exists():
        (folder / "special_tokens_map.json").unlink()
    message = refused(2)
    assert "eos_token" in message


def test_a_checkpoint_that_is_no_language_model(
    refused: Refused, base: dict[str, Any], tiny_checkpoint: Callable[..., Path]
) -> None:
    shutil.rmtree(base["teacher"]["model"])
    base["teacher"]["model"] = str(tiny_checkpoint("distilbert", "classification"))
    message = refused(1)
    assert "is a distilbert" in message and "task generation runs on" in message
    assert len(message) < 500


def test_a_model_whose_cost_is_not_known_is_refused_before_it_is_trained(
    refused: Refused, base: dict[str, Any]
) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = {**sizes, "num_attention_heads": 4, "max_position_embeddings": 96}
    new = {"architecture": "olmo2", "vocabulary": 320, "config": config}
    base["teacher"] = {"new": new, "finetune": {"epochs": 1, "precision": "fp32"}}
    message = refused(2)
    assert "cost of an answer of architecture 'olmo2' is not known" in message
    assert "training" not in message
