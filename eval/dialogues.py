"""How a prompt and its completion become token ids, and which of them are learned."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from .errors import DataError, RecipeError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Form = Literal["text", "messages"]
TrainOn = Literal["completion", "all"]
Place = int | str | None
"""A row's number, or a few words that name it, for messages."""
SHOWN = 60
MARK = "\ue000"
"""A character of the private use area, which no answer has."""


@dataclass(frozen=True)
class Example:
    """A row as a language model learns it.

    Attributes:
        ids: Token ids of prompt and completion.
        mask: 1 where the token is learned (it is predicted from what is before it), else 0.
        truncated: Whether the completion was cut to the maximum length.
    """

    ids: list[int]
    mask: list[int]
    truncated: bool


@dataclass(frozen=True)
class Dialogues:
    """How prompts and completions are written for one tokenizer.

    In the ``text`` form a row is the prompt's tokens with what the tokenizer puts in front of a
    text (but not what it puts behind), the completion's tokens, and the token that ends a text.
    The two are tokenised apart, because a model that generates is given the prompt alone: a
    separator between them (a space, a line break, ``->``) is the data's to bring, at the end of
    the prompt.

    In the ``messages`` form the prompt is canonical JSON of the turns before the last assistant
    turn, as `generation_rows` writes it; the tokenizer's chat template puts them into words. What
    a template writes behind the last end-of-text token of a turn (a line break) is not learned,
    since generation stops there; where it ends a turn without that token, the token is added.

    Attributes:
        tokenizer: A fast tokenizer.
        form: ``text`` or ``messages``.
        max_length: Tokens of prompt and completion together, at most.
        template: Further arguments of the chat template, such as ``enable_thinking: false``.
        train_on: ``completion``, or ``all`` for every assistant turn of a conversation.

    Raises:
        RecipeError: If the tokenizer has no end-of-text token, or for messages no chat template, or
            an argument has no effect.
    """

    tokenizer: PreTrainedTokenizerFast
    form: Form
    max_length: int
    template: Mapping[str, Any] = field(default_factory=dict)
    train_on: TrainOn = "completion"

    def __post_init__(self) -> None:
        if self.tokenizer.eos_token_id is None:
            raise RecipeError(
                "The tokenizer has no end-of-text token (eos_token), so nothing would end an "
                "answer; set tokenizer.eos_token and save the checkpoint again."
            )
        if self.form == "messages" and not self.tokenizer.chat_template:
            raise RecipeError(
                "The rows are messages, and the tokenizer has no chat template to write them with; "
                "use an instruction-tuned checkpoint, set tokenizer.chat_template and save it "
                "again, or give the rows as prompt and completion."
            )
        if self.form == "messages":
            self._check_arguments()
        if self.form == "text" and self.template:
            raise RecipeError(
                f"generation.template ({', '.join(self.template)}) is for rows of messages, and "
                "these are prompts and completions; leave it out."
            )
        if self.form == "text" and self.train_on == "all":
            raise RecipeError(
                "generation.train_on: all is for rows of messages, and these are prompts and "
                "completions with one answer each; leave it out."
            )

    def _check_arguments(self) -> None:
        """An argument that the template never names changes nothing, and is mostly mistyped."""
        written = str(self.tokenizer.chat_template)
        words = set(re.findall(r"\w+", written))
        for name in self.template:
            if name not in words:
                raise RecipeError(
                    f"generation.template: the tokenizer's chat template takes no argument "
                    f"'{name}'.{nearest(name, words)} Leave it out, or name one that is in the "
                    "template."
                )

    def prompt_ids(self, prompt: str, row: Place = None) -> list[int]:
        """The tokens that a model is given to answer, specials included.

        Args:
            prompt: As the data's ``prompt`` column has it.
            row: The row's number, or what it is called, for messages.

        Raises:
            DataError: If it has no tokens, or leaves no room for an answer in the maximum length,
                or the chat template refuses it.
        """
        if self.form == "text":
            ids = self._with_front(prompt)
        else:
            ids = self._ids(self._render(_turns(prompt), True, row))
        return self._checked(ids, prompt, row)

    def example(
        self, prompt: str, completion: str, row: Place = None, *, finished: bool = True
    ) -> Example:
        """The tokens of a prompt with its answer, and which of them are learned.

        Args:
            prompt: As the data's ``prompt`` column has it.
            completion: The answer; an empty one is learned as an end at once.
            row: The row's number, or what it is called, for messages.
            finished: Whether the completion is all of the answer; nothing ends it otherwise.

        Raises:
            DataError: As `prompt_ids`; or if the chat template writes earlier turns otherwise once
                there is an answer, so that the prompt is no beginning of the whole.
        """
        ids = self.prompt_ids(prompt, row)
        if self.form == "text":
            mask = [0] * len(ids)
            answer = [*self._ids(completion), *([self._end] if finished else [])]
        else:
            turns = _turns(prompt)
            mask = self._earlier(turns, ids, row) if self.train_on == "all" else [0] * len(ids)
            answer = self._answer(turns, completion, ids, row, finished)
        whole = ids + answer
        mask += [1] * len(answer)
        return Example(
            whole[: self.max_length], mask[: self.max_length], len(whole) > self.max_length
        )

    @property
    def _end(self) -> int:
        return int(self.tokenizer.eos_token_id)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _with_front(self, text: str) -> list[int]:
        """Tokens with the specials that the tokenizer puts in front, without those behind."""
        encoded = self.tokenizer(text, return_special_tokens_mask=True)
        ids, added = list(encoded["input_ids"]), list(encoded["special_tokens_mask"])
        while ids and added[len(ids) - 1]:
            ids.pop()
        return ids

    def _checked(self, ids: list[int], prompt: str, row: Place) -> list[int]:
        if not ids:
            raise DataError(
                f"{_place(prompt, row)} has no tokens; a model needs one to go on from."
            )
        if len(ids) >= self.max_length:
            raise DataError(
                f"{_place(prompt, row)} has {len(ids)} tokens and the maximum length is "
                f"{self.max_length}, which leaves no room for an answer; shorten it, leave the row "
                "out, or raise max_length where the model's context allows it."
            )
        return ids

    def _render(self, turns: Sequence[Mapping[str, str]], generation: bool, row: Place) -> str:
        from jinja2 import TemplateError

        try:
            text = self.tokenizer.apply_chat_template(
                [dict(turn) for turn in turns],
                tokenize=False,
                add_generation_prompt=generation,
                **self.template,
            )
        except (TemplateError, TypeError) as error:
            roles = ", ".join(turn["role"] for turn in turns)
            raise DataError(
                f"{_place('', row)} cannot be written by the tokenizer's chat template ({error}); "
                f"its turns are: {roles}."
            ) from error
        return str(text)

    def _answer(
        self,
        turns: list[dict[str, str]],
        completion: str,
        ids: list[int],
        row: Place,
        finished: bool,
    ) -> list[int]:
        """Tokens of the last assistant turn, up to the one that ends it."""
        prompt = self._render(turns, True, row)
        answered = [*turns, {"role": "assistant", "content": completion}]
        whole = self._render(answered, False, row)
        if not whole.startswith(prompt):
            raise _rewritten(row, self.template)
        if not finished:
            answered[-1] = {"role": "assistant", "content": completion + MARK}
            marked = self._render(answered, False, row)
            whole = _cut_behind(completion, whole, marked, len(prompt))
        joint = self._ids(whole)
        # tokens that straddle the border would not be what the model is given to go on from
        answer = joint[len(ids) :] if joint[: len(ids)] == ids else self._ids(whole[len(prompt) :])
        return self._ended(answer) if finished else answer

    def _ended(self, ids: list[int]) -> list[int]:
        """Cut behind the last token that ends a text; with one added where there is none."""
        places = [i for i, token in enumerate(ids) if token == self._end]
        return ids[: places[-1] + 1] if places else [*ids, self._end]

    def _earlier(self, turns: list[dict[str, str]], ids: list[int], row: Place) -> list[int]:
        """The mask of a prompt's tokens: 1 in its assistant turns, up to what ends each."""
        text = self._render(turns, True, row)
        spans = []
        for i, turn in enumerate(turns):
            if turn["role"] == "assistant":
                before = self._render(turns[:i], True, row)
                behind = self._render(turns[: i + 1], False, row)
                if not (text.startswith(behind) and behind.startswith(before)):
                    raise _rewritten(row, self.template)
                spans.append((len(before), len(behind)))
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        starts = [int(start) for start, _ in encoded["offset_mapping"]]
        mask = [0] * len(ids)
        for first, last in spans:
            inside = [i for i, start in enumerate(starts) if first <= start < last]
            ends = [i for i in inside if ids[i] == self._end]
            for i in inside:
                mask[i] = int(not ends or i <= ends[-1])
        return mask


