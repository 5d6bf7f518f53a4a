"""The students of benchmarks/pruning.py as cut: paredown's, Torch-Pruning's, fewer layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_pruning
from contest import Contest, Student, best_of, with_sizes

from paredown.distill.losses import contrastive, cross_entropy
from paredown.eval.checkpoints import save_model
from paredown.eval.models import TextModel, load_model
from paredown.recipes.shapes import Cost, Costs, grid, proposals
from paredown.recipes.stage_importance import curves_of, importance_stage
from paredown.recipes.stage_prune import prune_stage
from paredown.recipes.stage_teacher import CHECKPOINT, model_options
from paredown.recipes.task_rows import labels_of, paired_texts

OURS, TORCH_PRUNING, LAYERS = "paredown", "torch-pruning", "sentence-transformers"
PEERS = (TORCH_PRUNING, LAYERS)
REACH = 2.0
"""A peer whose smallest shape has more than this many times our FLOPs is out of its reach."""
STEP = 8
"""Widths are multiples of it, on all sides."""


class Cutter:
    """Makes each side's student for a share of the teacher's FLOPs.

    Args:
        contest: The data set.
        folder: Where the peers' checkpoints go.
        shapes: Shapes that paredown may cut before it chooses one.
        rows: Calibration rows of a cut, and of Torch-Pruning's Taylor score.
    """

    def __init__(self, contest: Contest, folder: Path, *, shapes: int, rows: int) -> None:
        self.contest, self.folder = contest, folder
        self.shapes, self.rows = shapes, rows
        model = contest.whole()
        teacher = load_model(
            contest.teacher_path, contest.task, **model_options(contest.recipe.teacher)
        )
        self.costs = Costs(model, contest.lengths(model))
        self.teacher: Cost = Costs(teacher, contest.lengths(teacher)).of({})
        self.sizes = grid(self.costs.anatomy, model.config, {}, STEP)
        curves = importance_stage(contest.recipe, contest.data, contest.base, {})
        self.curves = curves_of(contest.store.ensure(curves, "curves").path)
        self.made: dict[str, Student] = {}

    def share(self, sizes: dict[str, int]) -> float:
        """The FLOPs of a shape as a share of the teacher's, predicted on training rows."""
        return self.costs.of(sizes).flops / self.teacher.flops

    def ours(self, ratio: float) -> Student:
        """The best of paredown's first proposals, by agreement with the teacher as cut.

        This is the search of `budget.flops` without its rounds of healing.
        """
        found = proposals(
            self.costs, self.sizes, self.curves, ("flops", ratio), self.teacher, self.shapes
        )
        return best_of(self.contest, [self._pruned(shape.sizes, shape.name) for shape in found])

    def _pruned(self, sizes: dict[str, int], name: str) -> Student:
        contest = self.contest
        prune = with_sizes(contest.prune, sizes, self.rows)
        recipe = contest.recipe.model_copy(update={"prune": prune})
        stage = prune_stage(
            recipe, contest.data, contest.teacher, contest.captured, source=contest.base
        )
        path = contest.store.ensure(stage, name).path / CHECKPOINT
        return Student(OURS, name, path, self.share(sizes))

    def peer(self, side: str, least: float) -> Student:
        """A peer's student with at least so many FLOPs, the nearest; or its smallest.

        Args:
            side: One of `PEERS`.
            least: Our student's share of the teacher's FLOPs.
        """
        make, axis = {
            TORCH_PRUNING: (self._torch_pruned, "intermediate_size"),
            LAYERS: (self._layers_left_out, "layers"),
        }[side]
        sizes = self._peer_sizes(axis)
        size = next(one for one in sizes if one == sizes[-1] or self.share({axis: one}) >= least)
        key = f"{side} {size}"
        if key not in self.made:
            self.made[key] = best_of(self.contest, make(size))
        return self.made[key]

    def _peer_sizes(self, axis: str) -> list[int]:
        """Rising, from the smallest the peer can cut to; our own grid starts higher."""
        whole = self.sizes[axis][-1]
        step = 1 if axis == "layers" else STEP
        return list(range(step, whole + 1, step))

    def _torch_pruned(self, width: int) -> list[Student]:
        """FFN channels cut by Torch-Pruning: by magnitude, and by its first-order Taylor score."""
        made = []
        for name, importance in (
            ("magnitude", torch_pruning.importance.GroupMagnitudeImportance(p=2)),
            ("Taylor", torch_pruning.importance.GroupTaylorImportance()),
        ):
            model = self.contest.whole()
            if name == "Taylor":
                task_gradients(self.contest, model, self.rows)
            cut_ffn(model, width, importance)
            made.append(self._saved(model, TORCH_PRUNING, f"FFN {width} by {name}", width, name))
        return made

    def _layers_left_out(self, count: int) -> list[Student]:
        """Evenly spaced layers, as sentence-transformers' example of layer reduction keeps them."""
        made = []
        for kept in evenly_spaced(self.sizes["layers"][-1], count):
            model = self.contest.whole()
            keep_layers(model, kept)
            name = "-".join(map(str, kept))
            made.append(self._saved(model, LAYERS, f"layers {name}", count, name))
        return made

    def _saved(self, model: TextModel, side: str, shape: str, size: int, name: str) -> Student:
        """Saves a peer's student and loads it with the stock class, as a user would."""
        path = self.folder / f"{side}-{size}-{name}" / CHECKPOINT
        save_model(model.eval(), path)
        axis = "layers" if side == LAYERS else "intermediate_size"
        return Student(side, shape, path, self.share({axis: size}))


