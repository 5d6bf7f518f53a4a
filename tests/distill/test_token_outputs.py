"""Recorded token distributions: what went in comes out, resumed alike, refused where damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from paredown.distill.hidden_encoding import HiddenEncoding, Moments, fit
from paredown.distill.outputs import TeacherOutputs
from paredown.distill.token_divergence import dense
from paredown.distill.token_encoding import get_encoding
from paredown.distill.token_outputs import Record, TokenOutputs
from paredown.distill.token_recording import TokenOutputsWriter
from paredown.eval.errors import RunError

V, H = 50, 6
IDENTITY = {"teacher": "tiny@1", "tokenizer": "abc", "data": "def"}
SAMPLED = {"encoding": "sampled", "draws": 8}


def a_row(number: int) -> dict[str, Any]:
    """A row of 5 to 11 tokens: a prompt of three, and a completion with its logits and states."""
    draw = torch.Generator().manual_seed(number)
    length = 5 + number % 7
    return {
        "ids": torch.randint(V, (length,), generator=draw).tolist(),
        "spans": [(3, length)],
        "key": f"row {number}",
        "text": f"answer {number}",
        "logits": torch.randn(length - 3, V, generator=draw) * 2,
        "states": {1: torch.randn(length - 3, H, generator=draw)},
    }


@pytest.fixture(scope="module")
def hidden() -> dict[int, HiddenEncoding]:
    moments = Moments(H)
    moments.add(torch.randn(100, H, generator=torch.Generator().manual_seed(0)))
    return {1: fit(moments, 4)}


def writer(out: Path, hidden: dict[int, HiddenEncoding], **options: Any) -> TokenOutputsWriter:
    spec = options.pop("spec", SAMPLED)
    given = {"identity": IDENTITY, "shard_items": 8, **options}
    return TokenOutputsWriter(out, encoding=get_encoding(spec, V), hidden=hidden, **given)


def recorded(
    out: Path, hidden: dict[int, HiddenEncoding], count: int = 30, **options: Any
) -> TokenOutputs:
    made = writer(out, hidden, **options)
    for number in range(made.next_item, count):
        made.add(made.record(**a_row(number)))
    return made.finish({"train": np.arange(count)[::-1]}, divergence={"kl": 0.25})


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "spec", [SAMPLED, {"encoding": "full"}, {"encoding": "topk", "k": 4}], ids=str
)
def test_what_was_recorded_is_read(
    tmp_path: Path, hidden: dict[int, HiddenEncoding], spec: dict[str, Any]
) -> None:
    outputs = recorded(tmp_path, hidden, spec=spec)
    encoding = get_encoding(spec, V)
    rows = [29, 0, 17, 0]
    records = outputs.get(outputs.rows("train")[rows])
    wanted = [a_row(29 - n) for n in rows]
    parts = []
    for record, row in zip(records, wanted, strict=True):
        assert list(record.ids) == row["ids"] and record.spans == row["spans"]
        assert record.text == row["text"] and record.start == 3
        assert record.positions.tolist() == list(range(3, len(row["ids"])))
        blob = encoding.encode(row["logits"], row["key"])
        assert record.blob == blob
        parts.append(dense(encoding.decode(blob, record.tokens), V))
    assert torch.equal(dense(outputs.targets(records), V), torch.cat(parts))
    for found, row in zip(outputs.states(1, records), wanted, strict=True):
        blob = hidden[1].encode(row["states"][1])
        assert torch.equal(found, hidden[1].decode(blob, len(found)))
    assert outputs.lengths().tolist() == [5 + n % 7 for n in range(30)]


def test_the_manifest_states_what_a_token_takes(
    tmp_path: Path, hidden: dict[int, HiddenEncoding]
) -> None:
    outputs = recorded(tmp_path, hidden)
    records = outputs.get(range(30))
    tokens = sum(record.tokens for record in records)
    said = outputs.manifest
    assert said["tokens"] == said["encoded_tokens"] == tokens and said["items"] == 30
    blobs = sum(len(record.blob or b"") for record in records)
    assert said["bytes_per_token"] == pytest.approx(blobs / tokens)
    assert said["hidden_bytes_per_token"] == 6  # 4 components, and a factor of 2
    size = sum(path.stat().st_size for path in tmp_path.glob("*.arrow"))
    assert said["file_bytes_per_token"] == pytest.approx(size / tokens)
    assert said["divergence"] == {"kl": 0.25} and said["encoding"]["draws"] == 8
    assert sorted(path.suffix for path in tmp_path.iterdir() if path.suffix != ".arrow") == [
        ".json",
        ".npy",
        ".safetensors",
    ]


@pytest.mark.parametrize("stop", [0, 3, 8, 21, 30])
def test_recording_that_was_killed_goes_on_to_the_same_bytes(
    tmp_path: Path, hidden: dict[int, HiddenEncoding], stop: int
) -> None:
    recorded(tmp_path / "a", hidden)
    stopped = writer(tmp_path / "b", hidden)
    for number in range(stop):
        stopped.add(stopped.record(**a_row(number)))
    # As a kill in the midst of a shard leaves it: half a file, or a whole one without its note.
    (tmp_path / "b" / "shard-00003.tmp").write_bytes(b"ARROW1 half")
    (tmp_path / "b" / "shard-00003.arrow").write_bytes(b"ARROW1 whole, but not noted")
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "b").glob("shard-0000[0-2].arrow")}
    assert writer(tmp_path / "b", hidden).next_item == stop // 8 * 8
    recorded(tmp_path / "b", hidden)
    assert files(tmp_path / "b") == files(tmp_path / "a")
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())


def test_processes_that_share_the_shards_record_the_same(
    tmp_path: Path, hidden: dict[int, HiddenEncoding]
) -> None:
    alone = recorded(tmp_path / "a", hidden)
    for rank in (1, 0):
        made = writer(tmp_path / "b", hidden, rank=rank, world_size=2)
        for number, items in made.pending(30):
            made.write(number, [made.record(**a_row(n)) for n in items])
        assert not list(made.pending(30))
    both = made.finish({"train": np.arange(30)[::-1]}, divergence={"kl": 0.25})
    assert {shard["rank"] for shard in both.manifest["shards"]} == {0, 1}
    for shard in alone.manifest["shards"]:
        name = shard["file"]
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_shard_that_no_process_wrote_is_told(
    tmp_path: Path, hidden: dict[int, HiddenEncoding]
) -> None:
    made = writer(tmp_path, hidden, rank=1, world_size=2)
    for number, items in made.pending(30):
        made.write(number, [made.record(**a_row(n)) for n in items])
    with pytest.raises(RunError, match=r"Shard 0 .* is missing"):
        made.finish({})
    with pytest.raises(RunError, match="no rows"):
        writer(tmp_path / "empty", hidden).finish({})


def test_large_blobs_end_a_shard_early(tmp_path: Path, hidden: dict[int, HiddenEncoding]) -> None:
    outputs = recorded(tmp_path, hidden, spec={"encoding": "full"}, shard_bytes=1500)
    assert len(outputs.manifest["shards"]) > 4 and len(outputs) == 30
    assert outputs.get([29])[0].text == "answer 29"


def test_texts_alone_can_be_recorded(tmp_path: Path) -> None:
    made = TokenOutputsWriter(tmp_path, identity=IDENTITY)
    for number in range(5):
        made.add(Record([1, 2, 3], [(1, 3)], f"answer {number}"))
    outputs = made.finish({"train": range(5)})
    assert outputs.manifest["signal"] == "text" and outputs.manifest["bytes_per_token"] is None
    assert [record.text for record in outputs.get([4, 0])] == ["answer 4", "answer 0"]
    with pytest.raises(RunError, match=r"texts without distributions; use a loss on the texts"):
        outputs.targets(outputs.get([0]))


def test_several_turns_are_several_spans(tmp_path: Path) -> None:
    encoding = get_encoding({"encoding": "full"}, V)
    made = TokenOutputsWriter(tmp_path, identity={}, encoding=encoding)
    made.add(made.record(range(10), [(2, 4), (7, 10)], key="a", logits=torch.zeros(5, V)))
    made.add(made.record([1, 2], [], key="b"))
    record, empty = made.finish({}).get([0, 1])
    assert record.positions.tolist() == [2, 3, 7, 8, 9] and record.tokens == 5
    assert empty.tokens == 0 and empty.start == 2 and empty.blob is None


def test_the_last_token_of_each_item_is_read_from_all_shards(
    tmp_path: Path, hidden: dict[int, HiddenEncoding]
) -> None:
    outputs = recorded(tmp_path / "some", hidden)
    assert outputs.last_ids().tolist() == [a_row(n)["ids"][-1] for n in range(30)]
    made = TokenOutputsWriter(tmp_path / "texts", identity=IDENTITY)
    made.add(made.record([], [], key="row", text="said"))
    assert made.finish({"train": np.arange(1)}).last_ids().tolist() == [-1]


@pytest.mark.parametrize("spans", [[(0, 2)], [(2, 2)], [(3, 1)], [(2, 9)], [(3, 4), (1, 2)]])
def test_spans_that_are_none_are_refused(tmp_path: Path, spans: list[tuple[int, int]]) -> None:
    made = TokenOutputsWriter(tmp_path, identity={})
    with pytest.raises(RunError, match=r"spans that ascend within tokens 1 to 5"):
        made.add(Record([1, 2, 3, 4, 5], spans))


def test_what_does_not_fit_a_record_is_refused(
    tmp_path: Path, hidden: dict[int, HiddenEncoding]
) -> None:
    made = writer(tmp_path, hidden)
    row = a_row(0)
    with pytest.raises(RunError, match="Row row 0: logits of 1 tokens for spans of 2"):
        made.record(**{**row, "logits": row["logits"][:1]})
    with pytest.raises(RunError, match="hidden states of layer 1 of 3 tokens for spans of 2"):
        made.record(**{**row, "states": {1: torch.zeros(3, H)}})
    with pytest.raises(RunError, match=r"hidden states of layers \[1\], got \[\]"):
        made.add(made.record(**{**row, "states": None}))
    texts = TokenOutputsWriter(tmp_path / "texts", identity={})
    with pytest.raises(RunError, match="no encoding"):
        texts.record(row["ids"], row["spans"], key="a", logits=row["logits"])
    made.add(made.record(**row))
    with pytest.raises(RunError, match="'train' names items beyond the 1 recorded"):
        made.finish({"train": [1]})


def test_a_folder_begun_for_something_else_is_not_gone_on_with(
    tmp_path: Path, hidden: dict[int, HiddenEncoding]
) -> None:
    writer(tmp_path, hidden)
    before = files(tmp_path)
    writer(tmp_path, hidden)
    with pytest.raises(RunError, match="begun for another teacher: 'tiny@1' there, 'other' now"):
        writer(tmp_path, hidden, identity={**IDENTITY, "teacher": "other"})
    with pytest.raises(RunError, match="another encoding"):
        writer(tmp_path, hidden, spec={"encoding": "sampled", "draws": 9})
    with pytest.raises(RunError, match="another hidden_layers"):
        writer(tmp_path, {})
    other = {1: HiddenEncoding(hidden[1].mean + 1, hidden[1].basis, hidden[1].scale)}
    with pytest.raises(RunError, match="another hidden_sha256"):
        writer(tmp_path, other)
    assert files(tmp_path) == before


def test_a_finished_folder_is_not_written_to(
    tmp_path: Path, hidden: dict[int, HiddenEncoding]
) -> None:
    recorded(tmp_path, hidden)
    before = files(tmp_path)
    with pytest.raises(RunError, match="are finished"):
        writer(tmp_path, hidden)
    assert files(tmp_path) == before


def test_damaged_files_are_refused_by_name(
    tmp_path: Path, hidden: dict[int, HiddenEncoding]
) -> None:
    recorded(tmp_path, hidden)
    for name in ("shard-00001.arrow", "hidden.safetensors"):
        whole = (tmp_path / name).read_bytes()
        changed = bytearray(whole)
        changed[len(whole) // 2] ^= 1
        for content in (whole[:-30], bytes(changed), b""):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(RunError, match=f"damaged: {name} .* Delete that folder"):
                TokenOutputs(tmp_path)
        (tmp_path / name).unlink()
        with pytest.raises(RunError, match=f"damaged: {name}"):
            TokenOutputs(tmp_path)
        (tmp_path / name).write_bytes(whole)
    (tmp_path / "manifest.json").write_text('{"format": ')
    with pytest.raises(RunError, match=r"damaged: manifest.json"):
        TokenOutputs(tmp_path)


def test_outputs_of_something_else_are_refused(
    tmp_path: Path, hidden: dict[int, HiddenEncoding]
) -> None:
    outputs = recorded(tmp_path / "a", hidden)
    TokenOutputs(tmp_path / "a", IDENTITY)
    with pytest.raises(RunError, match="another tokenizer: expected 'xyz', recorded 'abc'"):
        TokenOutputs(tmp_path / "a", {"tokenizer": "xyz"})
    with pytest.raises(RunError, match="another encoding"):
        TokenOutputs(tmp_path / "a", {"encoding": {"encoding": "full"}})
    with pytest.raises(RunError, match=r"manifest.json is missing"):
        TokenOutputs(tmp_path)
    with pytest.raises(RunError, match="format tokens-1"):
        TeacherOutputs(tmp_path / "a")
    with pytest.raises(RunError, match="not recorded for 'test', only for train"):
        outputs.rows("test")
    with pytest.raises(RunError, match=r"layer 3, only for \[1\]"):
        outputs.states(3, [])
    for item in (-1, 30):
        with pytest.raises(RunError, match=f"Item {item} was not recorded; there are 30"):
            outputs.get([item])


def test_nothing_but_plain_formats_is_in_a_folder(
    tmp_path: Path, hidden: dict[int, HiddenEncoding]
) -> None:
    recorded(tmp_path, hidden)
    np.load(tmp_path / "rows-train.npy", allow_pickle=False)
    json.loads((tmp_path / "manifest.json").read_text())
