"""A cut model computes what the original computes with the cut parts masked."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForMaskedLM

from paredown.eval.checkpoints import save_model
from paredown.eval.errors import RunError
from paredown.eval.models import TextModel, load_model
from paredown.eval.tasks import get_task
from paredown.prune.anatomy import anatomy_of
from paredown.prune.calibration import only_layers
from paredown.prune.compensation import unfitted
from paredown.prune.renumbering import renumbered
from paredown.prune.surgery import Cut, cut, cut_backbone
from paredown.prune.vocabulary import prune_vocabulary

Make = Callable[..., TextModel]
KINDS = ("bert", "roberta", "distilbert")
TASKS = ("retrieval", "classification")
TEXTS = ["how do I open a file?", "the bank closed my account", "x"]
CHANNELS = [[i for i in range(48) if i % 3 != 1], list(range(8, 40))]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=TASKS)
def model(request: pytest.FixtureRequest, kind: str, tiny_model: Make) -> TextModel:
    found = tiny_model(kind, get_task(request.param))
    # Biases and norms start at 0 and 1, where a wrong slice of them would not show.
    torch.manual_seed(1)
    with torch.no_grad():
        for p in found.parameters():
            if p.dim() == 1:
                p.add_(torch.randn_like(p) * 0.25)
    return found


@torch.no_grad()
def outputs(model: TextModel, texts: Sequence[str] = TEXTS) -> Tensor:
    return model(**model.collate(model.tokenize(list(texts)))).values


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


@pytest.mark.parametrize("kept", [[0], [1]])
def test_layers_cut_equal_layers_skipped(model: TextModel, kept: list[int]) -> None:
    small, index_map = cut(model, Cut(layers=kept))
    anatomy = anatomy_of(model.config)
    with only_layers(model, anatomy, kept):
        masked = outputs(model)
    with only_layers(model, anatomy, [1 - kept[0]]):
        other = outputs(model)
    assert difference(outputs(small), masked) <= 1e-5
    assert difference(outputs(small), other) > 1e-2
    assert index_map == {"layers": kept}
    assert anatomy.size(small.config, "layers") == 1


def test_channels_cut_equal_channels_masked(model: TextModel) -> None:
    anatomy = anatomy_of(model.config)
    small, index_map = cut(model, Cut(channels=CHANNELS))
    masked = unfitted(model, anatomy, [0, 1], CHANNELS)
    other = unfitted(model, anatomy, [0, 1], [[(i + 5) % 48 for i in c] for c in CHANNELS])
    assert difference(outputs(small), outputs(masked)) <= 1e-5
    assert difference(outputs(small), outputs(other)) > 1e-2
    assert index_map == {"channels": CHANNELS}
    assert anatomy.size(small.config, "intermediate_size") == 32


def test_masking_a_channel_is_zeroing_it(model: TextModel) -> None:
    """The mask itself, against a hook on what goes into the output projection."""
    anatomy = anatomy_of(model.config)
    masked = unfitted(model, anatomy, [0, 1], CHANNELS)
    handles = []
    for layer, keep in zip(anatomy.layers_of(model.backbone), CHANNELS, strict=True):
        kept = torch.zeros(48)
        kept[keep] = 1

        def hook(module: nn.Module, args: Any, kept: Tensor = kept) -> Any:
            return (args[0] * kept,)

        handles.append(layer.get_submodule(anatomy.ffn_out).register_forward_pre_hook(hook))
    expected = outputs(model)
    for handle in handles:
        handle.remove()
    assert difference(outputs(masked), expected) <= 1e-6


def test_vocabulary_cut_keeps_the_outputs_of_texts_that_need_no_more(model: TextModel) -> None:
    found = prune_vocabulary(model.tokenizer, TEXTS, size=model.config.vocab_size)
    kept = found.kept
    small, index_map = cut(model, Cut(vocabulary=kept), found.tokenizer)
    assert index_map == {"vocabulary": kept}
    assert small.config.vocab_size == len(kept) < model.config.vocab_size
    assert small.config.pad_token_id == small.tokenizer.pad_token_id
    assert difference(outputs(small), outputs(model)) <= 1e-6
    wrong = copy.deepcopy(small)
    embedding: Any = wrong.backbone.base_model.get_submodule("embeddings.word_embeddings")
    with torch.no_grad():
        embedding.weight.copy_(embedding.weight.roll(1, 0))
    assert difference(outputs(wrong), outputs(model)) > 1e-2


def test_all_axes_at_once_reload_as_stock(model: TextModel, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kept = list(range(model.config.vocab_size - 20))
    small, index_map = cut(
        model,
        Cut(layers=[1], channels=[CHANNELS[0]], vocabulary=kept),
        renumbered(model.tokenizer, kept),
    )
    save_model(small, tmp_path / "small")
    task = get_task("retrieval" if model.signal == "embedding" else "classification")
    again = load_model(tmp_path / "small", task)
    assert difference(outputs(small), outputs(again)) <= 1e-6
    assert set(index_map) == {"layers", "channels", "vocabulary"}
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), f"the original was changed at {name}"


def test_the_number_of_parameters_follows_the_formula(model: TextModel) -> None:
    hidden, layer, vocabulary = 32, 0, model.config.vocab_size

    def count(m: TextModel) -> int:
        return sum(p.numel() for p in m.parameters())

    def layer_size(width: int) -> int:
        attention = 4 * (hidden * hidden + hidden) + 2 * hidden
        return attention + 2 * hidden * width + width + hidden + 2 * hidden

    kept = list(range(vocabulary - 20))
    small, _ = cut(
        model,
        Cut(layers=[layer], channels=[CHANNELS[0]], vocabulary=kept),
        renumbered(model.tokenizer, kept),
    )
    gone = 2 * layer_size(48) - layer_size(32) + 20 * hidden
    assert count(small) == count(model) - gone


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_over_the_vocabulary_is_cut_with_it(kind: str, tied: bool) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 48}
    if kind == "distilbert":
        sizes = {"dim": 32, "n_layers": 1, "n_heads": 4, "hidden_dim": 48}
    config = AutoConfig.for_model(
        kind, vocab_size=60, initializer_range=0.25, tie_word_embeddings=tied, **sizes
    )
    whole = AutoModelForMaskedLM.from_config(config).eval()
    if not tied:
        assert whole.get_output_embeddings().weight is not whole.get_input_embeddings().weight
    with torch.no_grad():
        whole.get_output_embeddings().bias.normal_()
    kept = [*range(10), *range(20, 50)]
    small = cut_backbone(whole, Cut(vocabulary=kept))
    old = torch.tensor([[0, 25, 44, 2]])
    new = torch.tensor([[kept.index(i) for i in old[0].tolist()]])
    with torch.no_grad():
        expected = whole(input_ids=old).logits[..., kept]
        assert difference(small(input_ids=new).logits, expected) <= 1e-5
    same = small.get_output_embeddings().weight is small.get_input_embeddings().weight
    assert same == tied


def test_roberta_keeps_its_padding_id(tiny_model: Make) -> None:
    model = tiny_model("roberta", get_task("retrieval"))
    model.config.bos_token_id = None
    kept = list(range(1, model.config.vocab_size))
    with pytest.raises(RunError, match="padding id"):
        cut_backbone(model.backbone, Cut(vocabulary=kept))


@pytest.mark.parametrize(
    "what",
    [
        Cut(layers=[]),
        Cut(layers=[1, 0]),
        Cut(layers=[0, 2]),
        Cut(channels=[[0, 1]]),
        Cut(channels=[[0, 1], [0]]),
        Cut(channels=[[0, 48], [0, 1]]),
        Cut(vocabulary=[0, 0, 1]),
        Cut(vocabulary=[5, 6, 7]),
    ],
)
def test_index_lists_that_do_not_fit_are_refused(tiny_model: Make, what: Cut) -> None:
    with pytest.raises(RunError):
        cut_backbone(tiny_model("bert", get_task("retrieval")).backbone, what)


def test_a_cut_vocabulary_needs_its_tokenizer(tiny_model: Make) -> None:
    with pytest.raises(RunError, match="tokenizer"):
        cut(tiny_model("bert", get_task("retrieval")), Cut(vocabulary=[0, 1, 2, 3, 4]))


def test_random_numbers_of_others_are_left_alone(tiny_model: Make) -> None:
    model = tiny_model("bert", get_task("retrieval"))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    cut(model, Cut(layers=[0]))
    assert torch.equal(torch.rand(3), expected)
