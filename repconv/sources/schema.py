"""What plain containers read from a file have to be, as a value; what is otherwise is said by its place in them.

A `Rule` looks at one value. Rules are made of others: `record({"mean": many(number())})`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping

Rule = Callable[[object, str], str]
"""From a value and its place, such as `blocks.stem.fixed[0]`, to what is wrong with it; "" where nothing is."""

_SHOWN = 60


def whole(least: int, most: int) -> Rule:
    """A whole number from `least` to `most`."""

    def rule(value: object, place: str) -> str:
        fits = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
        return "" if fits else _other(value, place, f"a whole number from {least} to {most}")

    return rule


def number(*, positive: bool = False) -> Rule:
    """A number; NaN and Inf are some unless it is to be positive."""

    def rule(value: object, place: str) -> str:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        if fits and (not positive or (isinstance(value, int | float) and 0 < value < math.inf)):
            return ""
        return _other(value, place, "a number above 0" if positive else "a number")

    return rule


def finite() -> Rule:
    """A number that a float holds, and neither NaN nor Inf."""

    def rule(value: object, place: str) -> str:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
        return "" if fits else _other(value, place, "a finite number")

    return rule


def text(*choices: str) -> Rule:
    """A text, one of `choices` where there are any."""

    def rule(value: object, place: str) -> str:
        fits = isinstance(value, str) and (not choices or value in choices)
        return "" if fits else _other(value, place, f"one of {', '.join(choices)}" if choices else "a text")

    return rule


def truth() -> Rule:
    """True or false."""
    return lambda value, place: "" if isinstance(value, bool) else _other(value, place, "true or false")


def optional(rule: Rule) -> Rule:
    """Nothing, or what `rule` says."""
    return lambda value, place: "" if value is None else rule(value, place)


def many(rule: Rule, *, least: int = 0, most: int | None = None) -> Rule:
    """A list, of at least and at most so many, of what `rule` says."""

    def found(value: object, place: str) -> str:
        if not isinstance(value, list | tuple):
            return _other(value, place, "a list")
        if not least <= len(value) <= (len(value) if most is None else most):
            allowed = f"at least {least}" if most is None else f"{least} to {most}"
            return f"{place or 'it'} has {len(value)}, expected {allowed}"
        return next((said for i, part in enumerate(value) if (said := rule(part, f"{place}[{i}]"))), "")

    return found


def each(rule: Rule) -> Rule:
    """An object of any names, under each what `rule` says."""

    def found(value: object, place: str) -> str:
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            return _other(value, place, "an object with names")
        return next((said for name, part in value.items() if (said := rule(part, _under(place, name)))), "")

    return found


def record(needed: Mapping[str, Rule], possible: Mapping[str, Rule] | None = None) -> Rule:
    """An object that has `needed` and may have `possible`; other names are left to later versions."""

    def found(value: object, place: str) -> str:
        if not isinstance(value, Mapping):
            return _other(value, place, "an object")
        lacks = next((name for name in needed if name not in value), None)
        if lacks is not None:
            return f"{_under(place, lacks)} is missing"
        rules = {**(possible or {}), **needed}
        return next(
            (said for n, rule in rules.items() if n in value and (said := rule(value[n], _under(place, n)))), ""
        )

    return found


def plain(largest: int) -> Rule:
    """Texts, truths, nothing, numbers that are at most `largest`, and lists and objects of those."""
    scalar = whole(-largest, largest)

    def found(value: object, place: str) -> str:
        if isinstance(value, list | tuple):
            return many(found)(value, place)
        if isinstance(value, Mapping):
            return each(found)(value, place)
        if isinstance(value, int) and not isinstance(value, bool):
            return scalar(value, place)
        return "" if value is None or isinstance(value, str | bool | float) else _other(value, place, "a plain value")

    return found


def _under(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _other(value: object, place: str, expected: str) -> str:
    shown = repr(value)
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
    return f"{place or 'it'} is {shown}, expected {expected}"