def evenly_spaced(whole: int, count: int) -> list[list[int]]:
    """Two ways to space them: each in the middle of its part, and from the first to the last."""
    part = whole / count
    middle = [int(part * i + (part - 1) / 2) for i in range(count)]
    ends = sorted({int(i) for i in np.linspace(0, whole - 1, count).round()})
    return [middle] if middle == ends else [middle, ends]


def keep_layers(model: TextModel, kept: Sequence[int]) -> None:
    """Leaves all other layers out of a BERT."""
    backbone: Any = model.backbone
    encoder = getattr(backbone, backbone.base_model_prefix, backbone).encoder
    encoder.layer = torch.nn.ModuleList([encoder.layer[i] for i in kept])
    backbone.config.num_hidden_layers = len(kept)


def cut_ffn(model: TextModel, width: int, importance: Any) -> None:
    """Cuts every FFN of a BERT to one width with Torch-Pruning's dependency graph.

    One width for all layers, because a stock config has no other; and FFNs alone, because what it
    does to heads or all dimensions at once no longer loads as a stock checkpoint.
    """
    backbone: Any = model.backbone
    example = model.collate(model.tokenize(["a short sample"]))
    graph = torch_pruning.DependencyGraph().build_dependency(backbone, example_inputs=example)
    cut = torch_pruning.prune_linear_out_channels
    for name, layer in list(backbone.named_modules()):
        if name.endswith("intermediate.dense"):
            group = graph.get_pruning_group(layer, cut, idxs=list(range(layer.out_features)))
            least = importance(group).argsort()[: layer.out_features - width]
            graph.get_pruning_group(layer, cut, idxs=least.tolist()).prune()
    backbone.config.intermediate_size = width
    backbone.zero_grad()


def task_gradients(contest: Contest, model: TextModel, rows: int) -> None:
    """Sums the gradients of the task's own loss over some training rows, for the Taylor score."""
    draw = np.random.default_rng(contest.recipe.seed)
    if contest.task.signal == "class_logits":
        labels = labels_of(contest.rows)
        chosen = draw.permutation(np.flatnonzero(labels >= 0))[:rows]
        texts, _ = contest.streams[0].read(chosen.tolist())
        for i in range(0, len(texts), 64):
            values = model(**model.collate(model.tokenize(texts[i : i + 64]))).values
            loss = cross_entropy(values, torch.from_numpy(labels[chosen[i : i + 64]]))
            torch.autograd.backward(loss)
        return
    queries, answers = paired_texts(contest.rows)
    order = draw.permutation(len(queries))[:rows].tolist()
    for i in range(0, len(order), 64):
        part = order[i : i + 64]
        asked = model(**model.collate(model.tokenize([queries[j] for j in part], role="query")))
        found = model(**model.collate(model.tokenize([answers[j] for j in part], role="document")))
        torch.autograd.backward(contrastive(asked.values, found.values))
