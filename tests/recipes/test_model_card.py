"""The model card: the hub's metadata, and nothing claimed that is not known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from paredown.recipes.model_card import card_metadata, model_card, write_model_card

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
    assert metadata == {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "base_model": "sentence-transformers/all-MiniLM-L6-v2",
        "base_model_relation": "finetune",
        "tags": ["paredown", "distillation", "pruning", "feature-extraction"],
    }
    assert "**98.6 %** of the teacher's MRR@10 (95 % interval 97.4 to 99.7 %, 2,012 test" in text
    assert "**18.1 %** of its compute" in text
    assert "an index of texts that the teacher embedded stays as it is" in text
    assert "Vocabulary cut to the tokens of the training texts (9,321 tokens)" in text
    for title in ("Intended use", "How well it does", "What it costs", "How it was made"):
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
    card = model_card(make_report(recipe=recipe, quality=quality), license="apache-2.0")
    metadata, text = split(card)
    assert metadata["license"] == "apache-2.0"
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
    assert card.data.get("pipeline_tag") == "sentence-similarity"


@pytest.mark.parametrize("model", [None, "/a/folder/of/mine", "./folder", "org/name/more"])
def test_a_base_model_that_is_not_on_the_hub_is_not_claimed(
    model: str | None, make_report: Make
) -> None:
    recipe = {**make_report()["recipe"], "teacher": {"model": model}, "data": {"source": None}}
    metadata = card_metadata(make_report(recipe=recipe))
    assert not {"base_model", "base_model_relation", "datasets", "license"} & set(metadata)


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
    _, text = split(model_card(bare_report))
    assert "smoke run" in text
    assert "not measured" in text
    assert "Verdict" not in text


def test_names_cannot_leave_their_code_span(make_report: Make) -> None:
    recipe = {**make_report()["recipe"], "teacher": {"model": "a`b\n# title"}}
    _, text = split(model_card(make_report(recipe=recipe)))
    assert "`a b # title`" in text
    assert "\n# title" not in text
