"""Fewer heads, hidden channels or experts: the cut, and the fit of all that reads or writes them.

The cut model is walked beside the original, module by module in the order they run. Each is fitted
in closed form to what the original's gives, from what the cut model has there: a linear map by
least squares, a norm channel by channel. What is added to the residual stream is fitted to bring
the sum to the original's, so that a later module mends what the cut of an earlier one lost.

FFN channels that are chosen beforehand are cut with the rest.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..eval.models import TextModel
from .anatomy import Anatomy
from .calibration import LayerRunner, another_forward
from .compensation import run_to_sum
from .module_fit import LinearFit, NormFit, inverse_rms
from .modules import copy_sharing, norms, outer, readers
from .plan import Cut, Plan
from .rotation import Turn
from .surgery import cut


def narrow(model: TextModel, what: Cut, turn: Turn | None = None) -> TextModel:
    """Cuts heads, hidden channels or experts, and fits nothing.

    An embedding model with fewer hidden channels gets a dense map that puts them where they were.

    Args:
        model: Is not changed.
        what: Cuts of these axes, and of FFN channels.
        turn: Another basis of the hidden space, in which hidden channels are counted.
    """
    small, _ = cut(model, what, turn=turn)
    if what.hidden is not None and model.signal == "embedding" and small.dense is None:
        size = int(model.config.hidden_size)
        dense = nn.Linear(len(what.hidden), size, dtype=model.backbone.dtype)
        with torch.no_grad():
            dense.weight.zero_()
            dense.weight[list(what.hidden), range(len(what.hidden))] = 1
            dense.bias.zero_()
        small.dense = dense.to(model.backbone.device)
    return small.eval()


def fit_narrowed(
    model: TextModel,
    small: TextModel,
    anatomy: Anatomy,
    what: Cut,
    rows: LayerRunner,
    layers: Sequence[int],
    turn: Turn | None = None,
) -> TextModel:
    """Fits what remains of heads and hidden channels.

    Where the hidden size is cut, the layers that stay are fitted to bridge those that go: what ends
    a layer to the sum at the end of the gap behind it, and its norm to the one that stands there.

    Args:
        model: The original; is not changed.
        small: What `narrow` made of it; is not changed.
        anatomy: Of its architecture.
        what: Was cut.
        rows: Runs the original's layers on calibration rows.
        layers: That will stay, ascending.
        turn: As `narrow` had it.

    Returns:
        A model of the narrowed one's shape; it shares the numbers that are not fitted.
    """
    if what.hidden is None and what.heads is None and what.kv_heads is None:
        return small  # what experts gave is spread over the others by the router itself
    stack = anatomy.stacks[0]
    own: list[nn.Module] = [
        layer if what.hidden is not None else layer.get_submodule(stack.attention_out)
        for layer in anatomy.layers_of(small.backbone)
    ]
    if what.hidden is not None:
        own += [
            one for path, one in outer(small.backbone).items() if _is_fitted(path, one, anatomy)
        ]
        own += [small.dense] if small.dense is not None else []
    fitted = copy_sharing(small, own)
    walk = _Walk(model, fitted, anatomy, what, rows, turn)
    if what.hidden is not None:
        walk.outside(before=True)
    walk.layers(layers if what.hidden is not None else range(len(rows.layers)))
    if what.hidden is not None:
        walk.outside(before=False)
        walk.dense()
    return fitted


def _is_fitted(path: str, module: nn.Module, anatomy: Anatomy) -> bool:
    """Whether a module outside the layers is fitted: norms and maps, no embeddings."""
    dims = anatomy.tensors.get(f"{path}.weight", ("fixed",))
    kind = isinstance(module, nn.Linear) or len(dims) == 1
    return kind and "hidden" in dims and "vocabulary" not in dims


class _Kept:
    """What is left of the original's states and outputs in the cut model."""

    def __init__(self, plan: Plan, turn: Turn | None) -> None:
        self.plan, self.turn = plan, turn
        self._last: tuple[Tensor, Tensor] | None = None
        """A sum that was turned: a norm reads it next."""

    def target(
        self, module: nn.Module, dims: Sequence[Any], layer: int, read: Tensor, wrote: Tensor
    ) -> Tensor:
        """What a module of the cut model should give, from what the original's reads and writes."""
        if self.turn is not None and dims[0] == "hidden":
            whole = read if len(dims) == 1 else wrote
            if self._last is None or self._last[0] is not whole:
                self._last = whole, self.turn.states(whole)
            # Where the space is turned, norms are without weights of their own.
            turned = self._last[1]
            return turned * inverse_rms(module, read) if len(dims) == 1 else turned
        index = self.plan.index(dims[0], layer)
        return wrote if index is None else wrote.index_select(-1, index.to(wrote.device))


