"""Recipes are found, read with their lines, overridden, and refused with every problem at once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from paredown.eval.errors import RecipeError
from paredown.recipes.loading import (
    dump_recipe,
    load_recipe,
    packaged_recipes,
    read_recipe_text,
)
from paredown.recipes.yaml_source import YamlSource, dump_yaml, parse_value

GOOD = """\
name: mine
task: retrieval
data:
  source: someone/pairs
  config: small
  revision: v1
teacher:
  model: someone/teacher
  revision: abc
prune: {layers: 2}
distill:
  learning_rate: 3e-4
  losses: {embedding_cosine: 1.0}
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD, encoding="utf-8")
    return path


def wrong(recipe: Any, overrides: Any = ()) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe, overrides)
    return str(caught.value)


@pytest.mark.parametrize("name", sorted(packaged_recipes()))
def test_every_shipped_recipe_is_right_and_opens_with_what_it_does(name: str) -> None:
    recipe = load_recipe(name)
    text = packaged_recipes()[name]
    assert recipe.name == name
    assert recipe.smoke is not None
    assert recipe.target.retain >= 0.95
    assert text.startswith("# ")
    assert f"#   paredown run {name}\n" in text


@pytest.mark.parametrize("name", sorted(packaged_recipes()))
def test_a_dumped_recipe_reads_back_equal(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(path) == recipe
    assert load_recipe(recipe) == recipe


def test_a_file_is_read(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    assert recipe.distill is not None
    assert recipe.distill.learning_rate == 3e-4


def test_a_mapping_is_read_and_left_alone() -> None:
    values = yaml.safe_load(GOOD.replace("3e-4", "0.0003"))
    before = repr(values)
    assert load_recipe(values, {"prune.layers": 3}).name == "mine"
    assert repr(values) == before


# Finding


def test_an_unknown_name_gets_the_nearest() -> None:
    message = wrong("serch_query")
    assert "Unknown recipe 'serch_query'. Did you mean 'search_query'?" in message
    assert "Shipped recipes: " in message


def test_a_file_that_is_not_there_gets_the_nearest(recipe_file: Path) -> None:
    assert f"Did you mean '{recipe_file}'?" in wrong(recipe_file.with_name("mien.yaml"))
    assert "no folder" in wrong(recipe_file.parent / "nowhere" / "a.yaml")


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    assert "is a folder" in wrong(tmp_path)


def test_a_shipped_recipe_is_read_as_text() -> None:
    text, label = read_recipe_text("search_query")
    assert text == packaged_recipes()["search_query"]
    assert "search_query" in label


# Reading


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"# only a comment\n", "is empty"),
        (b"name: caf\xe9\n", "is not UTF-8 text (byte 9)"),
        (b"- name\n- task\n", "expected a mapping (key: value), got a list"),
        (b"search_query\n", "expected a mapping (key: value), got 'search_query'"),
        (b"name: [a\ntask: b\n", "is not YAML: line 2"),
        (b"name: a\n---\nname: b\n", "is not YAML: line 2"),
        (b"name: \x07\n", "is not YAML"),
        (b"a: *nowhere\n", "is not YAML: line 1, column 4: found undefined alias"),
        (b"? {a: 1}\n: 2\n", "is not YAML: line 1"),
        (b"name: !!python/object:os.system x\n", "is not YAML: line 1"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    assert message in wrong(path)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD, encoding="utf-8-sig")
    assert load_recipe(path).name == "mine"


def test_all_problems_come_at_once_each_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        """\
name: bad
task: retrieval
data: {source: python_docs, revision: main}
teacher:
  modle: someone/teacher
prune:
  layers: two
distill:
  epochs: 2.5
  losses:
    embedding_cosine: 0
    similarity_kl:
      weight: 1
      temprature: 3
export:
  - onx
seeds: 1
seeds: 0
""",
        encoding="utf-8",
    )
    message = wrong(path, ["target.retane=0.9", "seed=x"])
    for expected in (
        f"{path} has 11 problems:",
        "line 3: data.revision: only a hub data set has one",
        "line 5: teacher.modle: unknown key. Did you mean 'model'?",
        "line 7: prune.layers: expected a whole number or a list, got 'two'.",
        "line 9: distill.epochs: expected a whole number, got 2.5.",
        "line 11: distill.losses.embedding_cosine: expected a value greater than 0, got 0.",
        "line 14: distill.losses.similarity_kl.temprature: 'similarity_kl' has no such option.",
        "line 15: export: Unknown format 'onx'. Did you mean 'onnx'?",
        "line 18: seeds: expected a value greater than or equal to 1, got 0.",
        "line 18: seeds: this key already stands on line 17",
        "override target.retane=0.9: target.retane: unknown key. Did you mean 'retain'?",
        "override seed=x: seed: expected a whole number, got 'x'.",
    ):
        assert expected in message
    numbers = [int(found) for found in re.findall(r"^  line (\d+)", message, re.MULTILINE)]
    assert numbers == sorted(numbers)


