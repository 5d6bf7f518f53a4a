"""What a person does wrong: one clear message, the right exit code, and nothing lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from paredown.recipes import cli
from paredown.recipes.store import Store

Rows = list[dict[str, Any]]


def write(path: Path, rows: Rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def rows(count: int, first: int = 0) -> Rows:
    kinds = ("open the account", "close the card", "find the bank")
    return [
        {"text": f"{kinds[i % 3]} number {i}", "label": kinds[i % 3].split()[0]}
        for i in range(first, first + count)
    ]


@pytest.fixture
def base(tmp_path: Path, tiny_checkpoint: Callable[..., Path]) -> dict[str, Any]:
    """A recipe whose classifier is fine-tuned from a tiny checkpoint on local rows."""
    return {
        "name": "small",
        "task": "classification",
        "data": {
            "files": {
                "train": write(tmp_path / "train.jsonl", rows(60)),
                "test": write(tmp_path / "test.jsonl", rows(12, 100)),
            }
        },
        "teacher": {
            "model": str(tiny_checkpoint("bert", "classification")),
            "finetune": {"epochs": 1, "precision": "fp32"},
        },
        "prune": {"layers": 1, "calibration_rows": 16},
        "distill": {"epochs": 1, "losses": {"kl": 1.0}, "precision": "fp32"},
    }


Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, base: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs the recipe and gives the one message it ends with."""

    def run(code: int, *overrides: str) -> str:
        recipe = tmp_path / "small.yaml"
        recipe.write_text(yaml.safe_dump(base), encoding="utf-8")
        out = tmp_path / "runs" / "small"
        found = cli.main(["run", str(recipe), *overrides, "--out", str(out)])
        seen = capsys.readouterr()
        assert found == code, seen.err
        assert "Traceback" not in seen.err
        return seen.err

    return run


def test_an_unknown_key_and_a_wrong_type_come_together(refused: Refused) -> None:
    message = refused(2, "distill.epoch=3", "seed=many")
    assert "distill.epoch" in message and "epochs" in message
    assert "seed" in message and "whole number" in message


@pytest.mark.parametrize("section", ["teacher", "student"])
@pytest.mark.parametrize("tuned", [True, False])
def test_an_encoder_with_a_decoder_is_refused_before_any_work(
    section: str, tuned: bool, refused: Refused, base: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "t5"
    folder.mkdir()
    config = {"model_type": "t5", "is_encoder_decoder": True}
    (folder / "config.json").write_text(json.dumps(config))
    if not tuned:
        del base["teacher"]["finetune"]
    message = refused(2, f"{section}.model={folder}")
    assert f"{section}.model: '{folder}' is a t5, an encoder and a decoder" in message
    assert "paredown.prune.cut_backbone" in message
    made = [path.name for path in (tmp_path / "runs" / ".stages").iterdir()]
    assert not [name for name in made if not name.lstrip(".").startswith("data")]


def test_a_missing_column(refused: Refused, base: dict[str, Any]) -> None:
    base["data"]["columns"] = {"text": "txt"}
    message = refused(2)
    assert "txt" in message and "text" in message and "train.jsonl" in message


def test_an_empty_file(refused: Refused, base: dict[str, Any]) -> None:
    Path(base["data"]["files"]["train"]).write_text("")
    assert "empty" in refused(1)


def test_a_file_that_is_not_utf_8(refused: Refused, base: dict[str, Any]) -> None:
    path = Path(base["data"]["files"]["train"])
    path.write_bytes(path.read_bytes() + b'{"text": "caf\xe9", "label": "open"}\n')
    message = refused(1)
    assert "UTF-8" in message and "61" in message


def test_one_class_only(refused: Refused, base: dict[str, Any], tmp_path: Path) -> None:
    base["data"]["files"] = {
        "train": write(tmp_path / "one.jsonl", [{**r, "label": "open"} for r in rows(30)]),
        "test": write(tmp_path / "one-test.jsonl", [{**r, "label": "open"} for r in rows(6, 50)]),
    }
    assert "class" in refused(1)


def test_test_rows_without_labels(refused: Refused, base: dict[str, Any], tmp_path: Path) -> None:
    bare = [{"text": r["text"], "label": None} for r in rows(6, 100)]
    base["data"]["files"]["test"] = write(tmp_path / "bare.jsonl", bare)
    assert "label" in refused(1)


def test_labels_that_training_lacks(refused: Refused, base: dict[str, Any], tmp_path: Path) -> None:
    new = [*rows(6, 100), {"text": "lose the key", "label": "lose"}]
    base["data"]["files"]["test"] = write(tmp_path / "new.jsonl", new)
    assert "lose" in refused(1)


def test_more_layers_than_the_teacher_has(refused: Refused, tmp_path: Path) -> None:
    message = refused(2, "prune.layers=7")
    assert "7" in message and "2" in message and "layers" in message
    kept = [p.name.split("-")[0] for p in (tmp_path / "runs/.stages").glob("[a-z]*-*")]
    assert sorted(kept) == ["capture", "data", "teacher"]


def test_an_architecture_that_cannot_be_cut(
    refused: Refused, base: dict[str, Any], tmp_path: Path
) -> None:
    from transformers import AlbertConfig, AlbertModel

    folder = tmp_path / "albert"
    sizes = {"vocab_size": 300, "hidden_size": 32, "embedding_size": 16, "num_attention_heads": 2}
    config = AlbertConfig(**sizes, intermediate_size=48, max_position_embeddings=64)
    AlbertModel(config).save_pretrained(folder)
    source = Path(base["teacher"]["model"])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder / name)
    base["teacher"]["model"] = str(folder)
    message = refused(2, "distill.losses={kl: 1.0}")
    assert "albert" in message and "bert" in message