class _Walk:
    """The original and its cut, side by side."""

    def __init__(
        self,
        model: TextModel,
        small: TextModel,
        anatomy: Anatomy,
        what: Cut,
        rows: LayerRunner,
        turn: Turn | None,
    ) -> None:
        self.model, self.small, self.anatomy = model, small, anatomy
        self.kept = _Kept(Plan(anatomy, model.config, what), turn)
        self.everything = what.hidden is not None
        self.masks = rows.masks
        self.rows, self.own = rows, rows.of(small)
        self.ours, self.theirs = outer(small.backbone), outer(model.backbone)
        self.ends: tuple[list[Tensor], list[Tensor]] | None = None
        """States after the last layer, of the original and of its cut."""

    def outside(self, *, before: bool) -> None:
        """Fits the norms and maps outside the layers: those before the first, or all after it."""
        order = self._outer_order()
        for path in [path for path, place in order.items() if (place < 0) == before]:
            module, original = self.ours[path], self.theirs[path]
            if not _is_fitted(path, module, self.anatomy):
                continue
            if path.startswith("pooler.") and self.model.signal == "embedding":
                continue  # BERT computes it, and nothing reads it
            dims = self.anatomy.tensors[f"{path}.weight"]
            task = NormFit(module) if len(dims) == 1 else LinearFit([module])
            for batch, mask in enumerate(self.masks):
                with _Taps({original}, {original}) as wanted:
                    self._finish(self.rows, batch, 0)
                with _Taps({module}) as found:
                    self._finish(self.own, batch, 1)
                read, wrote = wanted.read[original], wanted.wrote[original]
                target = self.kept.target(original, dims, 0, read, wrote)
                given = found.read[module]
                if target.dim() == 3:
                    given, target = given[mask], target[mask]
                task.add(given, [target])
            task.solve()
        if before:
            self.own = self.rows.of(self.small)

    def _outer_order(self) -> dict[str, int]:
        """Modules outside the layers in the order they run; below 0 before the first layer."""
        ran: list[str] = []

        def note(path: str) -> Any:
            return lambda module, args, output: ran.append(path)

        first = self.own.layers[0]
        handles = [module.register_forward_hook(note(path)) for path, module in self.ours.items()]
        handles.append(first.register_forward_hook(note("")))
        try:
            self.own.finish(0, None)
        finally:
            for handle in handles:
                handle.remove()
        start = ran.index("")
        return {path: place - start for place, path in enumerate(ran) if path}

    def _finish(self, runner: LayerRunner, batch: int, side: int) -> Tensor:
        states = None if self.ends is None else self.ends[side][batch]
        return runner.finish(batch, states)

    def layers(self, stay: Sequence[int]) -> None:
        """Fits layer after layer.

        Args:
            stay: The layers to fit; those between them are gone.
        """
        theirs, ours = list(self.rows.inputs), list(self.own.inputs)
        for batch, states in enumerate(theirs):
            for number in range(stay[0]):
                states = self.rows.run(self.rows.layers[number], number, batch, states)
            theirs[batch] = states
        ends = [*(i - 1 for i in stay[1:]), len(self.rows.layers) - 1]
        for number, end in zip(stay, ends, strict=True):
            pair = _Pair(self.anatomy, number, self.rows, self.own, theirs, ours)
            pair.take_norm(end)
            for group in pair.ask(self.kept, end, everything=self.everything):
                pair.fit(group)
            pair.advance()
        self.ends = theirs, ours

    def dense(self) -> None:
        """Fits the map behind an embedding to what the original gives."""
        if self.small.dense is None:
            return
        dense, self.small.dense = self.small.dense, None
        encoding = self.small.encoding
        self.small.encoding = dataclasses.replace(encoding, normalize=False)
        task = LinearFit([dense])
        for batch in range(len(self.masks)):
            task.add(self._finish(self.own, batch, 1), [self._finish(self.rows, batch, 0)])
        task.solve()
        self.small.dense, self.small.encoding = dense, encoding


