"""Texts are tokenised few characters at a time, to the ids that all at once give."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from paredown.export import predict
from paredown.export.predict import Predictor, Row, answer_rows

WORDS = [f"w{number}" for number in range(40)]
SPECIAL = [("[CLS]", 0), ("[SEP]", 1)]
TEMPLATES = {
    "bert": ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
    "roberta": ("[CLS] $A [SEP]", "[CLS] $A [SEP] [SEP] $B [SEP]"),
    "ends": ("$A [SEP]", "$A [SEP] $B [SEP]"),
    "none": ("$A", "$A $B:1"),
}
Made = Callable[..., Predictor]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """A folder's predictor with a tokenizer of words, and no model."""
    monkeypatch.setattr(predict, "open_session", lambda *_: None)

    def get(length: int, template: str = "bert", side: str = "right") -> Predictor:
        tokenizer = Tokenizer(models.WordLevel({"[CLS]": 0, "[SEP]": 1} | {
            word: number for number, word in enumerate(WORDS, 2)
        }, unk_token="[SEP]"))  # fmt: skip
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        single, pair = TEMPLATES[template]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, pair=pair, special_tokens=SPECIAL
        )
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        settings = {
            "max_length": length, "truncation_side": side, "batch": 4, "prompts": {},
            "role": "text", "inputs": ["input_ids", "attention_mask", "token_type_ids"],
        }  # fmt: skip
        (tmp_path / "paredown.json").write_text(json.dumps(settings))
        (tmp_path / "model.onnx").touch()
        return Predictor(tmp_path)

    return get


def words(count: int, first: int = 0) -> str:
    """So many different words, far apart, so that few of them are a long text."""
    return "".join(f"{word}         " for word in itertools.islice(
        itertools.cycle(WORDS), first, first + count
    ))  # fmt: skip


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("length", [8, 9])
def test_long_pairs_are_cut_as_the_tokenizer_cuts_them(
    length: int, template: str, side: str, made: Made
) -> None:
    predictor = made(length, template, side)
    plain = Tokenizer.from_file(str(predictor.folder / "tokenizer.json"))
    plain.enable_truncation(length, direction=side)
    counts = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 17, 18, 30, 31]
    pairs = [(words(a), words(b, 7)) for a in counts for b in counts]
    found = predictor.tokenize([a for a, _ in pairs], [b for _, b in pairs])
    for one, pair in zip(found, pairs, strict=True):
        expected = plain.encode(*pair)
        assert one["input_ids"] == expected.ids
        assert one["token_type_ids"] == expected.type_ids
        assert one["attention_mask"] == expected.attention_mask


class Watched:
    """A tokenizer that notes how much it is given at once."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.given: list[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def encode_batch(self, rows: list[Any]) -> Any:
        self.given.append(rows)
        return self.tokenizer.encode_batch(rows)


def test_few_characters_are_tokenised_at_once(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = made(16)
    texts = [words(1 + number % 30, number) for number in range(60)]
    whole = predictor.tokenize(texts)
    assert [predictor.tokenize([text])[0] for text in texts] == whole
    monkeypatch.setattr(predict, "CHARACTERS", 500)
    watched = predictor.tokenizer = Watched(predictor.tokenizer)
    assert predictor.tokenize(texts) == whole
    assert list(itertools.chain(*watched.given)) == texts
    assert all(sum(map(len, some[:-1])) < 500 for some in watched.given)
    assert 2 < len(watched.given) < 60
    assert predictor.tokenize([]) == []


def test_few_characters_are_read_ahead(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "CHARACTERS", 500)
    predictor, read, sizes = made(16), 0, []

    def rows() -> Iterator[Row]:
        nonlocal read
        for number in range(40):
            read += 1
            yield Row(words(20), words(9)) if number % 3 else Row("short")

    def answered(texts: Sequence[str], *_: Any, **__: Any) -> list[dict[str, Any]]:
        sizes.append(sum(map(len, texts)))
        return [{"label": text} for text in texts]

    monkeypatch.setattr(predictor, "predict", answered)
    for done, _ in enumerate(answer_rows(predictor, rows(), index=None, top=None, batch=32)):
        assert read <= done + 4
    assert read == 40 and max(sizes) < 1000


MEMORY = """
import sys
from paredown.export import predict
predict.open_session = lambda *_: None
predictor = predict.Predictor(sys.argv[1])
text = "w1 " * 6_000
predictor.tokenize([text] * 2, [text] * 2)
print(next(l for l in open("/proc/self/status") if l.startswith("VmHWM:")).split()[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_long_pair_takes_no_memory_by_the_product_of_its_lengths(made: Made) -> None:
    folder = made(128).folder
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(folder)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 250_000
