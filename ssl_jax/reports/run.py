"""The content of a work directory for a report, finished or interrupted."""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ssl_jax.config import flat
from ssl_jax.errors import UserError
from ssl_jax.reports.records import Record, from_json
from ssl_jax.reports.records import flat as flat_records

# Keys of config.json that describe a run's environment instead of configuring it.
ENVIRONMENT = (
    "command", "config_file", "overrides", "versions", "git_commit", "git", "commit", "device", "devices", "hardware",
    "platform", "python", "host", "processes", "started", "ssl_jax",
)  # fmt: skip
_NONFINITE = {text: float(text) for text in ("nan", "inf", "-inf")}  # JSON has no such numbers
CARDS = ("card", "recipe_card", "recipe")


@dataclasses.dataclass(frozen=True)
class Panel:
    """One panel on disk: the PNG's bytes or the text."""

    name: str
    png: bytes | None = None
    text: str | None = None
    caption: str = ""
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Run:
    """The content of a work directory. Any part may be empty, since an interrupted run gets a report too."""

    name: str
    path: pathlib.Path
    config: Mapping[str, Any]  # nested
    environment: Mapping[str, Any]  # versions, commit, device ...
    card: str
    metrics: Sequence[Mapping[str, Any]]  # the log of training, and its speed
    records: Sequence[Record]  # the evaluators' results
    timings: Mapping[str, float]  # seconds by phase
    panels: Sequence[Panel]
    warnings: Sequence[str] = ()  # one line each
    initialised: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # the parameters loaded from another model

    @functools.cached_property
    def results(self) -> Mapping[str, float]:
        """Return the values by name, as in results.json."""
        return flat_records(self.records)

    @property
    def expected(self) -> Mapping[str, Sequence[float]]:
        found = self.config.get("expected") or {}
        return {name: ends for name, ends in found.items() if isinstance(ends, list | tuple) and len(ends) == 2}

    @property
    def last_step(self) -> int | None:
        steps = [line["step"] for line in self.metrics if isinstance(line.get("step"), int | float)]
        return int(max(steps)) if steps else None


def load_run(workdir: str | os.PathLike, name: str | None = None) -> Run:
    """Read a work directory; raise UserError if it does not exist or if a file is invalid."""
    path = pathlib.Path(workdir)
    if not path.is_dir():
        raise UserError(f"{path}: there is no such work directory")
    if not any((path / file).is_file() for file in ("config.json", "metrics.jsonl", "results.json")):
        raise UserError(f"{path}: holds no run; expected a work directory with config.json, metrics.jsonl or results.json")
    document = _object(path / "config.json")
    config = document.get("config") if isinstance(document.get("config"), dict) else document
    environment = {key: document[key] for key in ENVIRONMENT if key in document and document[key] not in (None, {}, [])}
    config = {key: value for key, value in config.items() if key not in (*ENVIRONMENT, *CARDS)}
    card = next((str(document[key]) for key in CARDS if document.get(key)), "")
    records = from_json(_object(path / "records.json"), str(path / "records.json"))
    if not records:  # an older version stored only names and values
        flat_results = _object(path / "results.json").items()
        records = [Record(k, float(v)) for k, v in flat_results if isinstance(v, int | float) and not isinstance(v, bool)]
    timings = {k: v for k, v in _object(path / "timings.json").items() if isinstance(v, int | float)}
    label = name or path.resolve().name
    return Run(
        label,
        path,
        config,
        environment,
        card.strip(),
        _lines(path / "metrics.jsonl") + _lines(path / "speed.jsonl"),
        records,
        timings,
        _panels(path / "panels"),
        tuple(str(line) for line in _object(path / "warnings.json").get("lines", ())),
        _object(path / "initialised.json"),
    )


def load_runs(workdirs: Sequence[str | os.PathLike]) -> list[Run]:
    """Read several runs, each named by the shortest unique tail of its path."""
    paths = [pathlib.Path(w).resolve() for w in workdirs]
    for i, path in enumerate(paths):
        if path in paths[:i]:
            raise UserError(f"{workdirs[i]}: is named twice; name it once")
    runs = []
    for workdir, path in zip(workdirs, paths, strict=True):
        parts = 1
        tail = lambda p, n: "/".join(p.parts[-n:])
        while sum(tail(other, parts) == tail(path, parts) for other in paths) > 1:  # noqa: B023
            parts += 1
        runs.append(load_run(workdir, tail(path, parts)))
    return runs


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs of one config that differ only in the seed."""

    name: str
    runs: tuple[Run, ...]


def groups(runs: Sequence[Run]) -> list[Group]:
    """Return the runs grouped by config; a group of several is named by the settings that distinguish it."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        settings = {key: value for key, value in flat(run.config).items() if key != "seed"}
        found.setdefault(json.dumps(settings, sort_keys=True, default=str), []).append(run)
    different = [key for key in differences(runs) if key != "seed"]
    named = lambda run: ", ".join(f"{key}={flat(run.config).get(key)}" for key in different[:2])
    more = " ..." if len(different) > 2 else ""
    name = lambda of: of[0].name if len(of) == 1 else (named(of[0]) or of[0].name.rpartition("/")[0] or of[0].name) + more
    return [Group(name(of), tuple(of)) for of in found.values()]


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Return the config keys in which the runs differ, with each run's value (None if it has no such key)."""
    configs = [flat(run.config) for run in runs]
    keys = sorted({key for config in configs for key in config})
    rows = {key: [config.get(key) for config in configs] for key in keys}
    return {key: values for key, values in rows.items() if any(value != values[0] for value in values)}


def _object(path: pathlib.Path) -> dict[str, Any]:
    """Return the JSON object in a file; {} if the file does not exist."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not JSON: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected an object, found {type(value).__name__}")
    return value


def _lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file; an incomplete last line, left by a killed run, is dropped."""
    if not path.is_file():
        return []
    lines, found = path.read_text(encoding="utf-8", errors="replace").split("\n"), []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError:
            if number == len(lines):
                continue
            raise UserError(f"{path}: line {number} is not JSON; remove it") from None
        if not isinstance(value, dict):
            raise UserError(f"{path}: line {number} is not a JSON object; remove it")
        found.append({key: _NONFINITE.get(v, v) if isinstance(v, str) else v for key, v in value.items()})
    return found


def _panels(directory: pathlib.Path) -> list[Panel]:
    found = []
    for path in sorted(directory.glob("*")) if directory.is_dir() else ():
        if path.name.startswith("."):
            continue
        if path.suffix == ".png":
            found.append(Panel(path.stem, path.read_bytes(), None, *_said(path)))
        elif path.suffix == ".txt":
            found.append(Panel(path.stem, text=path.read_text(encoding="utf-8", errors="replace")))
    return found


def _said(path: pathlib.Path) -> tuple[str, str]:
    """Return the caption and the note stored in a PNG."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return str(image.info.get("Description", "")), str(image.info.get("Comment", ""))
    except OSError:
        raise UserError(f"{path}: is not a PNG image; remove it") from None