class _Pair:
    """One layer of the original, and what is left of it; the states of both before it."""

    def __init__(
        self,
        anatomy: Anatomy,
        number: int,
        theirs: LayerRunner,
        ours: LayerRunner,
        their_states: list[Tensor],
        our_states: list[Tensor],
    ) -> None:
        self.anatomy, self.stack = anatomy, anatomy.stacks[0]
        self.number, self.theirs, self.ours = number, theirs, ours
        self.their_states, self.our_states = their_states, our_states
        self.original, self.layer = theirs.layers[number], ours.layers[number]
        self.norms = norms(self.layer, self.stack.tensors)
        self.writers = {path for path in (self.stack.attention_out, self.stack.ffn_out) if path}
        self.summed = set() if self.stack.sandwich else self.writers
        """Maps that are fitted to bring the sum they are added to to the original's."""
        self.order: list[str] = []
        self.wanted: list[dict[str, Tensor]] = []  # of each batch
        self._ends: list[tuple[Tensor, Tensor]] = []
        """What the map at the layer's end reads, and what its output is added to."""

    def take_norm(self, end: int) -> None:
        """Gives the layer the norm at the end of the gap behind it."""
        if (path := self.anatomy.ffn_norm) is not None and end != self.number:
            state = self.ours.layers[end].get_submodule(path).state_dict()
            self.layer.get_submodule(path).load_state_dict(state)

    def ask(self, kept: _Kept, end: int, *, everything: bool) -> list[list[str]]:
        """Runs the original once, and keeps what its modules should give, and its own output.

        Args:
            kept: What is left of it.
            end: The last layer of the gap behind, whose sum and norm this one's are fitted to.
            everything: Ask all that read or write the residual stream, or what heads write alone.

        Returns:
            Modules to fit in the order they run; those that read the same together.
        """
        asked = set(self.norms) | {self.stack.attention_out}
        if everything:
            asked |= self.writers | set(readers(self.original, self.stack.tensors))
        modules = {path: self.original.get_submodule(path) for path in asked}
        paths = {module: path for path, module in modules.items()}
        groups: list[list[str]] = []
        for batch, states in enumerate(self.their_states):
            known = (self.theirs.known or {}).get((self.number, batch))
            # What the layer gives in the end may be known; then only what is asked is computed.
            with _Taps(set(paths), set(paths), to_the_end=known is None) as taps:
                out = self.theirs.run(self.original, self.number, batch, states)
            if known is not None:
                out = known[1]
            self.theirs.learn(self.number, batch, out)
            met = None
            for number in range(self.number + 1, end + 1):
                met, out = run_to_sum(self.theirs, self.anatomy, number, batch, out)
            self.their_states[batch] = out
            self.order = [paths[module] for module in taps.wrote]
            groups = [[self.stack.attention_out]]
            if everything:
                groups = self._groups({path: taps.read[modules[path]] for path in self.order})
            wanted = {}
            for path in itertools.chain.from_iterable(groups):
                read, wrote = taps.read[modules[path]], taps.wrote[modules[path]]
                if path in self.summed:
                    norm = self._norm_after(path)
                    wrote = taps.read[modules[norm]] if norm else out
                if met is not None and path == self.stack.ffn_out and path in self.summed:
                    wrote = met
                if met is not None and path == self.anatomy.ffn_norm:
                    read, wrote = met, out
                dims = self._dims(path)
                wanted[path] = kept.target(modules[path], dims, self.number, read, wrote)
            self.wanted.append(wanted)
        return groups

    def _groups(self, read: Mapping[str, Tensor]) -> list[list[str]]:
        groups: list[list[str]] = []
        last = None
        for path, given in read.items():
            biased = getattr(self.original.get_submodule(path), "bias", None) is not None
            same = given.data_ptr(), biased
            alone = path in self.norms or path in self.writers
            if not alone and same == last:
                groups[-1].append(path)
            else:
                groups.append([path])
            last = None if alone else same
        return groups

    def _norm_after(self, path: str) -> str | None:
        """The norm that reads the sum which a map's output goes into; None at the layer's end."""
        after = self.order[self.order.index(path) + 1 :]
        return next((one for one in after if one in self.norms), None)

    def _dims(self, path: str) -> Sequence[Any]:
        """What the dimensions of a module's weight are, (out, in) or (channels)."""
        dims = self.stack.tensors[f"{path}.weight"]
        turned = len(dims) == 2 and not isinstance(self.layer.get_submodule(path), nn.Linear)
        return dims[::-1] if turned else dims

    def fit(self, group: Sequence[str]) -> None:
        """Fits some modules that read the same."""
        modules = [self.layer.get_submodule(path) for path in group]
        task = NormFit(modules[0]) if group[0] in self.norms else LinearFit(modules)
        for batch, mask in enumerate(self.ours.masks):
            wanted = [self.wanted[batch].pop(path)[mask] for path in group]
            if group[0] in self.summed:
                read, rest = self._before_sum(group[0], batch)
                wanted = [wanted[0].float() - rest[mask].float()]
            else:
                with _Taps({modules[0]}) as taps:
                    self.ours.run(self.layer, self.number, batch, self.our_states[batch])
                read = taps.read[modules[0]]
            task.add(read[mask], wanted)
        task.solve()

    def _before_sum(self, path: str, batch: int) -> tuple[Tensor, Tensor]:
        """What a map reads, and what its output is added to."""
        module: Any = self.layer.get_submodule(path)
        seen: list[Tensor] = []

        def silent(read: Tensor) -> Tensor:
            seen.append(read)
            return read.new_zeros(*read.shape[:-1], self.our_states[batch].shape[-1])

        norm = self._norm_after(path)
        if norm is None:
            with another_forward(module, silent):
                rest = self.ours.run(self.layer, self.number, batch, self.our_states[batch])
            if self.ours.may_keep(seen[0].shape[-1]):
                self._ends.append((seen[0], rest))
            return seen[0], rest
        end = self.layer.get_submodule(norm)
        with another_forward(module, silent), _Taps({end}) as taps:
            self.ours.run(self.layer, self.number, batch, self.our_states[batch])
        return seen[0], taps.read[end]

    def advance(self) -> None:
        """Moves the states of what is left through the layer."""
        if self._ends:
            out = self.layer.get_submodule(str(self.stack.ffn_out))
            with self.ours.computing():
                self.our_states[:] = [
                    (out(read) + rest).to(rest.dtype) for read, rest in self._ends
                ]
            return
        for batch, states in enumerate(self.our_states):
            self.our_states[batch] = self.ours.run(self.layer, self.number, batch, states)


