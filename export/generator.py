"""The language model of an exported folder: prompts to answers, with a cache of keys and values.

Needs only numpy, onnxruntime and tokenizers (and jinja2 for messages): predict.py of a folder that
writes texts runs it, and so does paredown.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING or __package__:
    from .predict import PredictError, open_session
else:  # in an exported folder, where that file is called rows.py
    from rows import PredictError, open_session


class Session(Protocol):
    """What runs a graph: names of outputs and arrays by input, to arrays."""

    def run(self, outputs: list[str], feeds: dict[str, Any]) -> list[Any]:
        """Runs the graph once."""


class Answer(NamedTuple):
    """Tokens without the one that ended them, their text, and whether the model ended it."""

    ids: list[int]
    text: str
    finished: bool


class Generator:
    """The language model of a folder, from prompts to answers.

    Attributes:
        folder: Where tokenizer.json, paredown.json and the graph lie.
        settings: The content of paredown.json.
        batch: Prompts answered together where a call names no number.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
        session: Session | None = None,
    ) -> None:
        """Loads a folder's model, for all cores and ONNX Runtime's CPU provider unless told.

        A session takes the place of model.onnx.
        """
        from tokenizers import Tokenizer

        self.folder = Path(folder)
        for name in ("paredown.json", "tokenizer.json"):
            if not (self.folder / name).is_file():
                raise PredictError(f"'{self.folder}' has no {name}; give the folder of an export.")
        try:
            text = (self.folder / "paredown.json").read_text(encoding="utf-8")
            self.settings: dict[str, Any] = json.loads(text)
            self.tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        except Exception as error:  # tokenizers raises a bare Exception
            raise PredictError(f"A file of '{self.folder}' is damaged: {error}") from error
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.batch = int(self.settings["batch"])
        self.stops = frozenset(self.settings["stop_ids"])
        parts = [f"{i}.{p}" for i in range(self.settings["layers"]) for p in ("key", "value")]
        self.past = [f"past_key_values.{part}" for part in parts]
        self.outputs = ["logits", *(f"present.{part}" for part in parts)]
        self._template: Any = None
        model = self.folder / "model.onnx"
        self.session: Any = session or open_session(model, threads, providers)

    def prompt_ids(self, prompt: str | Sequence[Mapping[str, str]]) -> list[int]:
        """The tokens that the model goes on from.

        A prompt is a text, or the turns of a conversation (a list of {"role", "content"}, or JSON
        of one) where the model was trained on messages.
        """
        if self.settings["form"] == "messages":
            text = self._written(turns_of(prompt))
            ids = list(self.tokenizer.encode(text, add_special_tokens=False).ids)
        elif not isinstance(prompt, str):
            raise PredictError("This model was trained on texts, not on messages; give a prompt.")
        else:
            encoded = self.tokenizer.encode(prompt)
            ids, added = list(encoded.ids), encoded.special_tokens_mask
            while ids and added[len(ids) - 1]:  # what ends a text ends no prompt
                ids.pop()
        longest = self.settings["max_length"] - 1
        if not 1 <= len(ids) <= longest:
            raise PredictError(f"the prompt has {len(ids)} tokens; 1 to {longest} can be answered")
        return ids

    def _written(self, turns: list[dict[str, str]]) -> str:
        if self._template is None:
            self._template = _compiled(self.settings["template"])
        given = self.settings.get("template_arguments") or {}
        try:
            return str(
                self._template.render(
                    messages=turns, tools=None, documents=None, add_generation_prompt=True, **given
                )
            )
        except Exception as error:  # jinja2's own, and whatever a template does to its arguments
            raise PredictError(f"the chat template does not take these turns: {error}") from error

    def signal(self, prompts: Sequence[list[int]]) -> NDArray[np.float32]:
        """Logits of the token behind each prompt, (n, V) float32."""
        out = np.empty((len(prompts), int(self.settings["width"])), dtype=np.float32)
        for start in range(0, len(prompts), self.batch):
            some = prompts[start : start + self.batch]
            out[start : start + len(some)] = self.step(*_padded(some, self.settings["pad_id"]))[0]
        return out

    def step(
        self,
        ids: NDArray[np.int64],
        mask: NDArray[np.int64],
        places: NDArray[np.int64],
        cache: list[NDArray[np.float32]] | None = None,
    ) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
        """New tokens (B, T) behind a cache: the next token's logits (B, V), and the grown cache."""
        if cache is None:
            shape = (len(ids), self.settings["kv_heads"], 0, self.settings["head_dim"])
            cache = [np.zeros(shape, dtype=np.float32)] * len(self.past)
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": places}
        found = self.session.run(self.outputs, feeds | dict(zip(self.past, cache, strict=True)))
        return found[0], found[1:]

    def answers(
        self,
        prompts: Sequence[list[int]],
        *,
        max_new_tokens: int | None = None,
        batch: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Answer]:
        """Greedy answers to tokenised prompts, in their order; prompts of like length together."""
        longest = max_new_tokens or self.settings["max_new_tokens"]
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        found = [Answer([], "", False)] * len(prompts)
        size = batch or self.batch
        for start in range(0, len(order), size):
            some = order[start : start + size]
            limits = [min(longest, self.settings["context"] - len(prompts[i])) for i in some]
            written = self._greedy([prompts[i] for i in some], limits)
            for i, ids in zip(some, written, strict=True):
                finished = ids[-1] in self.stops
                kept = ids[:-1] if finished else ids
                text = self.tokenizer.decode(kept, skip_special_tokens=True)
                found[i] = Answer(kept, text, finished)
            if progress is not None:
                progress(len(some))
        return found

    def _greedy(self, prompts: Sequence[list[int]], limits: Sequence[int]) -> list[list[int]]:
        """The likeliest tokens, the one that ends an answer included; done rows leave the batch."""
        written: list[list[int]] = [[] for _ in prompts]
        rows = list(range(len(prompts)))
        ids, mask, places = _padded(prompts, self.settings["pad_id"])
        cache: list[NDArray[np.float32]] | None = None
        while rows:
            logits, cache = self.step(ids, mask, places, cache)
            chosen = logits.argmax(1)
            for token, row in zip(chosen.tolist(), rows, strict=True):
                written[row].append(token)
            kept = [
                place
                for place, row in enumerate(rows)
                if written[row][-1] not in self.stops and len(written[row]) < limits[row]
            ]
            if len(kept) < len(rows):
                rows = [rows[place] for place in kept]
                chosen, mask, places = chosen[kept], mask[kept], places[kept]
                cache = [part[kept] for part in cache]
            ids = chosen[:, None].astype(np.int64)
            mask = np.concatenate([mask, np.ones((len(mask), 1), dtype=np.int64)], axis=1)
            places = places[:, -1:] + 1
        return written

    def predict(self, prompts: Sequence[Any], *, batch: int | None = None) -> list[dict[str, Any]]:
        """One object a prompt, as this program prints them."""
        found = self.answers([self.prompt_ids(prompt) for prompt in prompts], batch=batch)
        return [{"text": answer.text, "finished": answer.finished} for answer in found]


