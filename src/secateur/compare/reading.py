"""Values out of a YAML file, each held to what it should be, with one line that says where it stands and what to do."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from secateur.errors import RequestError
from secateur.values import yaml_problem

__all__ = ["read_list", "read_mapping", "read_settings", "read_yaml", "with_environment"]

_VARIABLE = re.compile(r"\$\{(\w+)\}")

T = TypeVar("T")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        RequestError: if the file cannot be read, is not YAML, or is something else than a mapping.
    """
    import yaml

    try:
        value = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise RequestError(f"cannot read {path}: {reason}; give a YAML file that says what to compare") from error
    except yaml.YAMLError as error:
        raise RequestError(f"{path} is not YAML: {yaml_problem(error)}; mend it") from error
    if not isinstance(value, dict):
        raise RequestError(f"{path} holds no 'name: value' lines; see the examples in docs/comparing.md")
    return value


def read_mapping(value: Any, where: str, known: Collection[str], required: Collection[str] = ()) -> dict[str, Any]:
    """The value, if it is a mapping that has the required keys and no unknown ones.

    Raises:
        RequestError: if it is not; an unknown key is answered with the nearest known one.
    """
    if not isinstance(value, Mapping):
        names = f"a mapping with {', '.join(known)}" if known else "left out: there are none"
        raise RequestError(f"{where} must be {names}, not {value!r}")
    for key in value:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            names = f"choose among {', '.join(known)}" if known else "there are none, leave it out"
            hint = f"did you mean '{near[0]}'?" if near else names
            raise RequestError(f"{where} has no '{key}'; {hint}")
    for key in required:
        if value.get(key) is None:
            raise RequestError(f"{where} lacks '{key}'; give it")
    return {str(key): item for key, item in value.items()}


def read_list(value: Any, where: str, *, empty: bool = False) -> Sequence[Any]:
    """The value as a list; a single one counts as a list of one.

    Raises:
        RequestError: if there is nothing in it.
    """
    items = list(value) if isinstance(value, list) else [] if value is None else [value]
    if not items and not empty:
        raise RequestError(f"{where} is empty; name at least one")
    return items


def read_settings(of: type[T], values: Any, where: str) -> T:
    """A dataclass of settings, its types checked as on the command line.

    Raises:
        RequestError: if it has no such setting, one is missing, or a value is of the wrong type or out of range.
    """
    from jsonargparse import ArgumentParser

    fields = dataclasses.fields(of)  # type: ignore[arg-type]
    values = read_mapping(values, where, [field.name for field in fields])
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(of, None)
    try:
        parsed = parser.parse_object(values)
    except Exception as error:  # jsonargparse has several of its own, by version
        raise RequestError(f"{where}: {_explained(error)}") from error
    try:
        return of(**{field.name: parsed[field.name] for field in fields})
    except RequestError as error:
        raise RequestError(f"{where}: {error}") from error


def _explained(error: Exception) -> str:
    message = " ".join(str(error).split())
    message = re.sub(r'^(?:Validation failed: )?(?:Parser )?[Kk]ey "([\w.-]+)": ', r"\1: ", message)
    message = re.sub(r"<class '(\w+)'>", r"\1", message).replace("typing.", "")
    message = re.sub(r"Expected an? (.+?)\. Got value: (.*)", r"expects \1, not '\2'", message)
    return re.sub(
        r"Does not validate against any of the Union subtypes Subtypes: \[(.*?), NoneType\] .* Given value: (.*)",
        r"expects \1 or null, not '\2'",
        message,
    )


def with_environment(text: str) -> str:
    """The text with each `${NAME}` as the environment has it, so that a config names no machine's folders.

    Raises:
        RequestError: if the environment has no such variable.
    """

    def value(found: re.Match[str]) -> str:
        if found[1] not in os.environ:
            raise RequestError(f"'{text}' needs the environment variable {found[1]}; set it: {found[1]}=… secateur …")
        return os.environ[found[1]]

    return _VARIABLE.sub(value, text)