def test_an_unknown_key_that_belongs_to_a_section_is_shown_there(recipe_file: Path) -> None:
    assert "layers: unknown key. Did you mean 'prune.layers'?" in wrong(recipe_file, ["layers=3"])


def test_a_missing_key_is_named(recipe_file: Path) -> None:
    recipe_file.write_text(GOOD.replace("task: retrieval\n", ""), encoding="utf-8")
    assert "task: this key is required" in wrong(recipe_file)


def test_anchors_and_merges_keep_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\ntask: classification\ndata: {files: {train: a.csv, test: b.csv}}\n"
        "teacher:\n  model: a\n  finetune:\n    arguments: &same\n      weight_decay: 0.0\n"
        "distill:\n  losses: {kl: 1}\n  arguments:\n    <<: *same\n    wieght_decay: 1\n",
        encoding="utf-8",
    )
    message = wrong(path)
    assert "line 13: distill.arguments.wieght_decay" in message
    assert message.count("\n") == 1
    path.write_text(path.read_text().replace("    wieght_decay: 1\n", ""), encoding="utf-8")
    recipe = load_recipe(path)
    assert recipe.distill is not None
    assert recipe.distill.arguments == {"weight_decay": 0.0}


# Overrides


def test_overrides_are_yaml_and_win(recipe_file: Path) -> None:
    recipe = load_recipe(
        recipe_file,
        [
            "prune.layers=[0, 3]",
            "distill.learning_rate=1e-4",
            "distill.losses.similarity_kl=0.5",
            "target.metric=ndcg@10",
            "evaluate.metrics=[]",
            "seed=7",
            "seed=8",
        ],
    )
    assert recipe.prune is not None
    assert recipe.distill is not None
    assert recipe.prune.layers == [0, 3]
    assert recipe.distill.learning_rate == 1e-4
    assert {name: loss.weight for name, loss in recipe.distill.losses.items()} == {
        "embedding_cosine": 1.0,
        "similarity_kl": 0.5,
    }
    assert recipe.target.metric == "ndcg@10"
    assert recipe.seed == 8


def test_an_override_makes_a_section_that_is_not_there(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, ["student.model=other/model", "capture.shard_rows=10"])
    assert recipe.student is not None
    assert recipe.student.model == "other/model"
    assert recipe.capture.shard_rows == 10


def test_an_empty_value_is_null(recipe_file: Path) -> None:
    assert load_recipe(recipe_file, ["prune="]).prune is None


def test_overrides_can_be_a_mapping_of_values(recipe_file: Path) -> None:
    overrides = {"prune.layers": 4, "data.files": {"train": "a.csv", "test": "b.csv"}}
    recipe = load_recipe(recipe_file, overrides)
    assert recipe.prune is not None
    assert recipe.prune.layers == 4
    assert recipe.data.source is None


