"""Prompts, completions and messages: what is kept, dropped, set aside and refused."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.eval import query_filters, sources
from paredown.eval.data import Data, DataSettings, prepare_data
from paredown.eval.errors import DataError, PareError, RecipeError
from paredown.eval.generation_rows import canonical_prompt, split_messages
from paredown.eval.splits import text_key
from paredown.eval.tasks import CLASSIFICATION, GENERATION

Row = dict[str, Any]
Write = Callable[..., dict[str, str]]
Prepare = Callable[..., Data]


def asked(*pairs: tuple[Any, Any]) -> list[Row]:
    return [{"prompt": prompt, "completion": completion} for prompt, completion in pairs]


def many(count: int) -> list[Row]:
    return asked(*((f"prompt {i} ->", f' {{"n":{i}}}') for i in range(count)))


def talk(*contents: str, role: str = "user") -> list[Row]:
    roles = (role, "assistant")
    return [{"role": roles[i % 2], "content": c} for i, c in enumerate(contents)]


TEST_ROWS = asked(("test a", "x"), ("test b", " y\n"))


def test_rows_are_read_split_and_described(write: Write, prepare: Prepare, tmp_path: Path) -> None:
    test = [row | {"slice": "phrasings"} for row in TEST_ROWS]
    data = prepare(tmp_path, write(tmp_path, train=many(50), test=test), "generation")
    assert data.info["form"] == "text" and data.labels is None
    assert data.info["rows"] == {"train": 45, "validation": 5, "test": 2}
    assert data.info["columns"] == ["prompt", "completion", "slice"]
    assert data.info["unlabelled"] == {"train": 0}
    assert data.split("test").to_list() == [
        {"prompt": "test a", "completion": "x", "slice": "phrasings"},
        {"prompt": "test b", "completion": " y\n", "slice": "phrasings"},
    ]
    assert set(data.split("train")["slice"]) == {""}
    files = sorted(path.name for path in data.folder.iterdir())
    assert files == ["data.json", "test.arrow", "train.arrow", "validation.arrow"]


def test_the_seed_alone_decides_which_prompts_are_set_aside(
    write: Write, prepare: Prepare, tmp_path: Path
) -> None:
    rows = many(100)
    first = prepare(tmp_path, write(tmp_path, train=rows, test=TEST_ROWS), "generation")
    chosen = set(first.split("validation")["prompt"])
    again = prepare(tmp_path, write(tmp_path, train=rows[::-1], test=TEST_ROWS), "generation")
    assert set(again.split("validation")["prompt"]) == chosen
    other = prepare(tmp_path, write(tmp_path, train=rows, test=TEST_ROWS), "generation", seed=1)
    assert set(other.split("validation")["prompt"]) != chosen
    assert len({first.info["fingerprint"], other.info["fingerprint"]}) == 2


def test_prompts_of_later_splits_are_dropped_and_repeats_stay(
    write: Write, prepare: Prepare, tmp_path: Path
) -> None:
    train = [*many(3), *asked(("TEST  a", "x"), ("val", "v"), ("p", "1"), ("p", "1"), ("p", "2"))]
    train += asked(("", "x"), (None, "x"))
    files = write(
        tmp_path, train=train, validation=asked(("val", "v"), ("test b", "y")), test=TEST_ROWS
    )
    data = prepare(tmp_path, files, "generation")
    assert data.info["rows"] == {"train": 6, "validation": 1, "test": 2}
    assert data.info["dropped"] == {
        "train": {"empty": 2, "in_test": 1, "in_validation": 1},
        "validation": {"in_test": 1},
        "test": {},
    }
    assert data.split("train")["completion"][3:] == ["1", "1", "2"]


def test_training_rows_may_lack_a_completion_and_are_never_set_aside(
    write: Write, prepare: Prepare, tmp_path: Path
) -> None:
    train = [*many(20), *asked(*((f"open {i}", [None, "", "  "][i % 3]) for i in range(9)))]
    data = prepare(tmp_path, write(tmp_path, train=train, test=TEST_ROWS), "generation")
    assert data.info["unlabelled"] == {"train": 9}
    assert data.info["rows"] == {"train": 27, "validation": 2, "test": 2}
    assert all(data.split("validation")["completion"])
    open_rows = [row for row in data.split("train").to_list() if not row["completion"]]
    assert [row["prompt"] for row in open_rows] == [f"open {i}" for i in range(9)]
    bare = [{"prompt": f"open {i}"} for i in range(5)]
    files = write(tmp_path, train=bare, validation=many(2), test=TEST_ROWS)
    assert prepare(tmp_path, files, "generation").info["unlabelled"] == {"train": 5}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "completion": ""}, r"line 2: the completion is empty; every test row"),
        ({"prompt": "a", "completion": " "}, r"line 2: the completion is empty"),
        ({"prompt": "a"}, r"line 2: no completion; .*data\.columns\.completion"),
        ({"prompt": "a", "completion": 3}, r"line 2: expected text, got int 3"),
        ({"prompt": ["a"], "completion": "b"}, r"line 2: expected text, got a list"),
    ],
)
def test_a_test_row_without_an_answer_is_an_error_that_names_it(
    write: Write, prepare: Prepare, tmp_path: Path, row: Row, message: str
) -> None:
    files = write(tmp_path, train=many(9), test=[TEST_ROWS[0], row])
    with pytest.raises(DataError, match=rf"(?s)data\.files\.test \(.*{message}"):
        prepare(tmp_path, files, "generation")


def test_messages_become_their_prompt_and_last_answer(
    write: Write, prepare: Prepare, tmp_path: Path
) -> None:
    train = [{"messages": talk("hi", f"hello {i}", f"and {i}?", f"yes {i}")} for i in range(20)]
    train += [{"messages": talk("hi", "hello", "open?")}, {"messages": []}, {"messages": None}]
    train += [{"messages": talk("closed?", " ")}]
    test = [{"messages": [{"content": "be brief", "role": "system"}, *talk("größe?", "42")]}]
    data = prepare(tmp_path, write(tmp_path, train=train, test=test), "generation")
    assert data.info["form"] == "messages"
    assert data.info["rows"] == {"train": 20, "validation": 2, "test": 1}
    assert data.info["unlabelled"] == {"train": 2}
    assert data.info["dropped"]["train"] == {"empty": 2}
    (row,) = data.split("test").to_list()
    assert row["completion"] == "42"
    assert row["prompt"] == (
        '[{"role":"system","content":"be brief"},{"role":"user","content":"größe?"}]'
    )
    assert json.loads(data.split("train")["prompt"][-2])[-1]["content"] == "open?"


def test_messages_are_read_from_parquet_and_from_json_in_a_cell(
    write: Write, prepare: Prepare, tmp_path: Path
) -> None:
    rows = [{"messages": talk(f"q {i}", f"a {i}")} for i in range(12)]
    for row in rows:  # Parquet gives every message every key
        row["messages"][0]["name"] = None
    files = write(
        tmp_path, test="messages\n" + '"' + json.dumps(talk("t", "u")).replace('"', '""') + '"'
    )
    files["train"] = str(tmp_path / "train.parquet")
    pq.write_table(pa.Table.from_pylist(rows), files["train"])
    data = prepare(tmp_path, files, "generation")
    assert data.info["rows"] == {"train": 11, "validation": 1, "test": 1}
    assert data.split("test")["completion"][:] == ["u"]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (talk("q", "a", role="usr"), r"message 1: role 'usr'; Did you mean 'user'\? known: system"),
        ([{"content": "q"}], "message 1: role none"),
        ([{"role": "user"}], "message 1: expected a text as content, got none"),
        ([{"role": "user", "content": [{"type": "image"}]}], "a text as content, got list"),
        (["q"], r"message 1: expected a list of \{\"role\": ….*got str"),
        ("q: a", "got a text that is not JSON"),
        ({"role": "user"}, "expected a list of .*, got dict"),
        (talk("a", role="assistant"), "starts with its answer"),
        (talk("q"), r"last turn is not the assistant's; every test row .*data\.columns\.messages"),
        (talk("q", ""), "the last assistant turn is empty"),
        ([*talk("q"), {"role": "assistant", "content": "", "tool_calls": [1]}], "has 'tool_calls'"),
    ],
)
def test_messages_of_a_wrong_shape_are_named(
    write: Write, prepare: Prepare, tmp_path: Path, messages: Any, message: str
) -> None:
    train = [{"messages": talk(f"q {i}", "a")} for i in range(9)]
    files = write(tmp_path, train=train, test=[train[0], {"messages": messages}])
    with pytest.raises(DataError, match=rf"(?s)data\.files\.test.*line 2: .*{message}"):
        prepare(tmp_path, files, "generation")


def test_columns_that_are_missing_or_ambiguous_are_told(
    write: Write, prepare: Prepare, tmp_path: Path
) -> None:
    rows = [{"question": f"q {i}", "answer": "a"} for i in range(9)]
    files = write(tmp_path, train=rows, test=[{"question": "t", "answer": "b"}])
    with pytest.raises(RecipeError, match=r"no column 'prompt'.*data\.columns\.prompt="):
        prepare(tmp_path, files, "generation")
    columns = {"prompt": "question", "completion": "answer"}
    assert prepare(tmp_path, files, "generation", columns=columns).info["rows"]["train"] == 8
    with pytest.raises(RecipeError, match="no column 'completion'"):
        prepare(tmp_path, files, "generation", columns={"prompt": "question"})
    both = [row | {"messages": talk("q", "a")} for row in many(9)]
    files = write(tmp_path, train=both, test=both[:1])
    with pytest.raises(RecipeError, match="one for messages, which hold the prompt too"):
        prepare(tmp_path, files, "generation")
    with pytest.raises(RecipeError, match="messages hold the completion"):
        prepare(
            tmp_path,
            files,
            "generation",
            columns={"messages": "messages", "completion": "completion"},
        )
    with pytest.raises(RecipeError, match="the task has no such column"):
        prepare(tmp_path, files, "generation", columns={"label": "x"})


def test_nothing_left_and_nothing_to_set_aside_are_told(
    write: Write, prepare: Prepare, tmp_path: Path
) -> None:
    files = write(tmp_path, train=asked(("test a", "x")), test=TEST_ROWS)
    with pytest.raises(DataError, match="no row is left for train"):
        prepare(tmp_path, files, "generation")
    files = write(tmp_path, train=asked(("only", "x"), ("open", None)), test=TEST_ROWS)
    with pytest.raises(RecipeError, match="of 1 training prompts with a completion leaves no row"):
        prepare(tmp_path, files, "generation")


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["train", "validation", "test"]),
            st.sampled_from(["a", "A", "b", " b", "c", "é", "e\u0301", ""]),
            st.sampled_from(["x", "y", "", None]),
        ),
        min_size=3,
        max_size=25,
    )
)
def test_no_prompt_stands_in_two_splits_and_every_row_is_accounted_for(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str | None]]
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    given_rows: dict[str, list[Row]] = {"train": [], "validation": [], "test": []}
    for split, prompt, completion in rows:
        given_rows[split] += asked((prompt, completion if split == "train" else completion or "z"))
    paths = {}
    for split, some in given_rows.items():
        paths[split] = str(folder / f"{split}.jsonl")
        Path(paths[split]).write_text("".join(json.dumps(row) + "\n" for row in some))
    try:
        info = prepare_data(DataSettings(files=paths), GENERATION, folder / "out", seed=0)
    except PareError:
        return
    data = Data.open(folder / "out")
    keys = {
        split: {text_key(prompt) for prompt in data.split(split)["prompt"]} for split in given_rows
    }
    assert not keys["train"] & (keys["validation"] | keys["test"])
    assert not keys["validation"] & keys["test"]
    for split, some in given_rows.items():
        assert info["rows"][split] + sum(info["dropped"][split].values()) == len(some)


@given(st.lists(st.tuples(st.sampled_from(["system", "user"]), st.text(max_size=5)), min_size=1))
def test_a_conversation_comes_back_from_its_canonical_prompt(turns: list[tuple[str, str]]) -> None:
    messages = [{"role": role, "content": content} for role, content in turns]
    answered = [*messages, {"content": "a", "role": "assistant"}]
    prompt, completion = split_messages(answered)
    assert json.loads(prompt or "") == messages and completion == "a"
    assert split_messages(json.dumps(answered)) == (canonical_prompt(messages), "a")


def test_built_in_data_are_built_with_the_seed_when_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = functools.partial(query_filters.build, train=40, validation=6, test=10)
    monkeypatch.setattr(query_filters, "build", few)
    made = DataSettings(source="query_filters")
    info = prepare_data(made, GENERATION, tmp_path / "out", seed=7)
    assert info["rows"] == {"train": 40, "validation": 6, "test": 10}
    assert info["source"]["kind"] == "query_filters" and info["source"]["seed"] == 7
    data, rows = Data.open(tmp_path / "out"), few(7)
    assert data.split("train")["prompt"][:] == [row.prompt for row in rows.split("train")]
    slices = {"unseen_phrasing": 5, "unseen_combination": 5}
    assert Counter(data.split("test")["slice"][:]) == slices
    assert few(8).split("train") != rows.split("train")
    facts = sources.source_facts("query_filters")
    monkeypatch.setitem(sources.BUILDERS, "query_filters", ("query_filters", "filter_phrases"))
    assert sources.source_facts("query_filters") != facts  # told by all the modules it is made of
    with pytest.raises(
        RecipeError, match="query_filters has prompts and completions for generation"
    ):
        prepare_data(made, CLASSIFICATION, tmp_path / "other", seed=0)
    with pytest.raises(RecipeError, match="python_docs has queries and texts"):
        prepare_data(DataSettings(source="python_docs"), GENERATION, tmp_path / "other", seed=0)
