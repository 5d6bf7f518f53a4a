"""A real chat server: `transformers serve` with a tiny random model, for texts."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from paredown.distill.answer_log import read_answers
from paredown.distill.endpoint import Request, record_answers
from paredown.distill.endpoint_settings import EndpointSettings
from paredown.eval.errors import RunError

NEEDED = [
    name
    for name in ("openai", "fastapi", "uvicorn", "opentelemetry")
    if not importlib.util.find_spec(name)
]
pytestmark = [
    pytest.mark.slow,  # the server imports for several seconds
    pytest.mark.skipif(
        bool(NEEDED), reason=f"`transformers serve` needs {', '.join(NEEDED)}, not installed"
    ),
]

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(alphabet | {"</s>": 256}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", pad_token="</s>", chat_template=TEMPLATE
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        initializer_range=0.25,
        bos_token_id=None,
        eos_token_id=256,
        pad_token_id=256,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(checkpoint: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(checkpoint)]
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    log = checkpoint / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen([*command, *options], stdout=output, stderr=output)
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()[-2000:]
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                    break
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(20)


QUESTIONS = ["red shoes under 80", "größe 42", "x"]


def test_texts_are_those_the_model_generates(server: str, checkpoint: Path, tmp_path: Path) -> None:
    requests = [Request(q, [{"role": "user", "content": q}]) for q in QUESTIONS]
    settings = EndpointSettings(server, str(checkpoint), max_tokens=6, concurrency=2)
    summary = record_answers(requests, settings, tmp_path)
    assert (summary.recorded, summary.uncounted) == (len(QUESTIONS), 0)
    model = LlamaForCausalLM.from_pretrained(checkpoint)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint)
    for answer in read_answers(tmp_path):
        chat = [{"role": "user", "content": answer.key}]
        inputs = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        new = output[0, inputs["input_ids"].shape[1] :]
        assert answer.text == tokenizer.decode(new, skip_special_tokens=True)
        assert answer.prompt_tokens == inputs["input_ids"].shape[1]


def test_its_lack_of_log_probabilities_is_said_with_what_to_do(
    server: str, checkpoint: Path, tmp_path: Path
) -> None:
    settings = EndpointSettings(server, str(checkpoint), max_tokens=6, top_logprobs=2)
    # this server ignores the wish, or refuses it, by its version; either way it is said
    with pytest.raises(RunError, match=r"log-probabilities.*teacher\.endpoint\.top_logprobs: 0"):
        record_answers([Request("a", [{"role": "user", "content": "a"}])], settings, tmp_path)
