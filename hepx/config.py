"""YAML and command-line overrides -> strict settings. Knows no field of any stage.

Precedence: defaults of the settings < YAML file < `key.subkey=value` on the command line.
YAML is read with the scalar rules of YAML 1.2: `1e-3` is a number, `no` is a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

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
        raise ConfigError(f"config '{path}' holds a {type(values).__name__}; expected a mapping of keys to values.")
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not name:
            raise ConfigError(f"override '{override}' is not of the form key=value, for example train.epochs=5.")
        try:
            apply_overrides(values, {name: read_yaml(text)})
        except yaml.YAMLError as error:
            raise ConfigError(f"override '{override}': the value is not valid YAML: {error}") from error
    return values


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


def _explain(settings: type[BaseModel], problem: dict[str, Any]) -> str:
    location = [part for part in problem["loc"] if not str(part).startswith(("function-", "tagged-union"))]
    key = ".".join(str(part) for part in location)
    if problem["type"] == "extra_forbidden":
        known = _known_keys(settings, location[:-1])
        return f"unknown key '{key}'; {closest(str(location[-1]), known)}"
    if problem["type"] == "missing":
        return f"key '{key}' is missing; add it"
    message = problem["msg"].removeprefix("Value error, ")
    return f"'{key}': {message[0].lower()}{message[1:]}, got {problem['input']!r}"


def _known_keys(settings: type[BaseModel], location: list[Any]) -> list[str]:
    """The keys of the settings that `location` leads to; an empty location is the root."""
    current: Any = settings
    for part in location:
        current = _step(current, part)
    return list(current.model_fields) if isinstance(current, type) and issubclass(current, BaseModel) else []


def _step(current: Any, part: Any) -> Any:
    if isinstance(current, type) and issubclass(current, BaseModel) and part in current.model_fields:
        return _model_in(current.model_fields[part].annotation, None)
    return _model_in(current, part)


def _model_in(annotation: Any, tag: Any) -> Any:
    """The settings inside `list[...]`, `dict[...]` or a union; `tag` chooses a member of a union by its first field."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    candidates = [_model_in(inner, tag) for inner in getattr(annotation, "__args__", ())]
    models = [model for model in candidates if isinstance(model, type) and issubclass(model, BaseModel)]
    for model in models:
        if any(field.default == tag for field in model.model_fields.values()):
            return model
    return models[0] if models else annotation
