"""Every rule of what a recipe for generation may say, in both directions."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest

from paredown.distill.endpoint_settings import EndpointSettings
from paredown.eval.errors import RecipeError
from paredown.recipes.generation_rules import capture_defaults, encoding_spec
from paredown.recipes.loading import load_recipe
from paredown.recipes.resolving import resolve
from paredown.recipes.schema import Endpoint, Recipe

Values = dict[str, Any]

SERVER = {"base_url": "http://127.0.0.1:8000/v1"}
CHECKPOINT: Values = {
    "name": "answers",
    "task": "generation",
    "data": {"files": {"train": "a.jsonl", "test": "b.jsonl"}},
    "teacher": {"model": "a/teacher"},
    "prune": {"layers": 2},
    "distill": {"losses": {"forward_kl": 1.0}},
}
NEW = {"config": {"hidden_size": 32}}
MADE: Values = {**CHECKPOINT, "teacher": {"new": NEW, "finetune": {}}}
OTHER: Values = {**CHECKPOINT, "student": {"model": "a/student"}, "prune": None}
TEXTS: Values = {**OTHER, "distill": {"losses": {"cross_entropy": 1.0}}}
ENDPOINT: Values = {**TEXTS, "teacher": {"kind": "endpoint", "model": "m", "endpoint": SERVER}}
SCORED: Values = {
    **OTHER,
    "teacher": {
        "kind": "endpoint",
        "model": "m",
        "endpoint": {**SERVER, "top_logprobs": 5},
        "tokenizer": "a/tokenizer",
    },
}
RECORDED: Values = {
    **TEXTS,
    "teacher": {"kind": "recorded", "files": {"train": "c.jsonl", "test": "d.jsonl"}},
    "capture": {"encoding": "text"},
}
CLASSES: Values = {
    **CHECKPOINT,
    "task": "classification",
    "teacher": {"model": "a/teacher", "finetune": {}},
    "distill": {"losses": {"kl": 1.0}},
}
RETRIEVAL: Values = {
    **CHECKPOINT,
    "task": "retrieval",
    "distill": {"losses": {"embedding_cosine": 1.0}},
}
RIGHT = [CHECKPOINT, MADE, OTHER, TEXTS, ENDPOINT, SCORED, RECORDED, CLASSES, RETRIEVAL]


def changed(base: Values, changes: Values) -> Values:
    """A recipe with the values at some dotted paths changed."""
    values = copy.deepcopy(base)
    for path, value in changes.items():
        *sections, key = path.split(".")
        inner = values
        for section in sections:
            if inner.get(section) is None:
                inner[section] = {}
            inner = inner[section]
        inner[key] = value
    return values


@pytest.mark.parametrize("values", RIGHT)
def test_each_kind_of_recipe_is_one(values: Values) -> None:
    assert load_recipe(values).task == values["task"]


@pytest.mark.parametrize(
    ("base", "changes", "key", "words"),
    [
        # what only generation has
        (CLASSES, {"generation.max_new_tokens": 4}, "generation", "is for task generation"),
        (RETRIEVAL, {"teacher.tokenizer": "a/b"}, "teacher.tokenizer", "is for task generation"),
        (CLASSES, {"teacher.new": NEW}, "teacher.new", "is for task generation"),
        (RETRIEVAL, {"teacher.endpoint": SERVER}, "teacher.endpoint", "is for task generation"),
        (CLASSES, {"capture.encoding": "topk"}, "capture.encoding", "is for task generation"),
        (CLASSES, {"capture.k": 4}, "capture.k", "is for task generation"),
        (RETRIEVAL, {"capture.draws": 4}, "capture.draws", "is for task generation"),
        (RETRIEVAL, {"capture.over": "references"}, "capture.over", "is for task generation"),
        (CLASSES, {"distill.on_policy": 0.5}, "distill.on_policy", "is for task generation"),
        (RETRIEVAL, {"distill.lora": {}}, "distill.lora", "is for task generation"),
        (RETRIEVAL, {"teacher.kind": "endpoint"}, "teacher.kind", "answers in text"),
        (
            CHECKPOINT,
            {"generation.settings": {"temprature": 0.5}},
            "generation.settings",
            "Did you mean 'temperature'",
        ),
        (
            CHECKPOINT,
            {"generation.settings": {"do_sample": False, "top_p": 0.5}},
            "generation.settings",
            "'top_p' has no effect",
        ),
        (RECORDED, {"teacher.files.validation": "e.jsonl"}, "teacher.files.validation", "own"),
        # what generation has not
        (CHECKPOINT, {"budget.flops": 0.5}, "budget", "give prune's sizes"),
        (CHECKPOINT, {"prune.rounds": 2}, "prune.rounds", "leave it at 1"),
        (CHECKPOINT, {"distill.losses": {"kl": 1.0}}, "distill.losses.kl", "forward_kl"),
        # teachers
        (MADE, {"teacher.model": "a/teacher"}, "teacher", "both model and new"),
        (MADE, {"teacher.finetune": None}, "teacher.new", "add teacher.finetune"),
        (CHECKPOINT, {"teacher.endpoint": SERVER}, "teacher.endpoint", "only for kind: endpoint"),
        (RECORDED, {"teacher.endpoint": SERVER}, "teacher.endpoint", "only for kind: endpoint"),
        (ENDPOINT, {"teacher.endpoint": None}, "teacher", "needs endpoint"),
        (ENDPOINT, {"teacher.model": None}, "teacher.model", "what the server calls the model"),
        (ENDPOINT, {"teacher.revision": "main"}, "teacher.revision", "has no use for it"),
        (ENDPOINT, {"teacher.finetune": {}}, "teacher.finetune", "has no use for it"),
        (ENDPOINT, {"teacher.new": NEW}, "teacher.new", "has no use for it"),
        (
            ENDPOINT,
            {"teacher.files": {"train": "a"}},
            "teacher.files",
            "has no use for it",
        ),
        (
            ENDPOINT,
            {"teacher.attn_implementation": "eager"},
            "teacher.attn_implementation",
            "has no use for it",
        ),
        (
            ENDPOINT,
            {"student": None, "prune": {"layers": 1}},
            "teacher.kind",
            "add student.model",
        ),
        (RECORDED, {"student": None, "prune": {"layers": 1}}, "teacher.kind", "student.model"),
        (SCORED, {"teacher.tokenizer": None}, "teacher.tokenizer", "maps them to token ids"),
        (CHECKPOINT, {"teacher.tokenizer": "a/b"}, "teacher.tokenizer", "has its own"),
        (ENDPOINT, {"teacher.tokenizer": "a/b"}, "teacher.tokenizer", "top_logprobs"),
        # capture
        (CHECKPOINT, {"capture": {"encoding": "full", "k": 4}}, "capture.k", "not full"),
        (CHECKPOINT, {"capture.draws": 4}, "capture.draws", "for encoding sampled"),
        (
            CHECKPOINT,
            {"capture": {"encoding": "topk", "draws": 4}},
            "capture.draws",
            "for encoding sampled",
        ),
        (ENDPOINT, {"capture.over": "generations"}, "capture.over", "has answered already"),
        (RECORDED, {"capture.over": "references"}, "capture.over", "has answered already"),
        (SCORED, {"capture.encoding": "full"}, "capture.encoding", "whole distributions"),
        (RECORDED, {"capture.encoding": "sampled"}, "capture.encoding", "whole distributions"),
        (ENDPOINT, {"capture.encoding": "topk"}, "capture.encoding", "top_logprobs above 0"),
        (
            RECORDED,
            {"capture.encoding": "topk"},
            "capture.encoding",
            "topk needs teacher.tokenizer",
        ),
        (
            RECORDED,
            {"capture": {}, "distill.losses": {"forward_kl": 1.0}},
            "distill.losses.forward_kl",
            "of recorded answers, teacher.tokenizer",
        ),
        # training
        (SCORED, {"distill.on_policy": 0.5}, "distill.on_policy", "kind endpoint"),
        (RECORDED, {"distill.on_policy": 0.5}, "distill.on_policy", "kind recorded"),
        (
            CHECKPOINT,
            {"distill": {"losses": {"cross_entropy": 1.0}, "on_policy": 0.5}},
            "distill.on_policy",
            "add a divergence",
        ),
        (
            ENDPOINT,
            {"distill.losses": {"forward_kl": 1.0}},
            "distill.losses.forward_kl",
            "only texts are recorded",
        ),
        (
            CHECKPOINT,
            {"capture.encoding": "text"},
            "distill.losses.forward_kl",
            "only texts are recorded",
        ),
        (
            CHECKPOINT,
            {"capture.encoding": "sampled", "distill.losses": {"reverse_kl": 1.0}},
            "distill.losses.reverse_kl",
            "not defined on sampled targets",
        ),
        (
            CHECKPOINT,
            {
                "capture.encoding": "sampled",
                "distill.losses": {"forward_kl": {"weight": 1.0, "temperature": 2.0}},
            },
            "distill.losses.forward_kl",
            "draws at temperature 1",
        ),
        (
            CHECKPOINT,
            {"distill.lora": {}, "prune": {"layers": 1, "mask": {"pattern": 0.5}}},
            "distill.lora",
            "prune.mask keeps at zero",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_its_key(
    base: Values, changes: Values, key: str, words: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(changed(base, changes))
    message = " ".join(str(caught.value).split())
    assert key in message and words in message


@pytest.mark.parametrize(
    ("base", "changes"),
    [
        (CHECKPOINT, {"capture": {"encoding": "full"}}),
        (CHECKPOINT, {"capture": {"k": 4}}),
        (CHECKPOINT, {"capture": {"encoding": "sampled", "draws": 12}}),
        (CHECKPOINT, {"capture": {"encoding": "topk", "k": 4, "over": "generations"}}),
        (CHECKPOINT, {"distill.on_policy": 0.5}),
        (CHECKPOINT, {"distill": {"losses": {"jsd": 1.0, "cross_entropy": 0.1}, "on_policy": 1.0}}),
        # all rows are the student's own: none of the recorded texts is compared
        (CHECKPOINT, {"capture.encoding": "text", "distill.on_policy": 1.0}),
        (
            CHECKPOINT,
            {
                "capture.encoding": "sampled",
                "distill": {"losses": {"reverse_kl": 1.0}, "on_policy": 1.0},
            },
        ),
        (CHECKPOINT, {"distill.lora": {"r": 4}}),
        (CHECKPOINT, {"prune": {"layers": 1, "mask": {"pattern": "2:4"}}}),
        (CHECKPOINT, {"generation": {"max_new_tokens": 8, "settings": {"do_sample": True}}}),
        (ENDPOINT, {"capture.encoding": "text"}),
        (SCORED, {"capture": {"encoding": "topk", "k": 5}}),
        (SCORED, {"distill.losses": {"forward_kl": 1.0, "cross_entropy": 0.5}}),
        (
            RECORDED,
            {
                "capture": {"encoding": "topk", "k": 5},
                "teacher.tokenizer": "a/b",
                "distill.losses": {"forward_kl": 1.0},
            },
        ),
        (MADE, {"teacher.finetune": {"optimizer": "muon"}}),
    ],
)
def test_what_can_be_is_accepted(base: Values, changes: Values) -> None:
    load_recipe(changed(base, changes))


@pytest.mark.parametrize(
    ("values", "encoding", "k", "draws", "over"),
    [
        (CHECKPOINT, "topk", 32, None, "references"),
        (changed(CHECKPOINT, {"capture.encoding": "sampled"}), "sampled", None, 50, "references"),
        (changed(CHECKPOINT, {"capture.over": "generations"}), "topk", 32, None, "generations"),
        (ENDPOINT, "text", None, None, None),
        (SCORED, "topk", 32, None, None),
        (RECORDED, "text", None, None, None),
        (changed(RECORDED, {"capture": {}}), "text", None, None, None),
        (
            changed(RECORDED, {"capture": {}, "teacher.tokenizer": "a/b"}),
            "topk",
            32,
            None,
            None,
        ),
    ],
)
def test_what_is_left_open_is_written_out(
    values: Values, encoding: str, k: int | None, draws: int | None, over: str | None
) -> None:
    recipe = Recipe.model_validate(values)
    found = capture_defaults(recipe)
    assert found == {"encoding": encoding, "k": k, "draws": draws, "over": over}
    resolved = resolve(recipe, "cpu")
    assert resolved.capture.encoding == encoding and resolved.generation is not None
    assert resolve(resolved, "cpu") == resolved
    spec = {"encoding": encoding, "k": k, "draws": draws}
    wanted = {name: value for name, value in spec.items() if value is not None}
    assert encoding_spec(resolved.capture) == (None if encoding == "text" else wanted)


def test_every_setting_of_an_endpoint_is_a_key_of_the_recipe() -> None:
    # an error that says what to raise must name a key that there is
    settings = {field.name for field in dataclasses.fields(EndpointSettings)}
    assert set(Endpoint.model_fields) == settings - {"model"}


@pytest.mark.parametrize(
    ("fields", "key", "message"),
    [
        ({"base_url": "https://me:hunter2@h/v1"}, "teacher.endpoint.base_url", "name or password"),
        ({"base_url": "https://h/v1?key=hunter2"}, "teacher.endpoint.base_url", "where keys hide"),
        ({"base_url": "h/v1"}, "teacher.endpoint.base_url", "expected http:// or https://"),
        ({"budget_usd": 1.0}, "teacher.endpoint.budget_usd", "needs the prices"),
        ({"extra_body": {"n": 2}}, "teacher.endpoint.extra_body", "one answer a row"),
        ({"key_env": "K", "extra_body": {"x": "hunter2hunter2"}}, "teacher.endpoint", "spell out"),
        ({"key_env": "K", "base_url": "https://h/hunter2hunter2"}, "teacher.endpoint", "spell out"),
    ],
)
def test_secrets_in_an_endpoints_settings_are_refused_before_anything_is_written(
    fields: Values, key: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("K", "hunter2hunter2")
    with pytest.raises(RecipeError) as caught:
        load_recipe(changed(ENDPOINT, {"teacher.endpoint": {**SERVER, **fields}}))
    said = " ".join(str(caught.value).split())
    assert key in said and message in said and "hunter2" not in said
