"""What two cuts, one after the other, have kept of the model that came before both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

WHOLE = ("hidden", "vocabulary")
"""Axes with one list for the model."""
BY_LAYER = ("channels", "heads", "kv_heads", "experts")
"""Axes with a list for each layer that is kept."""


def compose(
    first: Mapping[str, Any] | None, second: Mapping[str, Any] | None, group: int = 1
) -> dict[str, Any]:
    """The index map of two cuts as of one.

    A hidden space that was turned before the second cut has directions of its own, which the first
    model's numbers do not name: ``hidden`` is then what was kept of them.

    Args:
        first: `Cut.index_map` of the first cut, or None for none.
        second: Of the cut of what the first left, or None.
        group: Query heads of each key and value head before both.

    Returns:
        In the numbering of the model before the first cut.
    """
    old, new = dict(first or {}), dict(second or {})
    if "kv_heads" in old and "heads" not in old and "heads" in new:
        old["heads"] = [
            [h * group + i for h in kept for i in range(group)] for kept in old["kv_heads"]
        ]
    found = {}
    for axis in ("layers", "decoder_layers", *WHOLE):
        if axis in old or axis in new:
            found[axis] = _of(old.get(axis), new.get(axis))
    stay = new.get("layers")
    for axis in BY_LAYER:
        lists = old.get(axis)
        if lists is not None and stay is not None:
            lists = [lists[place] for place in stay]
        if lists is None or axis not in new:
            kept = new.get(axis, lists)
        else:
            kept = [_of(*pair) for pair in zip(lists, new[axis], strict=True)]
        if kept is not None:
            found[axis] = kept
    return found


def _of(old: Sequence[int] | None, new: Sequence[int] | None) -> list[int]:
    """The old numbers of what is kept of what was kept."""
    if old is None or new is None:
        return list(old if new is None else new)  # type: ignore[arg-type]
    return [old[place] for place in new]
