"""Settings as frozen dataclasses: changed by `key=value` texts, to JSON and back; unknown names are errors."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from repconv.errors import SearchError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = TypeVar("Settings", bound="DataclassInstance")


def changed(config: Settings, settings: Iterable[str]) -> Settings:
    """`config` changed by `key=value` texts; lists are separated by commas, numbers may be fractions.

    Raises:
        SearchError: an unknown key, with the nearest, or a value of another type.
    """
    changes: dict[str, Any] = {}
    hints = get_type_hints(type(config))
    for key, value in given(settings).items():
        if key not in hints:
            raise SearchError(unknown("setting", key, hints))
        changes[key] = _read(key, value, hints[key])
    return dataclasses.replace(config, **changes)


def given(texts: Iterable[str]) -> dict[str, str]:
    """Settings of `key=value` texts by name, later ones in place of earlier ones.

    Raises:
        SearchError: one is no `key=value`.
    """
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise SearchError(f"a setting is key=value, got {text!r}")
        found[key] = value
    return found


def settings_to_dict(config: DataclassInstance, schema: str) -> dict[str, Any]:
    """Plain containers, with their schema."""
    return {"schema": schema, **json.loads(json.dumps(dataclasses.asdict(config)))}


def settings_from_dict(
    kind: type[Settings],
    schema: str,
    content: object,
    where: str = "the configuration",
) -> Settings:
    """The settings in what `settings_to_dict` made; those left out are as usual.

    Raises:
        SearchError: not of this schema, an unknown key, or a value that makes no sense.
    """
    if not isinstance(content, Mapping) or content.get("schema") != schema:
        raise SearchError(f"{where} is not of schema {schema}")
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in content.items():
        if key == "schema":
            continue
        if key not in hints:
            raise SearchError(f"{where}: {unknown('setting', key, hints)}")
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        values[key] = _read(key, text, hints[key])
    try:
        return kind(**values)
    except SearchError as error:
        raise SearchError(f"{where}: {error}") from None


def check_least(config: DataclassInstance, least: Mapping[str, float]) -> None:
    """Refuse numbers below what makes sense.

    Raises:
        SearchError: with the setting's name.
    """
    for name, value in least.items():
        if not getattr(config, name) >= value:
            raise SearchError(f"{name} is at least {value}, got {getattr(config, name)}")


def check_seed(seed: int) -> None:
    """Refuse a seed that no generator takes.

    Raises:
        SearchError: it has more than 63 bits.
    """
    if seed >= 2**63:
        raise SearchError(f"seed is below 2^63 = {2**63}, got {seed}")


def check_shares(config: DataclassInstance, names: Iterable[str]) -> None:
    """Refuse numbers outside [0, 1).

    Raises:
        SearchError: with the setting's name.
    """
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise SearchError(f"{name} is at least 0 and below 1, got {getattr(config, name)}")


_TRUTHS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """What to say of a name that is not among the known ones."""
    near = get_close_matches(name, known, 1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"unknown {what} {name!r}{hint}; they are {', '.join(known)}"


def _read(key: str, text: str, kind: Any) -> Any:  # noqa: ANN401  # a type annotation, and a value of that type
    """The value of a setting, in the type of its annotation."""
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise SearchError(f"{key} is one of {', '.join(get_args(kind))}, got {text!r}")
        return text
    if get_origin(kind) is tuple:
        return tuple(_read(key, part.strip(), get_args(kind)[0]) for part in text.split(",") if part.strip())
    if kind is bool:
        if text.lower() not in _TRUTHS:
            raise SearchError(f"{key} is true or false, got {text!r}")
        return _TRUTHS[text.lower()]
    if kind is float and "/" in text:
        above, _, below = text.partition("/")
        return _read(key, above, float) / (_read(key, below, float) or float("nan"))
    try:
        return kind(text)
    except ValueError:
        wanted = {int: "a whole number", float: "a number"}[kind]
        raise SearchError(f"{key} is {wanted}, got {text!r}") from None
