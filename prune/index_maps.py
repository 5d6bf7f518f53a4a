"""What two cuts, one after the other, have kept of the model that came before both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

WHOLE = ("hidden", "vocabulary")
"""Axes with one list for the model."""
BY_LAYER = ("channels", "heads", "kv_heads", "experts")
"""Axes with a list for each layer that is kept."""


def compose(
    first: Mapping[str, Any] | None,
    second: Mapping[str, Any] | None,
    heads: int = 1,
    kv_heads: int = 1,
) -> dict[str, Any]:
    """The index map of two cuts as of one, for models with one stack of layers.

    A hidden space that was turned before the second cut has directions of its own, which the first
    model's numbers do not name: ``hidden`` is then what was kept of them.

    Args:
        first: `Cut.index_map` of the first cut, or None for none.
        second: Of the cut of what the first left, or None.
        heads: Query heads of a layer before both.
        kv_heads: Key and value heads of a layer before both.

    Returns:
        In the numbering of the model before the first cut.
    """
    old, new = dict(first or {}), dict(second or {})
    found: dict[str, Any] = {}
    for axis in ("layers", *WHOLE):
        if axis in old or axis in new:
            found[axis] = _of(old.get(axis), new.get(axis))
    stay = new.get("layers")
    if stay is not None:
        old |= {axis: [old[axis][place] for place in stay] for axis in BY_LAYER if axis in old}
    _say_heads(old, new, heads, kv_heads)
    for axis in BY_LAYER:
        if axis in old and axis in new:
            found[axis] = [_of(*pair) for pair in zip(old[axis], new[axis], strict=True)]
        elif axis in old or axis in new:
            found[axis] = old.get(axis, new.get(axis))
    return found


def _say_heads(old: dict[str, Any], new: dict[str, Any], heads: int, kv_heads: int) -> None:
    """Where one cut names heads, says of the other which went with its key and value heads."""
    if "heads" in new and "heads" not in old and "kv_heads" in old:
        old["heads"] = [_queries(kept, heads // kv_heads) for kept in old["kv_heads"]]
    if "heads" in old and "heads" not in new and "kv_heads" in new:
        groups = [len(kept) for kept in old["kv_heads"]] if "kv_heads" in old else None
        new["heads"] = [
            _queries(kept, len(old["heads"][i]) // (groups[i] if groups else kv_heads))
            for i, kept in enumerate(new["kv_heads"])
        ]


def _queries(kept: Sequence[int], each: int) -> list[int]:
    """The query heads of some key and value heads."""
    return [group * each + i for group in kept for i in range(each)]


def _of(old: Sequence[int] | None, new: Sequence[int] | None) -> list[int]:
    """The old numbers of what is kept of what was kept."""
    if old is None or new is None:
        return list(old if new is None else new)  # type: ignore[arg-type]
    return [old[place] for place in new]
