"""Configurations: load a file, override keys, check them against the code they configure.

A config file is Python (`get_config(arg) -> ConfigDict`) and is run as the user. What a section may hold is the dataclass
that reads it: its fields are the valid keys, its annotations the types, its `__post_init__` the ranges.
"""

import ast
import dataclasses
import difflib
import importlib.util
import json
import pathlib
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from ssl_jax.errors import UserError

TOP_LEVEL = ("seed", "task", "model", "data", "training", "optimizer", "checkpoint", "mesh", "downstream", "expected")
REQUIRED = ("task", "model", "data", "training", "optimizer")


# Loading ------------------------------------------------------------------------------------------------------------


def load(spec: str, overrides: Mapping[str, str] | None = None) -> ConfigDict:
    """The config of `FILE[:arg]` with `overrides` ("training.duration" -> "20 steps") applied; `card` is its docstring.

    Raises UserError for a missing file, a file without get_config, an unknown key (the nearest valid one is named) or a
    value of another type.
    """
    path, _, arg = spec.partition(":")
    if not pathlib.Path(path).is_file():
        raise UserError(f"--config={path}: there is no such file")
    module_spec = importlib.util.spec_from_file_location("ssl_jax_user_config", path)
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}: {type(error).__name__}: {error}") from error
    if not hasattr(module, "get_config"):
        raise UserError(f"{path}: defines no get_config()")
    try:
        config = module.get_config(arg) if arg else module.get_config()
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(f"{path}: get_config({arg!r}) failed: {error}") from error
    config = ConfigDict(config.to_dict()) if isinstance(config, ConfigDict) else ConfigDict(config)
    for key, value in (overrides or {}).items():
        override(config, key, value)
    for name in config:
        if name not in TOP_LEVEL:
            raise UserError(f"{path}: unknown key {name}{nearest(name, TOP_LEVEL)}")
    for name in REQUIRED:
        if name not in config:
            raise UserError(f"{path}: the section {name} is missing")
    config.card = module.__doc__ or ""
    return config


def override(config: ConfigDict, key: str, text: str) -> None:
    """Set `key` ("task.mask.ratio") from the command line's text; a new key is allowed and checked when it is read."""
    *parents, last = key.split(".")
    section = config
    for i, name in enumerate(parents):
        if section.get(name) is None:
            section[name] = ConfigDict()
        section = section[name]
        if not isinstance(section, ConfigDict):
            raise UserError(f"--config.{key}: {'.'.join(parents[: i + 1])} is a value, not a section")
    section[last] = literal(text, section.get(last))


