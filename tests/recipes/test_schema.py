"""What a recipe may say, and what its parts may not say against each other."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from paredown.eval.errors import RecipeError
from paredown.recipes import schema
from paredown.recipes.loading import load_recipe
from paredown.recipes.resolving import resolve
from paredown.recipes.schema import Recipe, json_schema

Values = dict[str, Any]

RETRIEVAL: Values = {
    "name": "search",
    "task": "retrieval",
    "data": {"source": "python_docs"},
    "teacher": {"model": "a/teacher"},
    "prune": {"layers": 2},
    "distill": {"losses": {"embedding_cosine": 1.0}},
}
CLASSIFICATION: Values = {
    "name": "intent",
    "task": "classification",
    "data": {"files": {"train": "a.csv", "test": "b.csv"}},
    "teacher": {"model": "a/teacher", "finetune": {}},
    "prune": {"layers": 2},
    "distill": {"losses": {"kl": 1.0}},
}


def changed(base: Values, path: str, value: Any) -> Values:
    values = copy.deepcopy(base)
    *sections, key = path.split(".")
    inner = values
    for section in sections:
        if inner.get(section) is None:
            inner[section] = {}
        inner = inner[section]
    inner[key] = value
    return values


def wrong(values: Values) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(values)
    return str(caught.value)


@pytest.mark.parametrize("values", [RETRIEVAL, CLASSIFICATION])
def test_a_short_recipe_gets_every_default(values: Values) -> None:
    recipe = Recipe.model_validate(values)
    assert recipe.target.retain == 0.95
    assert recipe.capture.precision == "auto"
    assert recipe.evaluate.resamples == 10_000
    assert recipe.distill is not None
    assert recipe.distill.learning_rate == 3e-4


def test_a_weight_and_a_mapping_with_weight_are_the_same_loss() -> None:
    plain = Recipe.model_validate(changed(RETRIEVAL, "distill.losses", {"embedding_mse": 2}))
    long = Recipe.model_validate(
        changed(RETRIEVAL, "distill.losses", {"embedding_mse": {"weight": 2}})
    )
    assert plain == long


def test_a_recipe_cannot_be_changed() -> None:
    recipe = Recipe.model_validate(RETRIEVAL)
    with pytest.raises(ValidationError):
        recipe.seed = 1


@pytest.mark.parametrize(
    ("base", "path", "value", "message"),
    [
        (RETRIEVAL, "data", {}, "data: no rows"),
        (RETRIEVAL, "data.files", {"train": "a", "test": "b"}, "both source and files"),
        (RETRIEVAL, "data.revision", "main", "data.revision: only a hub data set"),
        (RETRIEVAL, "data.columns", {"query": "q"}, "data.columns: python_docs has"),
        (CLASSIFICATION, "data", {"source": "python_docs"}, "data.source: python_docs has pairs"),
        (CLASSIFICATION, "data.files.collection", "c", "data.files.collection: only retrieval"),
        (CLASSIFICATION, "symmetric", True, "symmetric: only retrieval has two sides"),
        (CLASSIFICATION, "evaluate.slices", ["a", "a"], "evaluate.slices: a is named twice"),
        (RETRIEVAL, "evaluate.slices", ["a"], "evaluate.slices: are columns of the rows, and py"),
        (RETRIEVAL, "evaluate.out_of_scope", "a.csv", "evaluate.out_of_scope: only a classifier"),
        (CLASSIFICATION, "distill.texts", ["queries"], "distill.texts: only retrieval"),
        (
            RETRIEVAL,
            "data",
            {"files": {"train": "a", "test": "b", "queries": "q"}},
            "data.files.queries: needs collection",
        ),
        (RETRIEVAL, "teacher", {}, "teacher: no model"),
        (RETRIEVAL, "teacher.files", {"train": "x"}, "teacher.files: only for kind: recorded"),
        (RETRIEVAL, "teacher", {"kind": "recorded"}, "needs files"),
        (
            RETRIEVAL,
            "teacher",
            {"kind": "recorded", "files": {"train": "x"}, "finetune": {}},
            "teacher.finetune: a recorded teacher has no model",
        ),
        (
            RETRIEVAL,
            "teacher",
            {"kind": "recorded", "files": {"train": "x"}},
            "add student.model",
        ),
        (RETRIEVAL, "teacher.finetune", {}, "teacher.finetune: trains on class labels"),
        (RETRIEVAL, "prune", {}, "prune: cuts nothing"),
        (RETRIEVAL, "prune.layers", [0, 1, 0], "a layer is named twice"),
        (RETRIEVAL, "prune.round_to", 8, "prune.round_to: rounds intermediate_size"),
        (RETRIEVAL, "distill.losses", {}, "distill.losses: expected at least one entry"),
        (RETRIEVAL, "distill.losses.embedding_cosine", 0, "greater than 0, got 0"),
        (RETRIEVAL, "distill.losses.embedding_cosine", "big", "expected a weight"),
        (RETRIEVAL, "distill.losses.embedding_cosine", {}, "this key is required"),
        (RETRIEVAL, "seeds", 0, "seeds: expected a value greater than or equal to 1"),
        (RETRIEVAL, "seed", True, "seed: expected a whole number, got true"),
        (RETRIEVAL, "target.retain", 0, "target.retain: expected a value greater than 0"),
        (RETRIEVAL, "target.compute", 1.01, "target.compute: expected a value less than"),
        (RETRIEVAL, "target.retain", float("nan"), "target.retain: expected a finite number"),
        (RETRIEVAL, "export", ["onnx", "onnx"], "export: onnx is named twice"),
        (RETRIEVAL, "export", ["onnx-int8", {"onnx-int8": {}}], "onnx-int8 is named twice"),
        (RETRIEVAL, "export", [3], "expected a format's name, or one with its options"),
        (RETRIEVAL, "export", [{"onnx": None}], "expected a format's name, or one with"),
        (RETRIEVAL, "export", [{"onnx": {}, "openvino": {}}], "expected a format's name, or one"),
        (RETRIEVAL, "name", "../up", "name: expected a name of letters"),
        (RETRIEVAL, "task", "retreival", "Did you mean 'retrieval'?"),
        (RETRIEVAL, "capture.precision", "bf61", "Did you mean 'bf16'?"),
        (RETRIEVAL, "distill", "yes", "distill: expected a mapping"),
        (RETRIEVAL, "student", {}, "student.model: this key is required"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(
    base: Values, path: str, value: Any, message: str
) -> None:
    assert message in wrong(changed(base, path, value))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("distill.losses", {"kl": 1}, "distill.losses.kl: The loss 'kl' is not defined"),
        ("distill.losses", {"embedding_cosin": 1}, "Did you mean 'embedding_cosine'?"),
        (
            "distill.losses",
            {"similarity_kl": {"weight": 1, "temprature": 2}},
            "distill.losses.similarity_kl.temprature: 'similarity_kl' has no such option. "
            "Did you mean 'temperature'?",
        ),
        (
            "distill.losses",
            {"similarity_kl": {"weight": 1, "temperature": 0}},
            "temperature: expected a number above 0, got 0",
        ),
        ("target.metric", "accuracy", "target.metric: Metric 'accuracy' judges class logits"),
        ("target.metric", "mrr", "Did you mean 'mrr@10'?"),
        ("evaluate.metrics", ["recall@5"], "evaluate.metrics: Unknown metric 'recall@5'"),
        ("export", ["onx"], "export: Unknown format 'onx'. Did you mean 'onnx'?"),
        ("export", ["onnx-int4"], "Known formats: executorch, onnx, onnx-int8, openvino, "),
        ("export", [{"onx": {}}], "export: Unknown format 'onx'. Did you mean 'onnx'?"),
        (
            "export",
            [{"onnx-int8": {"calibratoin": "static"}}],
            "export: 'onnx-int8' has no option 'calibratoin'. Did you mean 'calibration'?",
        ),
        (
            "export",
            [{"onnx-int8": {"calibration": "statik"}}],
            "expected dynamic or static, got 'statik'. Did you mean 'static'?",
        ),
        (
            "export",
            [{"onnx-int8": {"calibration_rows": 8}}],
            "calibration_rows of 'onnx-int8' has an effect with calibration: static alone",
        ),
        (
            "export",
            [{"onnx-int8": {"calibration": "static", "calibration_rows": 0}}],
            "expected a whole number of at least 1, got 0",
        ),
        ("export", [{"onnx": {"calibration": "static"}}], "'onnx' has no option 'calibration'"),
        ("data", {"source": "a/b", "columns": {"qury": "q"}}, "Did you mean 'query'?"),
        ("distill.arguments", {"weight_decai": 0}, "Did you mean 'weight_decay'?"),
        ("distill.arguments", {"seed": 0}, "distill.arguments.seed"),
    ],
)
def test_a_name_that_no_table_knows_is_refused(path: str, value: Any, message: str) -> None:
    assert message in wrong(changed(RETRIEVAL, path, value))


def test_a_plain_metric_name_is_left_to_the_hub_for_classes() -> None:
    values = changed(CLASSIFICATION, "evaluate.metrics", ["matthews_correlation"])
    assert load_recipe(values).evaluate.metrics == ["matthews_correlation"]
    assert "Unknown metric" in wrong(changed(values, "evaluate.metrics", ["someone/metric"]))


def test_formats_are_names_or_have_options() -> None:
    options = {"calibration": "static", "calibration_rows": 8}
    asked = ["onnx", {"onnx-int8": options}]
    recipe = load_recipe(changed(RETRIEVAL, "export", asked))
    assert recipe.export == asked
    assert recipe.formats == [("onnx", {}), ("onnx-int8", options)]
    again = load_recipe(recipe, ["export=[onnx-int8, {onnx: {}}]"])
    assert again.formats == [("onnx-int8", {}), ("onnx", {})]


def test_a_format_that_does_not_fit_the_task_is_refused() -> None:
    message = wrong(changed(CLASSIFICATION, "export", ["sentence-transformers"]))
    assert "export: Format 'sentence-transformers' is for models that give embedding" in message


def test_without_training_there_is_nothing_to_vary() -> None:
    values = {**RETRIEVAL, "distill": None, "seeds": 3, "evaluate": {"baselines": ["labels"]}}
    message = wrong(values)
    assert "seeds: only training varies" in message
    assert "evaluate.baselines: a baseline is trained" in message


def test_a_student_that_would_be_the_teacher_is_refused() -> None:
    values = {key: RETRIEVAL[key] for key in ("name", "task", "data", "teacher")}
    assert "the student would be the teacher" in wrong(values)


def test_resolving_writes_out_what_depends_on_task_losses_and_machine() -> None:
    losses = {"similarity_kl": 1.0, "hidden_mse": 1.0}
    recipe = resolve(load_recipe(changed(RETRIEVAL, "distill.losses", losses)), device="cpu")
    assert recipe.target.metric == "mrr@10"
    assert recipe.distill is not None
    assert recipe.distill.texts == ["queries", "collection"]
    assert recipe.distill.precision in ("fp32", "bf16")
    assert recipe.capture.precision == recipe.distill.precision
    assert recipe.distill.losses["similarity_kl"].options["temperature"] > 0
    assert recipe.distill.losses["hidden_mse"].options == {"layers": "uniform"}
    assert resolve(recipe, device="cpu") == recipe


def test_resolving_keeps_what_the_recipe_says() -> None:
    values = changed(CLASSIFICATION, "distill.losses", {"kl": {"weight": 1, "temperature": 3.0}})
    values = changed(changed(values, "distill.precision", "fp32"), "target.metric", "macro_f1")
    recipe = resolve(load_recipe(values), device="cpu")
    assert recipe.distill is not None
    assert recipe.distill.losses["kl"].options == {"temperature": 3.0}
    assert (recipe.distill.precision, recipe.target.metric) == ("fp32", "macro_f1")
    assert recipe.distill.texts is None


def sections() -> list[type[BaseModel]]:
    found = [value for value in vars(schema).values() if isinstance(value, type)]
    return [kind for kind in found if issubclass(kind, schema.Section | schema.Loss)]


@pytest.mark.parametrize(
    ("prune", "said"),
    [
        ({"layers": [0, 3], "importance": "taylor"}, "prune.importance: chooses what is kept, and"),
        ({"vocabulary": "task", "importance": "taylor"}, "prune.importance: chooses what is kept"),
        ({"vocabulary": "task", "compensate": False}, "prune.compensate: fits what remains to"),
        ({"vocabulary": "task", "calibration_rows": 64}, "no size is cut."),
    ],
)
def test_keys_that_a_cut_does_not_look_at_are_refused(prune: Values, said: str) -> None:
    message = wrong(changed(CLASSIFICATION, "prune", prune))
    assert "has 1 problem:" in message and said in message
    searched = changed(CLASSIFICATION, "prune", prune) | {"budget": {"flops": 0.5}}
    if not isinstance(prune.get("layers"), list):  # the search cuts sizes that the recipe names not
        load_recipe(searched)
    (key,) = set(prune) - {"vocabulary", "layers"}
    load_recipe(changed(CLASSIFICATION, f"prune.{key}", prune[key]))  # two layers, whichever


def test_a_limit_on_exports_needs_one_that_it_is_for() -> None:
    limited = changed(CLASSIFICATION, "evaluate.flip_rate", 0.01)
    for export in ([], ["onnx-int8"]):
        message = wrong(limited | {"export": export})
        assert "evaluate.flip_rate: is what an fp32 export may change, and export has" in message
    load_recipe(limited | {"export": ["onnx"]})


@pytest.mark.parametrize("section", sections(), ids=lambda kind: kind.__name__)
def test_every_key_is_described(section: type[BaseModel]) -> None:
    assert section.__doc__
    for name, field in section.model_fields.items():
        nested = field.is_required() or field.default_factory is not None
        assert field.description or nested, name


def test_the_json_schema_is_published_and_refuses_unknown_keys() -> None:
    published = json_schema()
    json.dumps(published)
    assert published["additionalProperties"] is False
    assert set(published["required"]) == {"name", "task", "data", "teacher"}
    weights = published["$defs"]["Distill"]["properties"]["losses"]["additionalProperties"]
    assert {"type": "number"} in weights["anyOf"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("distill.losses.similarity_kl.anchors=colection", "Did you mean 'collection'"),
        (
            "distill.losses.hidden_mse={weight: 1.0, layers: foo}",
            "expected uniform, last, or a map",
        ),
        ("distill.losses={contrastive: 1.0}", "leave it out, or say \\[queries\\]"),
        ("distill.arguments={label_smoothing_factor: 0.1}", "has no effect"),
        ("distill.arguments={use_cpu: true}", "ACCELERATE_USE_CPU"),
    ],
)
def test_what_would_fail_or_be_ignored_later_is_refused_at_once(
    override: str, message: str
) -> None:
    from paredown.recipes.api import check

    with pytest.raises(RecipeError, match=message):
        check("search_query", [override, "distill.texts=[collection]"])


def test_a_count_of_errors_is_reported_and_is_no_target() -> None:
    from paredown.eval.metrics import METRICS

    assert not METRICS["invalid_json"].higher_is_better
    assert METRICS["exact_match"].higher_is_better
    values: Values = {**CLASSIFICATION, "task": "generation"}
    values["distill"] = {"losses": {"forward_kl": 1.0}}
    load_recipe(changed(values, "evaluate.metrics", ["invalid_json"]))
    message = wrong(changed(values, "target.metric", "invalid_json"))
    assert "target.metric" in message and "counts what went wrong" in message
    assert "exact_match" in message
