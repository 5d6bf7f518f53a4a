"""What stands beside a graph in an exported folder: tokenizer, settings, programs, a page."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..eval.dialogues import Dialogues
from ..eval.generating import stop_tokens
from ..eval.models import TextModel, context_length
from .graphs import cache_shape
from .settings import SETTINGS_VERSION, write_settings

if TYPE_CHECKING:
    from ..eval.tasks import Task

ALONE = {"predict.py": "predict.py"}
"""The program of a folder with classes or embeddings, by its name there and in this package."""
ALONE_TEXT = {
    "predict.py": "predict_text.py",
    "generator.py": "generator.py",
    "rows.py": "predict.py",
}
"""The programs of a folder that writes texts."""


@dataclass(frozen=True)
class Answering:
    """How a language model's prompts are written and its answers bounded, as a recipe says.

    Attributes:
        max_new_tokens: Tokens of an answer, at most.
        form: ``text`` or ``messages``, as `eval.dialogues.Dialogues` has it.
        template: Further arguments of the chat template.
    """

    max_new_tokens: int = 128
    form: Literal["text", "messages"] = "text"
    template: Mapping[str, Any] = field(default_factory=dict)

    def dialogues(self, model: TextModel) -> Dialogues:
        """How this writes a model's prompts."""
        length = model.encoding.max_length
        return Dialogues(model.tokenizer, self.form, length, dict(self.template))


def common_settings(
    model: TextModel, task: Task, fmt: str, precision: str, libraries: Sequence[str]
) -> dict[str, Any]:
    """What ``paredown.json`` of every format says."""
    return {
        "version": SETTINGS_VERSION,
        "task": task.name,
        "signal": model.signal,
        "format": fmt,
        "precision": precision,
        "width": model.width,
        "max_length": model.encoding.max_length,
        "versions": {name: metadata.version(name) for name in libraries},
    }


def signal_settings(
    model: TextModel, task: Task, fmt: str, precision: str, libraries: Sequence[str], batch: int
) -> dict[str, Any]:
    """All that must be known besides a graph that gives classes or embeddings."""
    tokenizer = model.tokenizer
    return common_settings(model, task, fmt, precision, libraries) | {
        "labels": model.labels,
        "inputs": list(model.inputs),
        "output": output_name(model),
        "truncation_side": tokenizer.truncation_side,
        "pad_id": tokenizer.pad_token_id or 0,
        "pad_type_id": tokenizer.pad_token_type_id,
        "prompts": model.encoding.prompts,
        "role": "query" if model.signal == "embedding" else "text",
        "pooling": model.encoding.pooling,
        "normalize": model.encoding.normalize,
        "batch": batch,
    }


def text_settings(
    model: TextModel,
    task: Task,
    fmt: str,
    precision: str,
    libraries: Sequence[str],
    batch: int,
    answering: Answering,
) -> dict[str, Any]:
    """All that must be known besides a graph that gives the next token."""
    tokenizer = model.tokenizer
    found = common_settings(model, task, fmt, precision, libraries) | cache_shape(model)
    found |= {
        "context": context_length(model.config),
        "max_new_tokens": answering.max_new_tokens,
        "pad_id": tokenizer.pad_token_id or 0,
        "stop_ids": stop_tokens(model),
        "form": answering.form,
        "batch": batch,
    }
    if answering.form == "messages":
        found["template"] = tokenizer.get_chat_template()
        found["template_arguments"] = _plain(tokenizer.special_tokens_map) | dict(
            answering.template
        )
    return found


def _plain(tokens: Mapping[str, Any]) -> dict[str, Any]:
    """Special tokens by name as JSON has them; a name may stand for several."""
    return {
        name: [str(one) for one in token] if isinstance(token, list | tuple) else str(token)
        for name, token in tokens.items()
    }


def output_name(model: TextModel) -> str:
    """What the output of a graph with classes or embeddings is called."""
    return "logits" if model.signal == "class_logits" else "embedding"


def write_tokenizer(model: TextModel, out: Path) -> None:
    """Writes ``tokenizer.json`` without truncation and padding of its own."""
    from tokenizers import Tokenizer

    plain = Tokenizer.from_str(model.tokenizer.backend_tokenizer.to_str())
    plain.no_truncation()
    plain.no_padding()
    plain.save(str(out / "tokenizer.json"))


def write_companions(
    model: TextModel,
    settings: Mapping[str, Any],
    out: Path,
    readme: str,
    programs: Mapping[str, str] | None = None,
) -> None:
    """Writes all that stands beside a graph.

    Args:
        model: Has the tokenizer.
        settings: The content of ``paredown.json``.
        out: The folder.
        readme: A page with places for the settings, ``{name}``, ``{what}`` and ``{inputs}``.
        programs: Files of this package that run the folder, by the name they get there.
    """
    write_tokenizer(model, out)
    write_settings(out, settings)
    for name, source in (programs or {}).items():
        shutil.copyfile(Path(__file__).with_name(source), out / name)
    kinds = {"class_logits": "A classifier", "embedding": "An embedding model"}
    inputs = ", ".join(f"`{name}`" for name in settings.get("inputs", ()))
    what = kinds.get(str(settings["signal"]), "A language model")
    facts = {**settings, "inputs": inputs, "what": what, "name": out.name}
    (out / "README.md").write_text(readme.format(**facts), encoding="utf-8")
