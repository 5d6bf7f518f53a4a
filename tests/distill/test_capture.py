"""Teacher outputs: each text once, resumable by shard, and refused where anything differs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.distill.capture import Stream, capture, distinct_items, record_given
from paredown.distill.outputs import TeacherOutputs
from paredown.eval.errors import RunError
from paredown.eval.models import TextModel
from paredown.eval.tasks import CLASSIFICATION, RETRIEVAL

WORDS = ["open", "close", "card", "account", "bank", "find", "file", "list", "sort", "value"]


def texts(count: int, seed: int = 0) -> list[str]:
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(WORDS, draw.integers(1, 9))) for _ in range(count)]


@pytest.fixture(scope="module")
def embedder(tiny_model: Callable[..., TextModel]) -> TextModel:
    return tiny_model("bert", RETRIEVAL)


@pytest.fixture(scope="module")
def classifier(tiny_model: Callable[..., TextModel]) -> TextModel:
    return tiny_model("bert", CLASSIFICATION)


def test_recorded_values_are_those_of_the_model(embedder: TextModel, tmp_path: Path) -> None:
    queries, documents = texts(50), texts(70, seed=1)
    streams = [
        Stream("train.query", queries, role="query"),
        Stream("collection.text", documents, role="document"),
    ]
    outputs = capture(embedder, streams, tmp_path / "c", identity={"data": "x"}, shard_rows=16)
    assert outputs is not None
    for stream in streams:
        found = outputs.values(outputs.items(stream.name))
        expected = embedder.predict(stream.texts, None, stream.role)
        assert np.abs(found - expected).max() <= 1e-5


def test_equal_texts_are_recorded_once_and_roles_apart(embedder: TextModel, tmp_path: Path) -> None:
    streams = [
        Stream("train.query", ["open card", "open card", "find file"], role="query"),
        Stream("validation.query", ["find file"], role="query"),
        Stream("collection.text", ["open card"], role="document"),
    ]
    outputs = capture(embedder, streams, tmp_path / "c", identity={})
    assert outputs is not None
    assert len(outputs) == 3
    train = outputs.items("train.query")
    assert train[0] == train[1] and outputs.items("validation.query")[0] == train[2]
    assert outputs.items("collection.text")[0] != train[0]  # another prompt, another embedding


@given(st.integers(1, 40), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_items_are_sorted_by_length_and_lose_no_row(
    embedder: TextModel, count: int, seed: int
) -> None:
    stream = Stream("train.query", texts(count, seed), role="query")
    items = distinct_items(embedder, [stream])
    assert np.all(np.diff(items.length) <= 0)
    back = [stream.texts[int(items.row[i])] for i in items.of["train.query"]]
    assert back == stream.texts
    assert len(set(stream.texts)) == len(items.row)


def test_pairs_are_told_apart_by_both_texts(classifier: TextModel, tmp_path: Path) -> None:
    stream = Stream("train.text", ["a", "a", "b"], ["x", "y", "x"])
    outputs = capture(classifier, [stream], tmp_path / "c", identity={})
    assert outputs is not None and len(outputs) == 3
    found = outputs.values(outputs.items("train.text"))
    assert np.abs(found - classifier.predict(stream.texts, stream.pairs)).max() <= 1e-5


def test_a_stopped_capture_goes_on_with_the_shards_that_are_missing(
    embedder: TextModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Stream("train.query", texts(40), role="query")
    whole = capture(embedder, [stream], tmp_path / "a", identity={}, shard_rows=8)
    assert whole is not None
    shards = len(whole.manifest["shards"])

    class Stopped(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done >= total / 2:
            raise Stopped

    with pytest.raises(Stopped):
        capture(embedder, [stream], tmp_path / "b", identity={}, shard_rows=8, progress=stop)
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "b").glob("*.arrow")}
    assert 0 < len(kept) < shards
    again = capture(embedder, [stream], tmp_path / "b", identity={}, shard_rows=8)
    assert again is not None
    for name, when in kept.items():
        assert (tmp_path / "b" / name).stat().st_mtime_ns == when
    for shard in whole.manifest["shards"]:
        name = shard["file"]
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_two_processes_share_the_shards_and_record_the_same(
    embedder: TextModel, tmp_path: Path
) -> None:
    stream = Stream("train.query", texts(40), role="query")
    alone = capture(embedder, [stream], tmp_path / "a", identity={}, shard_rows=8)
    for rank in (1, 0):  # rank 0 comes last, as after a barrier
        both = capture(
            embedder, [stream], tmp_path / "b", identity={}, shard_rows=8, rank=rank, world_size=2
        )
    assert alone is not None and both is not None
    assert {shard["rank"] for shard in both.manifest["shards"]} == {0, 1}
    rows = both.items("train.query")
    assert np.abs(both.values(rows) - alone.values(alone.items("train.query"))).max() <= 1e-5


def test_a_truncated_shard_is_refused_with_what_to_do(embedder: TextModel, tmp_path: Path) -> None:
    capture(embedder, [Stream("s", texts(20))], tmp_path / "c", identity={}, shard_rows=8)
    shard = tmp_path / "c" / "shard-00001.arrow"
    shard.write_bytes(shard.read_bytes()[:-40])
    with pytest.raises(RunError, match=r"damaged: shard-00001.arrow .* Delete that folder"):
        TeacherOutputs(tmp_path / "c")


def test_a_changed_byte_is_noticed(embedder: TextModel, tmp_path: Path) -> None:
    capture(embedder, [Stream("s", texts(20))], tmp_path / "c", identity={})
    shard = tmp_path / "c" / "shard-00000.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(bytes(content))
    with pytest.raises(RunError, match="checksum"):
        TeacherOutputs(tmp_path / "c")


def test_outputs_of_another_teacher_are_refused(embedder: TextModel, tmp_path: Path) -> None:
    capture(embedder, [Stream("s", texts(5))], tmp_path / "c", identity={"teacher": "one"})
    TeacherOutputs(tmp_path / "c", {"teacher": "one"})
    with pytest.raises(RunError, match="another teacher: expected 'two', recorded 'one'"):
        TeacherOutputs(tmp_path / "c", {"teacher": "two"})


def test_an_unfinished_capture_and_an_unknown_stream_are_refused(
    embedder: TextModel, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match=r"manifest.json is missing"):
        TeacherOutputs(tmp_path)
    outputs = capture(embedder, [Stream("s", texts(5))], tmp_path / "c", identity={})
    assert outputs is not None
    with pytest.raises(RunError, match=r"not recorded for 'test.query', only for s"):
        outputs.items("test.query")


def test_hidden_states_are_those_of_the_layers_asked_for(
    classifier: TextModel, tmp_path: Path
) -> None:
    stream = Stream("train.text", texts(12))
    outputs = capture(classifier, [stream], tmp_path / "c", identity={}, hidden_layers=[0, 2])
    assert outputs is not None
    batch = classifier.collate(classifier.tokenize(stream.texts[:1]))
    expected = classifier(**batch, output_hidden_states=True).hidden_states
    for layer in (0, 2):
        found = outputs.hidden(layer, outputs.items("train.text")[:1].tolist())[0]
        wanted = expected[layer][0].detach().numpy()
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() <= 1e-2  # stored as float16
    with pytest.raises(RunError, match=r"not recorded for layer 1, only for \[0, 2\]"):
        outputs.hidden(1, [0])


def test_outputs_that_are_not_numbers_are_refused(
    tiny_model: Callable[..., TextModel], tmp_path: Path
) -> None:
    broken = tiny_model("bert", CLASSIFICATION)
    broken.backbone.classifier.weight.data.fill_(float("nan"))
    with pytest.raises(RunError, match="not finite numbers"):
        capture(broken, [Stream("s", ["a"])], tmp_path / "c", identity={})
    assert not (tmp_path / "c" / "manifest.json").exists()


def test_no_rows_at_all_is_an_error(embedder: TextModel, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no rows"):
        capture(embedder, [Stream("s", [])], tmp_path / "c", identity={})


def test_given_answers_are_read_like_captured_ones(tmp_path: Path) -> None:
    values = {
        "train.text": np.arange(12, dtype=np.float32).reshape(4, 3),
        "validation.text": np.ones((2, 3), dtype=np.float32),
    }
    outputs = record_given(values, tmp_path, signal="class_logits", identity={}, shard_rows=3)
    for name, block in values.items():
        assert np.array_equal(outputs.values(outputs.items(name)), block)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["precision"] == "as recorded"
