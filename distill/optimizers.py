"""Optimizers a recipe can name: AdamW, and Muon for the matrices of layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..eval.errors import RecipeError

Groups = list[dict[str, Any]]


def muon_matrices(model: nn.Module) -> set[str]:
    """Names of the parameters that Muon is made for: the matrices of linear maps within layers.

    Embeddings and the output head, which is a linear map but no layer's, stay with AdamW, as do
    norms and biases (Jordan et al., Muon, 2024; Liu et al., arXiv 2502.16982).
    """
    found = set()
    for name, module in model.named_modules():
        # A layer's name has its number in it.
        if isinstance(module, nn.Linear) and any(part.isdigit() for part in name.split(".")):
            found.add(f"{name}.weight")
    return found


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for the matrices of layers, AdamW for all else, as one optimizer.

    Muon's steps are scaled to the size of AdamW's (arXiv 2502.16982), so one learning rate does
    for both. Schedules reach both through ``param_groups``.
    """

    def __init__(self, model: nn.Module, lr: float, weight_decay: float, adamw: Groups) -> None:
        """Takes over a model's parameters.

        Args:
            model: What is trained.
            lr: The highest learning rate.
            weight_decay: Of Muon's matrices.
            adamw: Parameter groups as AdamW would get them; Muon takes its matrices out of them.

        Raises:
            RecipeError: If there is no matrix for Muon, or parameters are sharded.
        """
        names = muon_matrices(model)
        matrices = [p for n, p in model.named_parameters() if n in names and p.requires_grad]
        if not matrices:
            raise RecipeError(
                "optimizer: muon steps the matrices of layers, and none is trained here; say adamw."
            )
        if any(hasattr(p, "placements") for p in matrices):
            raise RecipeError(
                "optimizer: muon needs whole matrices, and this launch shards them; say adamw."
            )
        taken = {id(p) for p in matrices}
        rest = [
            {**group, "params": [p for p in group["params"] if id(p) not in taken]}
            for group in adamw
        ]
        self.inner: list[torch.optim.Optimizer] = [
            torch.optim.Muon(
                matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            ),
            torch.optim.AdamW([group for group in rest if group["params"]], lr=lr),
        ]
        super().__init__([p for group in adamw for p in group["params"]], {"lr": lr})
        self._link()

    def _link(self) -> None:
        """Shows the groups and the state of both as one optimizer's."""
        self.param_groups = [group for inner in self.inner for group in inner.param_groups]
        self.state = {k: v for inner in self.inner for k, v in inner.state.items()}  # type: ignore[assignment]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for inner in self.inner:
            inner.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients of both."""
        for inner in self.inner:
            inner.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The states of both, for a checkpoint."""
        return {"inner": [inner.state_dict() for inner in self.inner]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over the states of both."""
        for inner, state in zip(self.inner, state_dict["inner"], strict=True):
            inner.load_state_dict(state)
        self._link()