@pytest.mark.parametrize("more", [{}, {"auto_map": {"AutoModel": "mine.MyModel"}}])
def test_an_architecture_that_transformers_lacks(
    more: dict[str, Any], refused: Refused, base: dict[str, Any]
) -> None:
    path = Path(base["teacher"]["model"]) / "config.json"
    config = json.loads(path.read_text()) | {"model_type": "my_bert", **more}
    path.write_text(json.dumps(config))
    message = refused(1)
    assert "'my_bert'" in message and "kind: recorded" in message
    assert "trust_remote_code" not in message


def test_a_checkpoint_without_tokenizer(refused: Refused, base: dict[str, Any]) -> None:
    for path in Path(base["teacher"]["model"]).glob("tokenizer*"):
        path.unlink()
    message = refused(1)
    assert "no tokenizer" in message and "save_pretrained" in message


def test_a_loss_that_needs_labels_on_unlabelled_rows(
    refused: Refused, base: dict[str, Any], tmp_path: Path
) -> None:
    mixed = [*rows(60), {"text": "what is this about", "label": None}]
    base["data"]["files"]["train"] = write(tmp_path / "mixed.jsonl", mixed)
    message = refused(2, "distill.losses={kl: 1.0, cross_entropy: 1.0}")
    assert "distill.losses.cross_entropy needs labels, but 1 training rows" in message


def test_no_network_and_no_copy(
    refused: Refused, base: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    base["teacher"]["model"] = "nobody/no-such-model"
    message = refused(1)
    assert "nobody/no-such-model" in message and "folder" in message


def test_a_truncated_shard_is_named_and_the_rest_is_kept(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(2, "prune.layers=7")  # leaves a finished capture
    shard = next((tmp_path / "runs/.stages").glob("capture-*/shard-*.arrow"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    message = refused(1)
    assert shard.name in message and "damaged" in message
    shard.write_bytes(whole)
    made: list[str] = []
    ensure = Store.ensure

    def counted(self: Store, stage: Any, trial: str | None = None) -> Any:
        folder = ensure(self, stage, trial)
        made.extend([] if folder.cached else [stage.name])
        return folder

    monkeypatch.setattr(Store, "ensure", counted)
    refused(0, "export=[]", "evaluate.latency_rows=0")
    assert not {"data", "teacher", "capture"} & set(made)


def test_a_full_disk(base: dict[str, Any], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        recipe = tmp_path / "small.yaml"
        recipe.write_text(yaml.safe_dump(base), encoding="utf-8")
        command = ["python", "-m", "paredown", "run", str(recipe), "--out", str(disk / "run")]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        import sys

        command[0] = sys.executable
        failed = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert failed.returncode == 1
        assert "o space" in failed.stderr and "Traceback" not in failed.stderr
    finally:
        subprocess.run(["umount", str(disk)], check=False)
