"""Tiny models of three architectures, made from configs; no network, no hub."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)

from paredown.eval.checkpoints import save_model
from paredown.eval.encoding import Encoding
from paredown.eval.models import TextModel
from paredown.eval.tasks import Task, get_task

LABELS = ["open_account", "close account", "größe"]
TEXTS = [
    "how do I open a file for reading and writing?",
    "sort a list of dictionaries by the value of a key",
    "Größe des Kontos, café, 你好, 🙂",
    "the bank closed my account: why, and how do I open another one?",
    "x",
    "  leading and trailing spaces  ",
]


def _word_piece(segments: bool) -> PreTrainedTokenizerFast:
    """BERT's kind of tokenizer, trained on a few sentences."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(
        TEXTS * 3, trainers.WordPieceTrainer(vocab_size=200, special_tokens=specials)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.decoder = decoders.WordPiece()
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), specials, strict=False))
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        mask_token="[MASK]",
        model_input_names=inputs if segments else inputs[::2],
        **names,
    )


def _byte_pairs() -> PreTrainedTokenizerFast:
    """RoBERTa's kind of tokenizer: bytes, padding id 1, no segments."""
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXTS * 3,
        trainers.BpeTrainer(vocab_size=330, special_tokens=specials, initial_alphabet=alphabet),
    )
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        pad_token="<pad>",
        sep_token="</s>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_input_names=["input_ids", "attention_mask"],
    )


def _tiny_model(
    kind: str, task: Task, *, dense: int | None = None, pooling: Any = "mean"
) -> TextModel:
    """A random model whose outputs react: weights of std 0.25."""
    torch.manual_seed(0)
    tokenizer = _byte_pairs() if kind == "roberta" else _word_piece(kind == "bert")
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 48, "max_position_embeddings": 66}
    if kind == "distilbert":
        sizes = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
        sizes |= {"max_position_embeddings": 64}
    config = AutoConfig.for_model(
        kind,
        vocab_size=len(tokenizer),
        initializer_range=0.25,
        pad_token_id=tokenizer.pad_token_id,
        id2label=dict(enumerate(LABELS)),
        label2id={name: i for i, name in enumerate(LABELS)},
        **sizes,
    )
    if task.signal == "class_logits":
        backbone = AutoModelForSequenceClassification.from_config(config)
        return TextModel(backbone, tokenizer, task.signal, Encoding(24)).eval()
    encoding = Encoding(24, pooling, True, {"query": "find: "})
    layer = torch.nn.Linear(32, dense) if dense else None
    backbone = AutoModel.from_config(config)
    return TextModel(backbone, tokenizer, task.signal, encoding, layer).eval()


LONGEST = (
    "test_resume", "test_endpoint_kills", "test_language_processes", "test_processes", "test_sweep",
    "test_ci", "test_search", "test_python_docs", "test_smoke",
)  # fmt: skip
"""Files that take longest, few tests each: begun last, one process would still be at them alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONGEST)


def pytest_configure() -> None:
    """One thread: tiny models gain nothing from more, and busy cores make threads spin."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(autouse=True)
def _global_state() -> Iterator[None]:
    """Gives every test the seed, the default dtype and the threads it would have alone."""
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., TextModel]:
    """Makes a tiny random model: ``tiny_model("bert", task, dense=None, pooling="mean")``."""
    return _tiny_model


@pytest.fixture
def tiny_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Saves a tiny random model and gives its folder; the arguments are those of `tiny_model`."""

    def make(kind: str, task: str, name: str = "checkpoint", **options: Any) -> Path:
        folder = tmp_path / name
        save_model(_tiny_model(kind, get_task(task), **options), folder)
        return folder

    return make
