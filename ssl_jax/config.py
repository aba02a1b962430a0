"""Configurations: load a file, override keys, check them against the code that they configure.

A config file is Python (`get_config(arg) -> ConfigDict`) and is executed with the user's rights. A section is defined by the
dataclass that reads it: its fields are the valid keys, its annotations the types, its `__post_init__` checks the ranges.
"""

import ast
import contextlib
import dataclasses
import difflib
import importlib
import importlib.util
import json
import os
import pathlib
import re
import traceback
import types
import typing
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import RequiredValueError

from ssl_jax.errors import UserError

TOP_LEVEL = (
    "seed",
    "task",
    "model",
    "data",
    "training",
    "optimizer",
    "schedules",
    "checkpoint",
    "mesh",
    "downstream",
    "expected",
)
REQUIRED = ("task", "model", "data", "training", "optimizer")
CAN_BE_OFF = ("mesh", "schedules", "downstream", "expected")  # sections that None or False switches off


# Loading ------------------------------------------------------------------------------------------------------------


def load(spec: str, overrides: Mapping[str, str] | None = None) -> ConfigDict:
    """Return the config of `FILE[:ARG]` with `overrides` ("training.duration" -> "20 steps") applied; `card` is its docstring.

    Raise UserError for a missing file, an error inside it (with its line), an unknown key (with the nearest valid one)
    and a section that is missing. The types of values are checked by `read`.
    """
    path, arg = _split_spec(spec)
    module = execute(path, "--config", "get_config")
    with one_line(spec, path):
        config = module.get_config(arg) if arg else module.get_config()
    if not isinstance(config, Mapping | ConfigDict):
        raise UserError(f"{path}: get_config() returned {config!r}; expected a ConfigDict")
    config = config if isinstance(config, ConfigDict) else ConfigDict(dict(config))
    for key, value in (overrides or {}).items():
        override(config, key, value)
    if config.get("expected") and not any(key.partition(".")[0] == "expected" for key in overrides or ()):
        config.expected = still_expected(config.expected, module.__doc__ or "", overrides or {})
    with one_line(spec, path):
        config = ConfigDict(_plain(config))  # references resolved
    check_sections(config, path)
    config.card = module.__doc__ or ""
    return config


UNMEASURED = (  # settings that change results only by chance
    "seed", "mesh", "checkpoint", "data.workers", "data.placement", "data.dir", "training.accumulation", "training.log_every",
    "training.steps_per_call", "training.evaluate_every", "training.evaluators", "training.tensorboard", "training.wandb",
)  # fmt: skip


def still_expected(expected: Any, card: str, overrides: Mapping[str, str]) -> Any:
    """Return the intervals that are valid for a run with `overrides`: the recipe's, if it is run as its card says.

    Keys that the card's first command sets, such as data.train, must be set too, a file to a path with the same name.
    Changed settings of an evaluator invalidate only its own intervals.
    """
    if not isinstance(expected, Mapping | ConfigDict):
        return expected
    command = re.search(r"^    ssl-jax \w+ (?:.*\\\n)*.*$", card, re.MULTILINE)
    own = dict(re.findall(r"--config\.([\w.]+)=(\S+)", command[0] if command else ""))
    below = lambda key, name: key == name or key.startswith(f"{name}.")
    changed = {key: value for key, value in overrides.items() if not any(below(key, name) for name in UNMEASURED)}
    evaluators = {key.split(".")[1] for key in changed if below(key, "downstream") and key != "downstream"}
    changed = {key: value for key, value in changed.items() if not below(key, "downstream")}
    name = lambda value: re.split(r"[:/]", str(value).strip("'\""))[-1]
    if changed.keys() != own.keys() or any(name(changed[key]) != name(own[key]) for key in own):
        return {}
    return {key: ends for key, ends in expected.items() if key.partition("/")[0] not in evaluators}


def _split_spec(spec: str) -> tuple[str, str]:
    """Split `FILE[:ARG]` after the first part that is a file, so that either may contain a colon."""
    parts = os.path.expanduser(spec).split(":")
    for i in range(1, len(parts) + 1):
        path = ":".join(parts[:i])
        if pathlib.Path(path).is_file():
            return path, ":".join(parts[i:])
    raise UserError(f"--config={parts[0]}: there is no such file")


def execute(path: str, option: str, function: str) -> types.ModuleType:
    """Return the module of a user's Python file, which must define `function`."""
    module_spec = importlib.util.spec_from_file_location("ssl_jax_user_config", path)
    if module_spec is None:
        raise UserError(f"{option}={path}: must be a Python file, with a name that ends in .py")
    module = importlib.util.module_from_spec(module_spec)
    with one_line(path, path):
        module_spec.loader.exec_module(module)
    if not callable(getattr(module, function, None)):
        raise UserError(f"{path}: defines no {function}(); add it")
    return module