def _cut_behind(said: str, whole: str, marked: str, start: int) -> str:
    """A rendered conversation without what the template writes behind the last answer.

    Where the template changed the answer's text, the answer itself is cut off with it: nothing is
    learned then, rather than an end that was not there.

    Args:
        said: The answer.
        whole: The conversation with it.
        marked: The same with `MARK` behind the answer, which tells where the answer ends: its text
            may stand elsewhere too, in what ends a turn, say.
        start: Where the prompt ends.
    """
    before, found, _ = marked.rpartition(MARK)
    cut = before if whole.startswith(before) else before.rstrip()  # where spaces are stripped
    kept = found and said and whole.startswith(cut) and cut.rstrip().endswith(said.strip())
    return cut if kept and len(cut) >= start else whole[:start]


def _turns(prompt: str) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(prompt)
    return found


def _place(prompt: str, row: Place) -> str:
    name = f"Row {row}" if isinstance(row, int) else row
    where = "The prompt" if name is None else f"{name}: the prompt"
    return f"{where} ('{prompt[:SHOWN]}{'…' * (len(prompt) > SHOWN)}')" if prompt else where


def _rewritten(row: Place, template: Mapping[str, Any]) -> DataError:
    given = f" with the arguments {dict(template)}" if template else ""
    return DataError(
        f"{_place('', row)} is no beginning of the whole conversation: the tokenizer's chat "
        f"template{given} rewrites earlier turns once an answer follows, so a model would not be "
        "given what it was trained on. Give generation.template the arguments that keep them "
        "(Qwen3: enable_thinking: false), train on the last turn alone (train_on: completion), or "
        "change the template."
    )
