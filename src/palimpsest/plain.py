"""Settings from plain data: JSON or YAML into a dataclass, with every wrong name or value refused by name.

What a field may hold is read from its annotation, once, as a JSON schema: the same one that configuration files are held to.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from palimpsest.errors import SettingsError

T = TypeVar("T")
NAMES = {
    "boolean": "true or false", "integer": "a whole number", "number": "a number", "string": "text", "null": "null",
    "object": "names with values",
}  # fmt: skip
# numpy takes no others, and torch none beyond 2**64, where a training's seed times its steps would come.
SEEDS = (0, 2**32 - 1)
SIMPLE = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}


def build(kind: type[T], content: Mapping[str, Any], owner: str, beside: Iterable[str] = ()) -> T:
    """An instance of a dataclass from what JSON or YAML states: lists become tuples, 15000 is 15000.0 where a number is meant.

    Args:
        owner: whose settings these are, for messages: "grace".
        beside: names that may stand among them and say something else; they are left out.

    Raises:
        SettingsError: an unknown name, a value of another type, a missing one, or one that the dataclass itself refuses.
    """
    if not isinstance(content, Mapping):
        raise SettingsError(f"{owner}: expected names with values, found {content!r:.60}")
    schema, hints = schema_of(kind), _hints(kind)  # type: ignore[arg-type]
    chosen = {name: value for name, value in content.items() if name in hints or name not in set(beside)}
    if unknown := sorted(set(chosen) - set(hints), key=str):
        name = str(unknown[0])
        known = ", ".join(hints)
        raise SettingsError(f"{owner} has no setting {name!r}{suggest(name, hints)}. It has: {known}")
    if missing := [name for name in schema["required"] if name not in chosen]:
        raise SettingsError(f"{owner}: the setting {missing[0]!r} is missing")
    for name, value in chosen.items():
        _check(value, schema["properties"][name], f"{owner}: setting {name}")
    try:
        return kind(**{name: _typed(value, hints[name]) for name, value in chosen.items()})
    except (TypeError, ValueError, OverflowError, AttributeError, LookupError) as error:
        raise SettingsError(f"{owner}: a value cannot be used ({error})") from error


@functools.cache
def schema_of(kind: type) -> dict[str, Any]:
    """JSON schema of a dataclass of plain values.

    Raises:
        SettingsError: a field has a type that a configuration file cannot state.
    """
    hints, properties = _hints(kind), {}
    for entry in dataclasses.fields(kind):
        schema = _schema(hints[entry.name], f"{kind.__qualname__}.{entry.name}")
        if entry.default is not dataclasses.MISSING:
            schema["default"] = plain(entry.default)
        elif entry.default_factory is not dataclasses.MISSING:
            schema["default"] = plain(entry.default_factory())
        properties[entry.name] = schema
    required = [name for name, schema in properties.items() if "default" not in schema]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def plain(value: Any) -> Any:
    """Tuples as lists and dataclasses as dicts, all the way down: what JSON can state."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {name: plain(entry) for name, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return value


def check_whole(value: Any, what: str, least: int = 1, most: int | None = None) -> int:
    """The value, if it is a whole number between bounds (both count).

    Raises:
        SettingsError: it is something else.
    """
    good = isinstance(value, int) and not isinstance(value, bool)
    if not good or value < least or (most is not None and value > most):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise SettingsError(f"{what} is {value!r:.60}; expected a whole number {bounds}")
    return value


def unwritable(content: Any, place: str = "") -> Iterator[str]:
    """What no file of results can state and JSON or YAML lets through, each with its place: "options.alpha is nan"."""
    where = place or "the whole"
    if isinstance(content, Mapping):
        for name, inner in content.items():
            if isinstance(name, str):
                yield from unwritable(name, f"a key of {where}")
                yield from unwritable(inner, f"{place}.{name}" if place else name)
            else:  # YAML reads on, yes and 1 without quotes as something else
                yield f"{where} has the key {name!r:.40}, which is no text. Put it into quotes"
    elif isinstance(content, list | tuple):
        for number, inner in enumerate(content):
            yield from unwritable(inner, f"{where}[{number}]")
    elif isinstance(content, float) and not math.isfinite(content):
        yield f"{where} is {content}. Give a finite number"
    elif isinstance(content, str) and not content.isascii():
        try:
            content.encode()
        except UnicodeEncodeError:
            yield f"{where} = {content!r:.40} holds half a character, which no file takes. Give whole ones"


def suggest(name: str, known: Iterable[str]) -> str:
    """Text " (did you mean ...?)" when a known name is close, else nothing."""
    close = difflib.get_close_matches(str(name), list(map(str, known)), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {entry.name: hints[entry.name] for entry in dataclasses.fields(kind)}


def _check(value: Any, schema: dict[str, Any], where: str) -> None:
    import jsonschema

    try:
        jsonschema.Draft202012Validator(schema).validate(plain(value))
    except jsonschema.ValidationError as error:
        raise SettingsError(f"{where} = {value!r:.80} is not allowed: expected {_words(schema)}") from error


def _words(schema: dict[str, Any]) -> str:
    """What a schema of a field allows, in words."""
    if "enum" in schema:
        return f"one of {', '.join(map(repr, schema['enum']))}"
    if "anyOf" in schema:
        return " or ".join(map(_words, schema["anyOf"]))
    if schema["type"] == "array":
        parts = [schema["items"]] if "items" in schema else schema.get("prefixItems", [])
        return f"a list of ({', '.join(map(_words, parts)) or 'values'})"
    return NAMES[schema["type"]]


def _typed(value: Any, hint: Any) -> Any:
    """Lists as tuples where the field holds tuples, and the number type that is meant."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if isinstance(value, list | tuple):
        kinds = {option: typing.get_origin(option) or option for option in options}
        sequence = next((option for option, kind in kinds.items() if kind in (list, tuple)), None)
        inner = typing.get_args(sequence)
        alike = len(inner) < 2 or Ellipsis in inner
        hints = [inner[0] if inner else None] * len(value) if alike else list(inner)
        items = [_typed(item, own) for item, own in zip(value, hints, strict=True)]
        return items if kinds.get(sequence) is list else tuple(items)
    if isinstance(value, int | float) and not isinstance(value, bool):
        if float in options and int not in options:
            return float(value)
        if int in options and float not in options:
            return int(value)
    return value


def _schema(kind: Any, name: str) -> dict[str, Any]:
    if kind in SIMPLE:
        return {"type": SIMPLE[kind]}
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_schema(argument, name) for argument in arguments]}
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin in (list, tuple):
        items = [argument for argument in arguments if argument is not Ellipsis]
        parts = [_schema(item, name) for item in items]
        if origin is list or Ellipsis in arguments or not items:
            return {"type": "array", **({"items": parts[0]} if items else {})}
        return {"type": "array", "prefixItems": parts, "minItems": len(parts), "maxItems": len(parts)}
    if origin is dict or kind is dict:
        return {"type": "object"}
    raise SettingsError(
        f"setting {name} has the type {kind}, which a configuration file cannot state. Use plain types"
    )