def _padded(
    prompts: Sequence[list[int]], pad: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Ids, mask and places of prompts, padded on the left, (B, T) each."""
    longest = max(len(ids) for ids in prompts)
    ids = np.full((len(prompts), longest), pad, dtype=np.int64)
    mask = np.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        ids[i, longest - len(prompt) :] = prompt
        mask[i, longest - len(prompt) :] = 1
    return ids, mask, np.maximum(mask.cumsum(1) - 1, 0)


def turns_of(prompt: Any) -> list[dict[str, str]]:
    """The turns of a conversation: given as such, as JSON, or a text that is the user's.

    Raises:
        PredictError: If it is neither a text nor turns.
    """
    if isinstance(prompt, str):
        try:
            turns = json.loads(prompt) if prompt.startswith("[") else None
        except (ValueError, RecursionError):
            turns = None
        if not _are_turns(turns):  # a user may begin with a bracket too
            return [{"role": "user", "content": prompt}]
        prompt = turns
    if not _are_turns(prompt):
        raise PredictError('messages: expected a list of {"role": …, "content": …}, both texts')
    return [dict(turn) for turn in prompt]


def _are_turns(found: Any) -> bool:
    return (
        isinstance(found, list | tuple)
        and len(found) > 0
        and all(
            isinstance(turn, Mapping)
            and isinstance(turn.get("role"), str)
            and isinstance(turn.get("content"), str)
            for turn in found
        )
    )


def _compiled(template: str) -> Any:
    """A chat template in a sandbox, with what transformers gives one."""
    try:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise PredictError("Messages need jinja2 as well: pip install jinja2") from error

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: int | None = None, **how: Any
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **how)

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = refuse
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return made.from_string(template)
    except TemplateError as error:
        raise PredictError(f"The chat template of paredown.json is damaged: {error}") from error