def literal(text: str, old: Any = None) -> Any:
    """A value from the command line: a Python literal where it is one, else the text itself; None unsets."""
    if isinstance(old, str):
        return None if text == "None" else text
    if text.lower() in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def nearest(name: str, valid: typing.Iterable[str]) -> str:
    """The half-sentence that names the valid key nearest to `name`, or all valid keys."""
    valid = list(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; valid keys are {', '.join(sorted(valid))}"


def to_json(config: Any) -> str:
    """The resolved config as JSON text, keys in order, tuples as lists."""
    plain = config.to_dict() if isinstance(config, ConfigDict) else config
    return json.dumps(plain, indent=2, sort_keys=True, default=str)


# Reading ------------------------------------------------------------------------------------------------------------


def read(cls: type, section: Any, path: str, **given: Any) -> Any:
    """`cls(**section, **given)`, with every key and type checked; a field that is itself a dataclass is read from its section.

    `given` are values that come from elsewhere (an image size, say) and may not be set in the config. "name" is skipped
    where `cls` has no such field: it chose the class. Errors name the full key: `task.mask.ratio=1.2: must lie in (0, 1)`.
    """
    section = {} if section is None else section
    if not isinstance(section, Mapping | ConfigDict):
        raise UserError(f"{path}={section!r}: expected a section with keys, such as dict(...)")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init and f.name != "parent"}
    if any(f.name == "parent" for f in dataclasses.fields(cls)):  # a Linen module, whose name is not a setting
        fields.pop("name", None)
    values = dict(given)
    for key, value in section.items():
        if key == "name" and key not in fields:
            continue
        if key not in fields or key in given:
            known = [name for name in fields if name not in given]
            raise UserError(f"unknown key {path}.{key}{_suggest(key, known, fields, hints, path)}")
        values[key] = _value(hints[key], value, f"{path}.{key}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if name not in values and required:
            raise UserError(f"{path}.{name} is missing")
    try:
        return cls(**values)
    except UserError as error:
        raise UserError(f"{path}.{error}" if not str(error).startswith(path) else str(error)) from None


def _suggest(key: str, known: list[str], fields: dict, hints: dict, path: str) -> str:
    """The nearest key of this section; `mask_ratio` finds `mask.ratio`."""
    nested = [
        f"{name}.{inner.name}" for name in known for cls in _dataclasses(hints[name]) for inner in dataclasses.fields(cls)
    ]
    close = difflib.get_close_matches(key.replace("_", "."), nested, n=1, cutoff=0.85)
    if close:
        return f"; did you mean {path}.{close[0]}?"
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; did you mean {path}.{close[0]}?" if close else f"; valid keys are {', '.join(sorted(known))}"


def _dataclasses(hint: Any) -> list[type]:
    return [t for t in (hint, *typing.get_args(hint)) if isinstance(t, type) and dataclasses.is_dataclass(t)]


def _value(hint: Any, value: Any, path: str) -> Any:
    """`value` as the annotation `hint` wants it, or a UserError."""
    nested = _dataclasses(hint)
    if nested and isinstance(value, Mapping | ConfigDict):
        return read(nested[0], value, path)
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    for option in options:
        origin = typing.get_origin(option) or option
        if origin is typing.Any:
            return value
        if origin is Mapping or origin is dict:
            if isinstance(value, Mapping | ConfigDict):
                return value.to_dict() if isinstance(value, ConfigDict) else dict(value)
        elif origin is float and isinstance(value, int | float) and not isinstance(value, bool):
            return _finite(float(value), path)
        elif origin is int and isinstance(value, int) and not isinstance(value, bool):
            return _small(value, path)
        elif origin is tuple and isinstance(value, list | tuple):
            return _items(typing.get_args(option), value, path)
        elif origin in (bool, str, types.NoneType) and isinstance(value, origin):
            return value
        elif isinstance(option, type) and isinstance(value, option) and not isinstance(value, bool | int):
            return value
    names = " or ".join("nothing" if o is types.NoneType else getattr(o, "__name__", str(o)) for o in options)
    shown, kind = (value.to_dict(), "a section") if isinstance(value, ConfigDict) else (value, type(value).__name__)
    raise UserError(f"{path}={shown!r}: expected {names}, not {kind}")


def _finite(value: float, path: str) -> float:
    if value != value or value in (float("inf"), float("-inf")):
        raise UserError(f"{path}={value}: must be a finite number")
    return value


def _small(value: int, path: str) -> int:
    if abs(value) >= 2**31:
        raise UserError(f"{path}={value}: must lie within 32 bits")
    return value


def _items(hints: tuple, values: list | tuple, path: str) -> tuple:
    """`values` as tuple, tuple[float, ...] or tuple[float, float] wants them."""
    if not hints:
        return _tuple(values)
    if hints[-1] is Ellipsis:
        hints = hints[:1] * len(values)
    if len(hints) != len(values):
        raise UserError(f"{path}={tuple(values)!r}: expected {len(hints)} values, not {len(values)}")
    return tuple(_value(hint, value, f"{path}[{i}]") for i, (hint, value) in enumerate(zip(hints, values, strict=True)))


def _tuple(value: Any) -> Any:
    return tuple(_tuple(v) for v in value) if isinstance(value, list | tuple) else value


# Durations ----------------------------------------------------------------------------------------------------------

_DURATION = re.compile(r"\s*([\d_]*\.?\d+(?:e\d+)?)\s*(epochs?|steps?|examples?|tokens?|minutes?|%)\s*$")


@dataclasses.dataclass(frozen=True)
class Duration:
    """A length of training: `number` of `unit` ("epoch", "step", "example", "token", "minute" or "%")."""

    number: float
    unit: str

    @classmethod
    def parse(cls, text: Any, path: str) -> "Duration":
        """`"90 epochs"`, `"10_000 steps"`, `"5e9 tokens"`, `"30 minutes"`, `"5 %"`; a bare number is refused."""
        match = _DURATION.match(text) if isinstance(text, str) else None
        if match is None:
            examples = '"90 epochs", "10_000 steps", "5e9 tokens", "30 minutes" or "5 %"'
            raise UserError(f"{path}={text!r}: write a number and its unit, such as {examples}")
        number = float(match[1].replace("_", ""))
        if not 0 <= number < 1e15:
            raise UserError(f"{path}={text!r}: is out of range")
        return cls(number, match[2].rstrip("s"))

    def steps(self, *, path: str, batch_size: int, examples: int, tokens_per_example: int = 1, total: int | None = None,
              steps_per_minute: float | None = None) -> int:  # fmt: skip
        """The duration in steps, rounded to the nearest, where `examples` is the size of an epoch."""
        match self.unit:
            case "step":
                steps = self.number
            case "epoch":
                steps = self.number * examples / batch_size
            case "example":
                steps = self.number / batch_size
            case "token":
                steps = self.number / (batch_size * tokens_per_example)
            case "minute":
                if steps_per_minute is None:
                    raise UserError(f"{path}: minutes cannot be used here; use steps, epochs or %")
                steps = self.number * steps_per_minute
            case "%":
                if total is None:
                    raise UserError(f"{path}: % of what? Use steps, epochs, examples, tokens or minutes")
                steps = self.number / 100 * total
        return round(steps)