class _SeenAll(Exception):
    """Ends a pass when all that is watched has run."""


class _Taps:
    """What goes into modules and comes out of them while a block runs.

    Args:
        reading: Modules whose input is kept.
        writing: Modules whose output is kept.
        to_the_end: Whether the block is run to its end when all has been seen.
    """

    def __init__(
        self,
        reading: set[nn.Module],
        writing: set[nn.Module] | None = None,
        *,
        to_the_end: bool = False,
    ) -> None:
        self.reading, self.writing, self.to_the_end = reading, writing or set(), to_the_end
        self.read: dict[nn.Module, Tensor] = {}
        self.wrote: dict[nn.Module, Tensor] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> _Taps:
        for module in self.reading:
            self._handles.append(module.register_forward_pre_hook(self._reads))
        for module in self.writing:
            self._handles.append(module.register_forward_hook(self._writes))
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> bool:
        for handle in self._handles:
            handle.remove()
        return kind is _SeenAll

    def _reads(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.read[module] = args[0].detach()
        self._end()

    def _writes(self, module: nn.Module, args: Any, output: Any) -> None:
        self.wrote[module] = (output[0] if isinstance(output, tuple) else output).detach()
        self._end()

    def _end(self) -> None:
        seen = len(self.read) + len(self.wrote) == len(self.reading) + len(self.writing)
        if seen and not self.to_the_end:
            raise _SeenAll