@contextlib.contextmanager
def one_line(what: str, path: str) -> typing.Iterator[None]:
    """Turn any error of a user's config file into a UserError that names the line of `path` where it was raised."""
    try:
        yield
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        line = error.lineno if isinstance(error, SyntaxError) and error.filename == path else (lines or [None])[-1]
        place = what if line is None else f"{what}, line {line}"
        text = error.msg if isinstance(error, SyntaxError) else str(error)
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        raise UserError(f"{place}: {kind}{text}") from error


def _plain(config: ConfigDict, path: str = "") -> dict[str, Any]:
    """Return the config as nested dicts; raise UserError for a required placeholder without a value."""
    found = {}
    for key in config:
        try:
            value = config[key]
        except RequiredValueError:
            raise UserError(f"{path}{key} is missing; give it with --config.{path}{key}=VALUE") from None
        found[key] = _plain(value, f"{path}{key}.") if isinstance(value, ConfigDict) else value
    return found


def check_sections(config: ConfigDict, path: str) -> None:
    """Check that every required section exists, and remove optional ones that None or False switches off."""
    for name in list(config):
        if name not in TOP_LEVEL:
            raise UserError(f"{path}: unknown key {name}{nearest(name, TOP_LEVEL)}")
    for name in REQUIRED:
        if config.get(name) is None:
            raise UserError(f"{path}: the section {name} is missing; add config.{name} = dict(...)")
        if not isinstance(config[name], ConfigDict):
            raise UserError(f"{path}: {name}={config[name]!r}: expected a section with keys, such as dict(...)")
    for name in CAN_BE_OFF:
        if name in config and (config[name] is None or config[name] is False):
            del config[name]
    if "checkpoint" in config and (config.checkpoint is None or config.checkpoint is False):
        raise UserError(f"checkpoint={config.checkpoint}: cannot be switched off, since the last step is always saved; omit it")


def override(config: ConfigDict, key: str, text: str) -> None:
    """Set `key` ("task.mask.ratio") to the value of a command-line text, whose type `read` checks later."""
    with config.ignore_type(), config.unlocked():
        section, last = _section_of(config, key, f"--config.{key}")
        section[last] = literal(text, _held(section, last))


def assign(config: ConfigDict, key: str, value: Any) -> None:
    """Set `key` to a Python value; a mapping replaces the whole section."""
    with config.ignore_type(), config.unlocked():
        section, last = _section_of(config, key, key)
        section[last] = ConfigDict(dict(value)) if isinstance(value, Mapping | ConfigDict) else value


def _section_of(config: ConfigDict, key: str, shown: str) -> tuple[ConfigDict, str]:
    """Return the section that contains `key`, created if missing, and the last part of the key."""
    *parents, last = key.split(".")
    if not all((*parents, last)):
        raise UserError(f"{shown}: a name is missing between the dots; write SECTION.KEY")
    section = config
    for i, name in enumerate(parents):
        if _held(section, name) is None:
            section[name] = ConfigDict()
        section = section[name]
        if not isinstance(section, ConfigDict):
            raise UserError(f"{shown}: {'.'.join(parents[: i + 1])} is a value, not a section; override it as a whole")
    return section, last


def _held(section: ConfigDict, name: str) -> Any:
    try:
        return section.get(name)
    except RequiredValueError:  # a placeholder
        return None


