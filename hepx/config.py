"""YAML and command-line overrides -> strict settings. Knows no field of any stage.

Precedence: defaults of the settings < YAML file < `key.subkey=value` on the command line.
YAML is read with the scalar rules of YAML 1.2: `1e-3` is a number, `no` is a word.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from hepx.errors import ConfigError, closest


class Settings(BaseModel):
    """Base of all settings: unknown keys are refused, values do not change after they were checked."""

    model_config = ConfigDict(extra="forbid", frozen=True)


S = TypeVar("S", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 scalars and without repeated keys."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes exactly what `_Loader` would read as something else than text."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    repeated = sorted({str(key) for key in keys if keys.count(key) > 1})
    if repeated:
        line = node.start_mark.line + 1
        raise ConfigError(f"key '{repeated[0]}' is given twice in the block at line {line}; keep one of them.")
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
for _tag, _pattern, _first in (
    ("null", re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF")),
    ("int", re.compile(r"[-+]?[0-9]+"), list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern.pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))
_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def read_yaml(text: str) -> Any:
    """Read YAML text.

    >>> read_yaml("{lr: 1e-3, answer: no, n: 12}")
    {'lr': 0.001, 'answer': 'no', 'n': 12}
    """
    return yaml.load(text, Loader=_Loader)


def write_yaml(value: dict[str, Any]) -> str:
    """YAML text that `read_yaml` reads back unchanged."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def load(path: Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Read a YAML file and apply `key.subkey=value` overrides (a list's element by its number).

    Raises ConfigError if the file cannot be read, is not a mapping, or an override is not of the form `key=value`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot read '{path}': {error.strerror}. Give the path of a YAML file or of a run folder."
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"config '{path}' is not text in UTF-8. Give the path of a YAML file.") from error
    try:
        values = read_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"config '{path}' is not valid YAML: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"config '{path}': {error}") from error
    if not isinstance(values, dict):
        found = "is empty" if values is None else f"holds a {type(values).__name__}"
        raise ConfigError(f"config '{path}' {found}; expected a mapping of keys to values.")
    override(values, overrides)
    return values


def override(values: dict[str, Any], overrides: Iterable[str]) -> None:
    """Apply `key.subkey=value` overrides in place; ConfigError if one is not of this form or leads nowhere."""
    for one in overrides:
        name, equals, text = one.partition("=")
        if not equals or not name:
            raise ConfigError(f"override '{one}' is not of the form key=value, for example train.epochs=5.")
        try:
            apply_overrides(values, {name: read_yaml(text)})
        except yaml.YAMLError as error:
            raise ConfigError(f"override '{one}': the value is not valid YAML: {error}") from error


def apply_overrides(values: dict[str, Any], changes: dict[str, Any]) -> None:
    """Set `key.subkey` to its new value in place; ConfigError where the path leads nowhere."""
    for name, value in changes.items():
        _apply(values, name, value)


def _apply(values: dict[str, Any], name: str, value: Any) -> None:
    *parents, last = name.split(".")
    node: Any = values
    for parent in parents:
        node = _child(node, parent, name)
    if isinstance(node, list):
        node[_index(node, last, name)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise ConfigError(f"override '{name}': '{node}' is a plain value and has no key '{last}'.")


def _child(node: Any, key: str, name: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, key, name)]
    if isinstance(node, dict):
        return node.setdefault(key, {})
    raise ConfigError(f"override '{name}': '{node}' is a plain value and has no key '{key}'.")


def _index(items: list[Any], key: str, name: str) -> int:
    if not key.isdigit() or int(key) >= len(items):
        raise ConfigError(f"override '{name}': expected a position from 0 to {len(items) - 1} in a list, got '{key}'.")
    return int(key)


def parse(settings: type[S], values: Any, where: str) -> S:
    """Check `values` against `settings`; ConfigError names the key, what was expected, what was got and near keys."""
    try:
        return settings.model_validate(values)
    except ValidationError as error:
        problems = [_explain(settings, dict(problem)) for problem in error.errors()]
        raise ConfigError("; ".join(f"{where}: {problem}" for problem in problems)) from error


EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "text",
    "tuple": "a list",
    "list": "a list",
    "dict": "keys with values",
    "model": "keys with values",
    "literal": "one of {expected}",
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "a number not below {ge:g}",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "a number not above {le:g}",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
}
"""Kind of an error of pydantic, or the kind of value it is about -> what a user should have given."""


def _explain(settings: type[BaseModel], problem: dict[str, Any]) -> str:
    location = [part for part in problem["loc"] if not str(part).startswith("function-")]
    shown, around = _walk(settings, location)
    key = ".".join(shown)
    if problem["type"] == "extra_forbidden":
        known = around.model_fields if isinstance(around, type) and issubclass(around, BaseModel) else {}
        name, colon, _ = shown[-1].partition(":")
        mend = f"write a blank after the colon, '{name}: …'" if colon and name in known else closest(shown[-1], known)
        return f"unknown key '{key}'; {mend}"
    if problem["type"] == "missing":
        return f"key '{key}' is missing; add it"
    context = problem.get("ctx", {})
    if problem["type"] == "union_tag_not_found":
        return f"key '{key}.{context['discriminator'].strip(chr(39))}' is missing; add it"
    if problem["type"] == "union_tag_invalid":
        what = context["discriminator"].strip("'")
        return f"'{key}': unknown {what} '{context['tag']}'; expected one of {context['expected_tags']}"
    message = problem["msg"].removeprefix("Value error, ")
    expected = EXPECTED.get(problem["type"], EXPECTED.get(problem["type"].split("_")[0]))
    if expected is not None:
        message = f"expected {expected.format(**context)}"
    if not key:
        return message
    got = f", got {problem['input']!r}" if not isinstance(problem["input"], dict) or expected else ""
    return f"'{key}': {message[0].lower()}{message[1:]}{got}"


def _walk(settings: type[BaseModel], location: list[Any]) -> tuple[list[str], Any]:
    """The keys that a location of pydantic stands for, without its tags of unions; and the settings the last is in."""
    shown: list[str] = []
    current: Any = settings
    around: Any = settings
    for part in location:
        while get_origin(current) is Annotated:
            current = get_args(current)[0]
        origin, inner = get_origin(current), get_args(current)
        if origin in (Union, UnionType):
            current = next((member for member in inner if _has_tag(member, part)), None)
            continue
        shown.append(str(part))
        around = current
        if isinstance(current, type) and issubclass(current, BaseModel):
            fields = current.model_fields.items()
            current = next((field.annotation for name, field in fields if part in (name, field.alias)), None)
        else:
            current = inner[1] if origin is dict else inner[0] if inner else None
    return shown, around


def _has_tag(member: Any, tag: Any) -> bool:
    """Whether a member of a union is the one that pydantic calls `tag`: by a Tag, or by the default of a field."""
    if get_origin(member) is Annotated:
        return any(getattr(note, "tag", None) == tag for note in get_args(member)[1:])
    is_model = isinstance(member, type) and issubclass(member, BaseModel)
    return is_model and any(field.default == tag for field in member.model_fields.values())


def known_names(names: tuple[str, ...], choices: Collection[str], what: str) -> tuple[str, ...]:
    """The names, for a validator of settings; ValueError with the nearest choice for one that is none."""
    for name in names:
        if name not in choices:
            raise ValueError(f"unknown {what} '{name}'; {closest(name, choices)}")
    return names
