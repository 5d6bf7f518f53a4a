"""What a recipe may say about a format besides its name: known options, and none without effect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..eval.errors import RecipeError, nearest

if TYPE_CHECKING:
    from ..eval.tasks import Signal


@dataclass(frozen=True)
class Option:
    """One option of a format.

    Attributes:
        default: Its value where a recipe says nothing.
        choices: The words it may be; empty for a whole number of at least 1.
        needs: Another option and the value it must have for this one to have an effect.
        signals: What a model must give for any other value than the default; empty for all.
    """

    default: Any
    choices: tuple[str, ...] = ()
    needs: tuple[str, str] | None = None
    signals: tuple[Signal, ...] = ()


def resolve_options(
    name: str, known: Mapping[str, Option], given: Mapping[str, Any], signal: Signal
) -> dict[str, Any]:
    """All options of a format, those that were given and the defaults of the others.

    Args:
        name: The format's name, for messages.
        known: Its options.
        given: What the recipe says.
        signal: What the model gives.

    Raises:
        RecipeError: If one is unknown, has a value it cannot have, or would have no effect.
    """
    found = {key: option.default for key, option in known.items()} | dict(given)
    for key, value in given.items():
        if key not in known:
            has = f"It has: {', '.join(known)}." if known else "It has none."
            raise RecipeError(f"'{name}' has no option '{key}'.{nearest(str(key), known)} {has}")
        option = known[key]
        if option.choices and value not in option.choices:
            words = " or ".join(option.choices)
            close = nearest(str(value), option.choices)
            raise RecipeError(f"{key} of '{name}': expected {words}, got {value!r}.{close}")
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if not option.choices and not whole:
            raise RecipeError(
                f"{key} of '{name}': expected a whole number of at least 1, got {value!r}."
            )
        other, wanted = option.needs or ("", "")
        if option.needs and value != option.default and found.get(other) != wanted:
            raise RecipeError(
                f"{key} of '{name}' has an effect with {other}: {wanted} alone; say so, or leave "
                "it out."
            )
        if value != option.default and option.signals and signal not in option.signals:
            raise RecipeError(
                f"{key}: {value} of '{name}' is for models that give "
                f"{' or '.join(option.signals)}; this one gives {signal}. Leave it out."
            )
    return found