def test_files_replace_a_source_with_its_config_and_revision(recipe_file: Path) -> None:
    data = load_recipe(recipe_file, ["data.files.train=a.csv", "data.files.test=b.csv"]).data
    assert (data.source, data.config, data.revision) == (None, None, None)
    assert data.files is not None
    assert data.files.test == "b.csv"


def test_a_source_replaces_files() -> None:
    values = yaml.safe_load(GOOD.replace("3e-4", "0.0003"))
    values["data"] = {"files": {"train": "a.csv", "test": "b.csv"}}
    data = load_recipe(values, ["data.source=someone/pairs"]).data
    assert data.files is None


def test_a_source_and_files_on_the_command_line_contradict_each_other(recipe_file: Path) -> None:
    overrides = ["data.source=a/b", "data.files.train=a.csv", "data.files.test=b.csv"]
    assert "both source and files" in wrong(recipe_file, overrides)


def test_another_model_leaves_the_revision_of_the_first_behind(recipe_file: Path) -> None:
    assert load_recipe(recipe_file).teacher.revision == "abc"
    assert load_recipe(recipe_file, ["teacher.model=other/model"]).teacher.revision is None
    pinned = load_recipe(recipe_file, ["teacher.model=other/model", "teacher.revision=d"])
    assert pinned.teacher.revision == "d"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "override seed: seed: this is not of the form key=value"),
        ("=1", "this is not of the form key=value"),
        ("prune..layers=1", "this is not of the form key=value"),
        ("data.files.train=*.csv", "the value is not YAML"),
        ("name.first=x", "name.first: 'name' holds 'mine'; override it as a whole"),
        ("teacher.finetune.epoch=3", "Did you mean 'epochs'?"),
    ],
)
def test_a_wrong_override_is_quoted(recipe_file: Path, override: str, message: str) -> None:
    assert message in wrong(recipe_file, [override])


# YAML


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1_000", 1000),
        ("-0.5", -0.5),
        ("true", True),
        ("no", "no"),
        ("on", "on"),
        ("010", "010"),
        ("1:30", "1:30"),
        ("2026-11-01", "2026-11-01"),
        ("~", None),
        ("", None),
        ("{a: [1, b]}", {"a": [1, "b"]}),
        (".5", 0.5),
        ("1.", 1.0),
    ],
)
def test_plain_words_are_read_as_yaml_1_2_does(text: str, value: object) -> None:
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


def test_lines_of_keys_and_entries() -> None:
    source = YamlSource("a:\n  b: 1\n  c:\n    - x\n    - y\n")
    assert [source.line(path) for path in [("a",), ("a", "c"), ("a", "c", 1)]] == [1, 3, 5]
    assert source.line(("a", "missing")) == 1
    assert source.line(()) == 1


def test_a_duplicate_inside_an_alias_is_reported_once() -> None:
    source = YamlSource("a: &x {k: 1, k: 2}\nb: *x\n")
    assert [problem.key for problem in source.duplicates] == ["a.k"]


def test_a_document_that_holds_itself_ends() -> None:
    source = YamlSource("a: &x\n  b: *x\n")
    assert source.duplicates == []
    assert source.line(("a", "b", "b")) == 2


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(value=trees)
@example(value="\x85")
@example(value={"a\u2028b": ["\u2029 c", "d\x85\x85e"]})
def test_what_is_dumped_reads_back_equal_here_and_elsewhere(value: object) -> None:
    text = dump_yaml(value)
    assert YamlSource(text).value == value
    if "e" not in text.lower():  # YAML 1.1 takes 1e5 for a text
        assert yaml.safe_load(text) == value


def test_a_misspelt_section_of_an_override_is_told_as_the_override(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"override prun\.layers=3: prun: unknown key"):
        load_recipe("search_query", ["prun.layers=3"])