def literal(text: str, old: Any = None) -> Any:
    """Parse a value from the command line as a Python literal, else as text; None unsets a value, False switches off.

    "none" remains text if the config's value is a text or unset, because it is a choice of several settings (model.remat=none).
    """
    if isinstance(old, str) or (old is None and text == "none"):
        return None if text == "None" else text
    if text.lower() in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def nearest(name: str, valid: typing.Iterable[str]) -> str:
    """Return "; did you mean KEY?" for the valid key nearest to `name`, else "; valid keys are ..."."""
    valid = list(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; valid keys are {', '.join(sorted(valid))}"


def look_up(registry: Mapping[str, str], name: Any, path: str) -> Any:
    """Return the class or function under `name` in a registry ("name" -> "module:attribute"); raise UserError if unknown."""
    if not isinstance(name, str) or name not in registry:
        raise UserError(f"{path}={name!r}: unknown{nearest(str(name), registry)}")
    module, _, attribute = registry[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested config by full key: {"task.mask.ratio": 0.75}."""
    found = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found.update(flat(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = value
    return found


def to_json(config: Any) -> str:
    """Return the resolved config as JSON text with sorted keys and tuples as lists."""
    plain = config.to_dict() if isinstance(config, ConfigDict) else config
    return json.dumps(plain, indent=2, sort_keys=True, default=str)


# Reading ------------------------------------------------------------------------------------------------------------


def read(cls: type, section: Any, path: str, **given: Any) -> Any:
    """Return `cls(**section, **given)` with all keys and types checked; dataclass fields are read from nested sections.

    `given`: values from elsewhere (an image size), which the config may not set. "name" is skipped if `cls` has no such
    field, because it selected the class; so is a task's "init", which `initialisation` reads. A nested section that is None
    or False is switched off if its field may be None or if its class declares that an empty section has no effect
    (`OFF_WHEN_EMPTY`).
    Errors name the full key: `task.mask.ratio=1.2: must lie in (0, 1)`.
    """
    section = {} if section is None else section
    if not isinstance(section, Mapping | ConfigDict):
        raise UserError(f"{path}={section!r}: expected a section with keys, such as dict(...)")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init and f.name != "parent"}
    if any(f.name == "parent" for f in dataclasses.fields(cls)):  # a Linen module: its name is not a setting
        fields.pop("name", None)
    values = dict(given)
    for key, value in section.items():
        if key not in fields and (key == "name" or (path, key) == ("task", "init")):
            continue
        if key not in fields or key in given:
            known = [name for name in fields if name not in given]
            raise UserError(f"unknown key {path}.{key}{_suggest(key, known, fields, hints, path)}")
        values[key] = _value(hints[key], value, f"{path}.{key}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if name not in values and required:
            raise UserError(f"{path}.{name} is missing; set it")
    try:
        return cls(**values)
    except UserError as error:
        raise UserError(f"{path}.{error}" if not str(error).startswith(path) else str(error)) from None


def _suggest(key: str, known: list[str], fields: dict, hints: dict, path: str) -> str:
    """Return "; did you mean ...?" with the nearest key of this section; `mask_ratio` finds `mask.ratio`."""
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
    """Return `value` converted to the annotation `hint`, or raise UserError."""
    nested = _dataclasses(hint)
    if nested and isinstance(value, Mapping | ConfigDict):
        return read(nested[0], value, path)
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    mappings = any((typing.get_origin(option) or option) in (Mapping, dict) for option in options)
    if (value is None or value is False) and bool not in options and (nested or mappings):  # a section that is switched off
        if types.NoneType in options:
            return None
        if mappings:
            return {}
        if getattr(nested[0], "OFF_WHEN_EMPTY", False):
            return read(nested[0], {}, path)
        raise UserError(f"{path}={value}: cannot be switched off; its keys are {', '.join(_keys(nested[0]))}")
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
    names = " or ".join(map(_type_name, options))
    shown, kind = (value.to_dict(), "a section") if isinstance(value, ConfigDict) else (value, type(value).__name__)
    raise UserError(f"{path}={shown!r}: expected {names}, not {kind}")


def _type_name(option: Any) -> str:
    if option is types.NoneType:
        return "None"
    if isinstance(option, type) and dataclasses.is_dataclass(option):
        return f"a section with the keys {', '.join(_keys(option))}"
    if (typing.get_origin(option) or option) in (Mapping, dict):
        return "a section"
    return getattr(option, "__name__", str(option))


def _keys(cls: type) -> list[str]:
    return sorted(field.name for field in dataclasses.fields(cls) if field.init and field.name != "parent")


def _finite(value: float, path: str) -> float:
    if value != value or value in (float("inf"), float("-inf")):
        raise UserError(f"{path}={value}: must be a finite number")
    return value


def _small(value: int, path: str) -> int:
    if abs(value) >= 2**31:
        raise UserError(f"{path}={value}: must be a 32-bit integer")
    return value


def _items(hints: tuple, values: list | tuple, path: str) -> tuple:
    """Return `values` converted to tuple, tuple[float, ...] or tuple[float, float]."""
    if not hints:
        return _tuple(values)
    if hints[-1] is Ellipsis:
        hints = hints[:1] * len(values)
    if len(hints) != len(values):
        raise UserError(f"{path}={tuple(values)!r}: has {len(values)} values; expected {len(hints)}")
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
        """Parse `"90 epochs"`, `"10_000 steps"`, `"5e9 tokens"`, `"30 minutes"` or `"5 %"`; raise UserError otherwise."""
        match = _DURATION.match(text) if isinstance(text, str) else None
        if match is None:
            examples = '"90 epochs", "10_000 steps", "5e9 tokens", "30 minutes" or "5 %"'
            raise UserError(f"{path}={text!r}: write a number and its unit, such as {examples}")
        number = float(match[1].replace("_", ""))
        if not 0 <= number < 1e15:
            raise UserError(f"{path}={text!r}: must be below 1e15")
        return cls(number, match[2].rstrip("s"))

    def steps(self, *, path: str, batch_size: int, examples: int, tokens_per_example: int = 1, total: int | None = None,
              steps_per_minute: float | None = None) -> int:  # fmt: skip
        """Return the duration in steps, rounded to the nearest; `examples` is the size of an epoch."""
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
                    raise UserError(f"{path}: minutes are not supported here; use steps, epochs or %")
                steps = self.number * steps_per_minute
            case "%":
                if total is None:
                    raise UserError(f"{path}: % needs a total length; use steps, epochs, examples, tokens or minutes")
                steps = self.number / 100 * total
        return round(steps)
