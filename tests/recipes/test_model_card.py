"""The model card: the hub's metadata, and nothing claimed that is not known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from paredown.recipes.card_origins import Origin, Origins, find_origins
from paredown.recipes.model_card import card_metadata, model_card, write_model_card

from .full_report import full_report

Make = Callable[..., dict[str, Any]]


def split(card: str) -> tuple[dict[str, Any], str]:
    """The metadata and the text of a card, as the hub reads them."""
    start, header, text = card.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(header), text


def test_card_of_a_retrieval_student(tmp_path: Path, make_report: Make) -> None:
    path = write_model_card(tmp_path, make_report())
    assert path == tmp_path / "README.md"
    assert [file.name for file in tmp_path.iterdir()] == ["README.md"]
    metadata, text = split(path.read_text(encoding="utf-8"))
    results = metadata.pop("model-index")
    assert metadata == {
        "license": "unknown",
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "base_model": "sentence-transformers/all-MiniLM-L6-v2",
        "base_model_relation": "finetune",
        "tags": ["paredown", "distillation", "pruning", "feature-extraction"],
    }
    (result,) = results[0]["results"]
    assert results[0]["name"] == "search_query"
    assert result["task"] == {"type": "sentence-similarity", "name": "retrieval"}
    assert result["dataset"] == {"type": "python_docs", "name": "python_docs", "split": "test"}
    assert [(m["type"], m["value"]) for m in result["metrics"]] == [
        ("mrr@10", 0.7129), ("recall@1", 0.6202)
    ]  # fmt: skip
    assert "**98.6 %** of the teacher's MRR@10 (95 % interval 97.4 to 99.7 %, 2,012 test" in text
    assert "**18.1 %** of its compute" in text
    assert "an index of texts that the teacher embedded stays as it is" in text
    assert "Vocabulary cut to the tokens of the training texts (9,321 tokens)" in text
    for title in ("Intended use", "Limits", "How well it does", "What it costs", "Licences"):
        assert f"## {title}\n" in text


def test_card_of_a_classifier_from_the_hub(make_report: Make) -> None:
    recipe = {
        **make_report()["recipe"],
        "task": "classification",
        "data": {"source": "someone/intents"},
        "student": {"model": "org/small-model"},
    }
    quality = {
        **make_report()["quality"],
        "metric": "accuracy",
        "metrics": {
            "accuracy": {"teacher": 0.93, "student": 0.92},
            "macro_f1": {"teacher": 0.93, "student": None},
        },
    }
    origins = Origins(
        teacher=Origin("org/teacher", "mit"),
        base=Origin("org/small-model", "apache-2.0", ("en", "de")),
        data=Origin("someone/intents", "cc-by-4.0", ("en",)),
    )
    card = model_card(make_report(recipe=recipe, quality=quality), origins)
    metadata, text = split(card)
    assert metadata["license"] == "apache-2.0" and metadata["language"] == ["en"]
    for line in (
        "The teacher, `org/teacher`: licence `mit`.",
        "The base model, `org/small-model`: licence `apache-2.0`.",
        "The data, `someone/intents`: licence `cc-by-4.0`.",
    ):
        assert f"- {line}" in text
    assert metadata["pipeline_tag"] == "text-classification"
    assert metadata["library_name"] == "transformers"
    assert metadata["datasets"] == ["someone/intents"]
    assert metadata["base_model"] == "org/small-model"
    assert metadata["metrics"] == ["accuracy", "f1"]
    assert "| macro-F1 | 0.9300 | not measured |" in text
    assert 'pipeline("text-classification"' in text


def test_metadata_passes_the_hubs_own_reader(make_report: Make) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard(model_card(make_report()))
    assert card.data.get("base_model") == "sentence-transformers/all-MiniLM-L6-v2"
    assert card.data.get("base_model_relation") in ("adapter", "merge", "quantized", "finetune")
    assert card.data.get("pipeline_tag") == "sentence-similarity"
    found = {result.metric_type: result for result in card.data.eval_results}
    assert found["mrr@10"].metric_value == 0.7129
    assert found["mrr@10"].metric_name == "MRR@10"
    assert card.data.model_name == "search_query"
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()


@pytest.mark.parametrize("model", [None, "/a/folder/of/mine", "./folder", "org/name/more"])
def test_a_base_model_that_is_not_on_the_hub_is_not_claimed(
    model: str | None, make_report: Make
) -> None:
    recipe = {**make_report()["recipe"], "teacher": {"model": model}, "data": {"source": None}}
    metadata = card_metadata(make_report(recipe=recipe))
    assert not {"base_model", "base_model_relation", "datasets"} & set(metadata)
    assert metadata["license"] == "unknown"


def test_a_local_folder_is_not_taken_for_a_hub_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_report: Make
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my" / "model").mkdir(parents=True)
    recipe = {**make_report()["recipe"], "teacher": {"model": "my/model"}}
    assert "base_model" not in card_metadata(make_report(recipe=recipe))


@pytest.mark.parametrize(
    ("prune", "said"),
    [
        ({"layers": 2}, "re-fitted by least squares where that came nearer to what was cut."),
        ({"experts": 4}, "Experts a layer cut to 4."),
        ({"layers": 2, "compensate": False}, "that teacher."),
    ],
)
def test_a_fit_is_claimed_where_there_may_be_one(
    prune: dict[str, Any], said: str, make_report: Make
) -> None:
    recipe = {**make_report()["recipe"], "prune": prune, "student": None}
    recipe["teacher"] = {**recipe["teacher"], "finetune": {"epochs": 1}}
    _, text = split(model_card(make_report(recipe=recipe)))
    assert said in text and ("re-fitted" in text) == ("re-fitted" in said)


def test_a_smoke_run_and_missing_figures_claim_nothing(bare_report: dict[str, Any]) -> None:
    metadata, text = split(model_card(bare_report))
    assert "model-index" not in metadata
    assert "smoke run" in text
    assert "not measured" in text
    assert "Verdict" not in text


def test_names_cannot_leave_their_code_span(make_report: Make) -> None:
    recipe = {**make_report()["recipe"], "teacher": {"model": "a`b\n# title"}}
    _, text = split(model_card(make_report(recipe=recipe)))
    assert "`a b # title`" in text
    assert "\n# title" not in text


def test_the_card_names_the_rows_that_pay(make_report: Make) -> None:
    report = full_report(make_report)
    assert "none loses so much accuracy" in model_card(report)
    worst = report["quality"]["slices"][0]
    worst |= {"difference": -0.09, "difference_ci95": [-0.15, -0.03], "student": 0.86}
    text = model_card(report)
    assert "lose of the teacher's accuracy: `card_arrival` (−0.0900, 40 rows)." in text
    assert text.count("| `accuracy of ") == 10  # the worst ones
    assert "off by 2.50 % on average" in text
    assert "of them, and 95." in text  # rows outside of the task


def card(folder: Path, header: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(f"---\n{header}\n---\n# A model\n")
    return folder


def test_licences_are_read_from_the_cards_at_hand(tmp_path: Path) -> None:
    teacher = card(tmp_path / "teacher", "license: cc-by-nc-4.0\nlanguage: [en, de]")
    base = card(tmp_path / "base", "license: other\nlicense_name: gemma\nlanguage: en")
    found = find_origins(
        {
            "teacher": {"model": str(teacher)},
            "student": {"model": str(base)},
            "data": {"files": {"train": "a.csv", "test": None}},
        }
    )
    assert found.teacher == Origin(str(teacher), "cc-by-nc-4.0", ("en", "de"))
    assert found.weights == Origin(str(base), "other", ("en",), "gemma")
    assert found.data is not None and found.data.licence == "unknown"


@pytest.mark.parametrize(
    "header",
    [
        "license: [",
        "- a\n- b",
        "license: {a: b}",
        "license: 'x y\\n# z'",
        "!!python/object:a.b {}",
        "",
    ],
)
def test_a_card_that_cannot_be_understood_says_nothing(header: str, tmp_path: Path) -> None:
    folder = card(tmp_path / "teacher", header)
    found = find_origins({"teacher": {"model": str(folder)}, "data": {"source": "query_filters"}})
    assert found.teacher == Origin(str(folder))
    assert found.data is not None and found.data.licence == "apache-2.0"


def test_the_licence_of_a_model_in_the_hubs_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commit = "0" * 40
    for kind, licence in (("models", "mit"), ("datasets", "cc0-1.0")):
        place = tmp_path / f"{kind}--org--name"
        card(place / "snapshots" / commit, f"license: {licence}")
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text(commit)
    found = find_origins({"teacher": {"model": "org/name"}, "data": {"source": "org/name"}})
    assert found.teacher is not None and found.teacher.licence == "mit"
    assert found.data is not None and found.data.licence == "cc0-1.0"
    assert find_origins({"teacher": {"model": "org/other"}}).teacher == Origin("org/other")
