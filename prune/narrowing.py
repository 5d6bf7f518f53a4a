"""Fewer heads, hidden channels or experts: the cut, and the fit of all that reads or writes them.

The cut model is walked beside the original, module by module in the order they run. Each is fitted
in closed form to what the original's gives, from what the cut model has there: a linear map by
least squares, a norm channel by channel. What is added to the residual stream is fitted to bring
the sum to the original's, so that a later module mends what the cut of an earlier one lost.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..eval.models import TextModel, autocast
from .anatomy import Anatomy, Stack
from .calibration import LayerRunner, without_cache
from .module_fit import ModuleFit
from .modules import norms, outer, readers
from .surgery import Cut, Plan, cut


def narrow(model: TextModel, what: Cut) -> TextModel:
    """Cuts heads, hidden channels or experts, and fits nothing.

    An embedding model with fewer hidden channels gets a dense map that puts them where they were.

    Args:
        model: Is not changed.
        what: Cuts of these axes only.
    """
    small, _ = cut(model, what)
    if what.hidden is not None and model.signal == "embedding" and model.dense is None:
        size = int(model.config.hidden_size)
        dense = nn.Linear(len(what.hidden), size, dtype=model.backbone.dtype)
        with torch.no_grad():
            dense.weight.zero_()
            dense.weight[list(what.hidden), range(len(what.hidden))] = 1
            dense.bias.zero_()
        small.dense = dense.to(model.backbone.device)
    return small.eval()


def narrow_and_fit(model: TextModel, anatomy: Anatomy, what: Cut, rows: LayerRunner) -> TextModel:
    """Cuts heads, hidden channels or experts, and fits what remains.

    Args:
        model: Is not changed.
        anatomy: Of its architecture.
        what: Cuts of these axes only; layers, FFN channels and vocabulary are cut later.
        rows: Runs its layers on calibration rows.
    """
    small = narrow(model, what)
    if what.hidden is None and what.heads is None and what.kv_heads is None:
        return small  # what experts gave is spread over the others by the router itself
    walk = _Walk(model, small, anatomy, what, rows)
    if what.hidden is not None:
        walk.outside(before=True)
    walk.layers()
    if what.hidden is not None:
        walk.outside(before=False)
        walk.dense()
    return small


class _Walk:
    """The original and its cut, side by side."""

    def __init__(
        self,
        model: TextModel,
        small: TextModel,
        anatomy: Anatomy,
        what: Cut,
        rows: LayerRunner,
    ) -> None:
        self.model, self.small, self.anatomy, self.rows = model, small, anatomy, rows
        self.plan = Plan(anatomy, model.config, what)
        self.everything = what.hidden is not None
        self.batches, self.masks = rows.batches, rows.masks
        self.ours, self.theirs = outer(small.backbone), outer(model.backbone)

    def outside(self, *, before: bool) -> None:
        """Fits the norms and maps outside the layers: those before the first, or all after it."""
        order = self._outer_order()
        for path in [path for path, place in order.items() if (place < 0) == before]:
            dims = self.anatomy.tensors.get(f"{path}.weight", ("fixed",))
            module = self.ours[path]
            fitted = isinstance(module, nn.Linear) or len(dims) == 1
            if not fitted or "vocabulary" in dims or "hidden" not in dims:
                continue
            if path.startswith("pooler.") and self.model.signal == "embedding":
                continue  # BERT computes it, and nothing reads it
            task = ModuleFit(module, dims, self.plan.index(dims[0]))
            for batch, mask in enumerate(self.masks):
                with _tapped([self.theirs[path]], stop=True) as wanted:
                    self._forward(self.model, batch)
                with _tapped([module], stop=True) as found:
                    self._forward(self.small, batch)
                target = task.sliced(wanted[self.theirs[path]][1])
                task.add(found[module][0], target, mask if target.dim() == 3 else None)
            task.solve()

    def _outer_order(self) -> dict[str, int]:
        """Modules outside the layers in the order they run; below 0 before the first layer."""
        ran: list[str] = []

        def note(path: str) -> Any:
            return lambda module, args, output: ran.append(path)

        first = self.anatomy.layers_of(self.small.backbone)[0]
        handles = [module.register_forward_hook(note(path)) for path, module in self.ours.items()]
        handles.append(first.register_forward_hook(note("")))
        try:
            self._forward(self.small, 0)
        finally:
            for handle in handles:
                handle.remove()
        start = ran.index("")
        return {path: place - start for place, path in enumerate(ran) if path}

    @torch.no_grad()
    def _forward(self, model: TextModel, batch: int) -> Tensor | None:
        """The signal, or None where the pass was ended before."""
        found: Tensor | None = None
        device = model.backbone.device
        ended = contextlib.suppress(_SeenAll)
        with autocast(device, self.rows.precision), without_cache(model), ended:
            found = model(**self.batches[batch]).values
        return found

    def layers(self) -> None:
        """Fits layer after layer."""
        theirs, ours = copy.copy(self.rows), self.rows.of(self.small)
        theirs.inputs = list(theirs.inputs)
        pairs = zip(
            self.anatomy.layers_of(self.model.backbone),
            self.anatomy.layers_of(self.small.backbone),
            strict=True,
        )
        for number, (original, layer) in enumerate(pairs):
            pair = _Pair(self.anatomy.stacks[0], number, original, layer, theirs, ours)
            groups = pair.groups(everything=self.everything)
            pair.ask(groups)
            for group in groups:
                pair.fit(group, self.plan, self.masks)
            pair.advance()

    def dense(self) -> None:
        """Fits the map behind an embedding to what the original gives."""
        if self.small.dense is None:
            return
        pooled = dataclasses.replace(self.small.encoding, normalize=False)
        dense, self.small.dense = self.small.dense, None
        encoding, self.small.encoding = self.small.encoding, pooled
        task = ModuleFit(dense, ("fixed", "hidden"), None)
        for batch in range(len(self.batches)):
            ours, theirs = self._forward(self.small, batch), self._forward(self.model, batch)
            assert ours is not None and theirs is not None
            task.add(ours, theirs, None)
        task.solve()
        self.small.dense, self.small.encoding = dense, encoding


class _Pair:
    """One layer of the original, and what is left of it."""

    def __init__(
        self,
        stack: Stack,
        number: int,
        original: nn.Module,
        layer: nn.Module,
        theirs: LayerRunner,
        ours: LayerRunner,
    ) -> None:
        self.stack, self.number = stack, number
        self.original, self.layer, self.theirs, self.ours = original, layer, theirs, ours
        self.norms = norms(layer, stack.tensors)
        self.order: list[str] = []
        self.wanted: list[dict[str, tuple[Tensor, Tensor]]] = []  # of each batch

    def groups(self, *, everything: bool) -> list[list[str]]:
        """Modules to fit in the order they run; those that read the same together.

        Args:
            everything: All that read or write the residual stream, or what heads write alone.
        """
        writers = {path for path in (self.stack.attention_out, self.stack.ffn_out) if path}
        wanted = set(readers(self.layer, self.stack.tensors)) | set(self.norms) | writers
        ran: list[tuple[str, int]] = []

        def note(path: str) -> Any:
            return lambda module, args, output: ran.append((path, args[0].data_ptr()))

        handles = [
            self.layer.get_submodule(path).register_forward_hook(note(path)) for path in wanted
        ]
        try:
            self.ours.run(self.layer, self.number, 0, self.ours.inputs[0])
        finally:
            for handle in handles:
                handle.remove()
        self.order = [path for path, _ in ran]
        if not everything:
            return [[self.stack.attention_out]]
        groups: list[list[str]] = []
        last = None
        for path, place in ran:
            alone = path in self.norms or path in writers
            if not alone and place == last:
                groups[-1].append(path)
            else:
                groups.append([path])
            last = None if alone else place
        return groups

    def ask(self, groups: Sequence[Sequence[str]]) -> None:
        """Runs the original once, and keeps what its modules give, and its own output."""
        every = [path for group in groups for path in group]
        self.wanted = []
        for batch in range(len(self.theirs.inputs)):
            taps, out = self._run(self.original, every, self.theirs, batch, to_the_end=True)
            self.wanted.append(taps)
            assert out is not None
            self.theirs.inputs[batch] = out

    def fit(self, group: Sequence[str], plan: Plan, masks: Sequence[Tensor]) -> None:
        """Fits some modules that read the same."""
        tensors, sandwich = self.stack.tensors, self.stack.sandwich
        tasks = {}
        for path in group:
            dims = tensors[f"{path}.weight"]
            module = self.layer.get_submodule(path)
            dims = dims if len(dims) == 1 or isinstance(module, nn.Linear) else dims[::-1]
            tasks[path] = ModuleFit(module, dims, plan.index(dims[0], self.number))
        for batch, mask in enumerate(masks):
            found, _ = self._run(self.layer, group, self.ours, batch, to_the_end=False)
            for path, task in tasks.items():
                target = task.sliced(self.wanted[batch][path][1])
                if path in (self.stack.attention_out, self.stack.ffn_out) and not sandwich:
                    total, _ = self.wanted[batch][f"{path} +"]
                    own_total, own_output = found[f"{path} +"]
                    target = task.sliced(total) - (own_total - own_output)
                task.add(found[path][0], target, mask)
        for task in tasks.values():
            task.solve()

    def _run(
        self,
        layer: nn.Module,
        group: Sequence[str],
        runner: LayerRunner,
        batch: int,
        *,
        to_the_end: bool,
    ) -> tuple[dict[str, tuple[Tensor, Tensor]], Tensor | None]:
        """What goes into modules and comes out, and the layer's output if it is run to the end.

        Of a module that writes to the residual stream, ``path +`` holds the sum and the output.
        """
        sums: dict[str, nn.Module] = {}
        writers = (self.stack.attention_out, self.stack.ffn_out)
        for path in (path for path in group if path in writers):
            after = self.order[self.order.index(path) + 1 :]
            if norm := next((one for one in after if one in self.norms), None):
                sums[path] = layer.get_submodule(norm)
        open_end = any(path in writers and path not in sums for path in group)
        modules = {path: layer.get_submodule(path) for path in group}
        watched = {*modules.values(), *sums.values()}
        stop = not (to_the_end or open_end)
        out = None
        with _tapped(watched, stop=stop) as taps, contextlib.suppress(_SeenAll):
            out = runner.run(layer, self.number, batch, runner.inputs[batch])
        found = {path: taps[module] for path, module in modules.items()}
        for path in (path for path in group if path in writers):
            total = taps[sums[path]][0] if path in sums else out
            assert total is not None
            found[f"{path} +"] = total, found[path][1]
        return found, out

    def advance(self) -> None:
        """Moves the states of what is left through the layer."""
        for batch, states in enumerate(self.ours.inputs):
            self.ours.inputs[batch] = self.ours.run(self.layer, self.number, batch, states)


class _SeenAll(Exception):
    """Ends a pass when all that is watched has run."""


@contextlib.contextmanager
def _tapped(
    modules: Iterable[nn.Module], *, stop: bool = False
) -> Iterator[dict[nn.Module, tuple[Tensor, Tensor]]]:
    """What goes into modules and comes out of them while a block runs, in float32.

    Args:
        modules: To watch.
        stop: Raise `_SeenAll` when each has run.
    """
    found: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    watched = list(modules)

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        out = output[0] if isinstance(output, tuple) else output
        found[module] = args[0].detach().float(), out.detach().float()
        if stop and len(found) == len(watched):
            raise _SeenAll

    handles = [module.register_forward_hook(hook) for module in watched]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
