"""Rows become token ids that generation reproduces, and only what is to be learned is learned."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from paredown.eval.dialogues import Dialogues, Example
from paredown.eval.errors import DataError, RecipeError

from .generation_models import CHAT, byte_tokenizer

PLAIN = byte_tokenizer()
CHATTING = byte_tokenizer(bos=False)
CHATTING.chat_template = CHAT
END = 2


def text(**options: Any) -> Dialogues:
    return Dialogues(PLAIN, "text", **({"max_length": 200} | options))


def chat(tokenizer: Any = CHATTING, **options: Any) -> Dialogues:
    return Dialogues(tokenizer, "messages", **({"max_length": 400} | options))


def turns(*contents: str) -> str:
    """A conversation that starts with the user."""
    roles = ("user", "assistant")
    return json.dumps([{"role": roles[i % 2], "content": c} for i, c in enumerate(contents)])


def learned(dialogues: Dialogues, example: Example) -> str:
    ids = [i for i, keep in zip(example.ids, example.mask, strict=True) if keep]
    return str(dialogues.tokenizer.decode(ids))


@settings(max_examples=60, deadline=None)
@given(prompt=st.text(min_size=1, max_size=20), completion=st.text(max_size=20))
def test_a_text_row_is_the_prompt_the_answer_and_an_end(prompt: str, completion: str) -> None:
    example = text(max_length=400).example(prompt, completion)
    ids = text(max_length=400).prompt_ids(prompt)
    assert ids[0] == PLAIN.bos_token_id and ids[-1] != END
    assert example.ids[: len(ids)] == ids
    assert example.mask == [0] * len(ids) + [1] * (len(example.ids) - len(ids))
    answer = example.ids[len(ids) :]
    assert answer[-1] == END and not example.truncated
    assert PLAIN.decode(answer[:-1], clean_up_tokenization_spaces=False) == completion


def test_an_end_that_the_tokenizer_puts_behind_a_text_is_no_part_of_a_prompt() -> None:
    dialogues = Dialogues(byte_tokenizer(eos=True), "text", 50)
    assert dialogues.prompt_ids("ab") == text().prompt_ids("ab")
    assert dialogues.example("ab", "c").ids == text().example("ab", "c").ids
    # one that the prompt itself ends with stays
    assert dialogues.prompt_ids("ab</s>")[-1] == END
    bare = Dialogues(byte_tokenizer(bos=False), "text", 50)
    assert bare.prompt_ids("ab") == text().prompt_ids("ab")[1:]


def test_an_empty_answer_is_an_end_at_once() -> None:
    example = text().example("ab", "")
    assert example.ids[-1] == END and sum(example.mask) == 1


def test_a_completion_that_does_not_fit_is_cut_and_says_so() -> None:
    assert not text(max_length=8).example("ab", "cdef").truncated
    cut = text(max_length=7).example("ab", "cdef")
    assert cut.truncated and len(cut.ids) == len(cut.mask) == 7
    assert cut.ids == text().example("ab", "cdef").ids[:7]


@pytest.mark.parametrize("length", [3, 2])
def test_a_prompt_that_leaves_no_room_is_an_error_that_names_the_row(length: int) -> None:
    with pytest.raises(DataError, match=r"Row 17: the prompt \('ab'\) has 3 tokens .* max_length"):
        text(max_length=length).prompt_ids("ab", row=17)
    with pytest.raises(DataError, match=r"^Test row 17: the prompt"):
        text(max_length=length).prompt_ids("ab", row="Test row 17")
    with pytest.raises(DataError, match="Row 17"):
        text(max_length=length).example("ab", "c", row=17)


def test_a_prompt_without_tokens_is_an_error() -> None:
    bare = Dialogues(byte_tokenizer(bos=False), "text", 50)
    with pytest.raises(DataError, match="has no tokens"):
        bare.prompt_ids("")


def test_of_messages_the_last_assistant_turn_is_learned() -> None:
    prompt = turns("hi", "hello", "bye")
    example = chat().example(prompt, "see you")
    assert learned(chat(), example) == "see you</s>"
    ids = chat().prompt_ids(prompt)
    assert example.ids[: len(ids)] == ids
    whole = CHATTING.apply_chat_template(
        [*json.loads(prompt), {"role": "assistant", "content": "see you"}], tokenize=False
    )
    assert CHATTING.decode(example.ids) + "\n" == whole


def test_every_assistant_turn_is_learned_where_asked_for() -> None:
    prompt = turns("hi", "hellö", "bye")
    example = chat(train_on="all").example(prompt, "see you")
    assert learned(chat(), example) == "hellö</s>see you</s>"
    assert example.ids == chat().example(prompt, "see you").ids
    assert chat(train_on="all").example(turns("hi"), "a") == chat().example(turns("hi"), "a")


def test_the_templates_arguments_reach_it() -> None:
    tokenizer = byte_tokenizer(bos=False)
    tokenizer.chat_template = CHAT.replace("{{ m.content }}", "{{ m.content + (word or '') }}")
    dialogues = chat(tokenizer, template={"word": "!"})
    assert tokenizer.decode(dialogues.prompt_ids(turns("hi"))).startswith("<|turn|>user\nhi!</s>")


@pytest.mark.parametrize("train_on", ["completion", "all"])
def test_a_template_that_rewrites_what_was_said_is_refused(train_on: Any) -> None:
    dialogues = chat(template={"brief": True}, train_on=train_on)
    with pytest.raises(DataError, match=r"Row 4: .* rewrites earlier turns .*enable_thinking"):
        dialogues.example(turns("hi"), "hello", row=4)


def test_a_template_that_drops_earlier_thoughts_can_learn_the_last_turn_alone() -> None:
    tokenizer = byte_tokenizer(bos=False)
    tokenizer.chat_template = CHAT.replace(
        "{{ m.content }}",
        "{% if m.role == 'assistant' and not loop.last %}(…){% else %}{{ m.content }}{% endif %}",
    )
    prompt = turns("hi", "a long thought", "bye")
    last = chat(tokenizer).example(prompt, "see you")
    assert learned(chat(tokenizer), last) == "see you</s>"
    with pytest.raises(DataError, match="rewrites earlier turns"):
        chat(tokenizer, train_on="all").example(prompt, "see you")


def test_a_turn_that_the_template_does_not_end_gets_an_end() -> None:
    tokenizer = byte_tokenizer(bos=False)
    tokenizer.chat_template = CHAT.replace("</s>", "<|end|>")
    example = chat(tokenizer).example(turns("hi"), "hello")
    assert learned(chat(tokenizer), example) == "hello<|end|>\n</s>"


@settings(max_examples=30, deadline=None)
@given(said=st.text(st.characters(codec="ascii", exclude_categories=["C"]), max_size=20))
@example(said="<")  # stands in what ends a turn, too
def test_nothing_ends_an_answer_that_was_cut(said: str) -> None:
    example = text().example("ab", said, finished=False)
    assert learned(text(), example) == said and END not in example.ids[3:]
    example = chat().example(turns("hi"), said, finished=False)
    assert learned(chat(), example) == said
    whole = chat().example(turns("hi"), said)
    assert example.ids == whole.ids[: len(example.ids)] and len(example.ids) < len(whole.ids)


def test_a_cut_answer_that_the_template_rewrites_teaches_nothing() -> None:
    tokenizer = byte_tokenizer(bos=False)
    tokenizer.chat_template = CHAT.replace("{{ m.content }}", "{{ m.content | upper }}")
    assert not any(chat(tokenizer).example(turns("HI"), "hello", finished=False).mask)


def test_an_argument_that_the_template_does_not_take_is_named() -> None:
    chat(template={"brief": True})
    with pytest.raises(RecipeError, match=r"takes no argument 'breif'. Did you mean 'brief'"):
        chat(template={"breif": True})


def test_what_a_template_refuses_is_told_with_the_roles() -> None:
    tokenizer = byte_tokenizer(bos=False)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match=r"Row 2: .*roles must alternate.*: user, assistant"):
        chat(tokenizer).prompt_ids(turns("hi", "hello"), row=2)


def test_what_cannot_be_written_is_refused_before_any_row() -> None:
    with pytest.raises(RecipeError, match="no chat template to write them with"):
        Dialogues(PLAIN, "messages", 50)
    with pytest.raises(RecipeError, match="no end-of-text token"):
        Dialogues(byte_tokenizer(eos_token=None), "text", 50)
    with pytest.raises(RecipeError, match=r"generation\.template \(enable_thinking\) is for rows"):
        text(template={"enable_thinking": False})
    with pytest.raises(RecipeError, match=r"generation\.train_on: all is for rows of messages"):
        text(train_on="all")
