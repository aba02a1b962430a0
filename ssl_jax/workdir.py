"""A work directory: the files of a run, and how they are read and written.

config.json    the resolved config, with versions, git commit and device
data.json      origin of each split: source, number of examples, digest
info.json      shapes, classes and normalisation of the data, so that a model loads without them
tokenizer/     the tokenizer, for text
metrics.jsonl  one object per log step
results.json   flat: "linear_probe/accuracy": 0.87
status.json    progress: steps trained, evaluators finished
warnings.json  the run's warnings, one line each
initialised.json  the parameters loaded from another model (task.init)
checkpoints/   Orbax
panels/        pictures and texts for the report
"""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from ssl_jax import config as configs
from ssl_jax.errors import UserError
from ssl_jax.task import DataInfo


@dataclasses.dataclass(frozen=True)
class Workdir:
    """The files of one run."""

    path: pathlib.Path

    @classmethod
    def at(cls, path: str) -> "Workdir":
        """Return the work directory at `path`, which need not exist; `~` is expanded."""
        if not str(path).strip():
            raise UserError("--workdir: is empty; name the run's folder, such as runs/mae")
        return cls(pathlib.Path(os.path.expanduser(path)))

    @classmethod
    def existing(cls, path: str) -> "Workdir":
        """Return the work directory at `path`; raise UserError unless it holds a run."""
        workdir = cls.at(path)
        if not workdir.path.is_dir():
            raise UserError(f"--workdir={path}: there is no such directory")
        if not (workdir.path / "config.json").is_file():
            raise UserError(f"--workdir={path}: holds no run (config.json is missing)")
        return workdir

    def config(self) -> ConfigDict | None:
        """Return the resolved config of the run, None before the first start."""
        stored = self.read("config.json")
        if stored is None:
            return None
        if not isinstance(stored.get("config"), dict):
            raise UserError(f"{self.path / 'config.json'}: holds no config; restore it or use another --workdir")
        return ConfigDict(_tuples(stored["config"]))

    def read(self, name: str, default: Any = None) -> Any:
        """Return the object in a JSON file of the directory, or `default` if the file does not exist."""
        file = self.path / name
        if not file.is_file():
            return default
        try:
            value = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{file}: is not JSON ({error}); restore it or use another --workdir") from None
        if not isinstance(value, dict):
            raise UserError(f"{file}: is not what a run writes there; restore it or use another --workdir")
        return value

    def write(self, name: str, value: Any) -> None:
        """Write a JSON file atomically: a kill leaves the old or the new one."""
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}.tmp")
        text = value if isinstance(value, str) else json.dumps(value, indent=2, sort_keys=False, default=str)
        temporary.write_text(text + "\n", encoding="utf-8")
        os.replace(temporary, file)

    def check_writable(self) -> None:
        """Raise UserError if the directory cannot be created or written, or holds a sweep."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--workdir={self.path}: is a file; use another --workdir")
        if (self.path / "sweep.json").exists():
            raise UserError(f"--workdir={self.path}: holds a sweep; use another --workdir or one of its runs")
        parent = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        if not os.access(parent, os.W_OK):
            raise UserError(f"--workdir={self.path}: {parent} is not writable; use another --workdir or change its permissions")

    def as_recorded(self, config: ConfigDict) -> ConfigDict:
        """Return `config` as `config()` would read it after a start: with JSON's types, without the recipe card."""
        return ConfigDict(_tuples(plain(config)[0]))

    def forget(self) -> None:
        """Remove an earlier start's records of its data and settings."""
        for name in (
            "config.json",
            "info.json",
            "data.json",
            "warnings.json",
            "status.json",
            "diverged.json",
            "initialised.json",
        ):
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self.path / "tokenizer", ignore_errors=True)

    def start(
        self, config: ConfigDict, info: DataInfo, data: Mapping[str, Mapping[str, Any]] | None = None,
        origin: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Record the config, the environment, the data's description and the tokenizer.

        data: the origin of each split (`Dataset.fingerprint`); raise UserError if an earlier start of this run used other data.
        origin: where the config comes from: "command", "config_file" and "overrides" (key -> text).
        """
        self.check_data(data or {})
        self.path.mkdir(parents=True, exist_ok=True)
        sections, card = plain(config)
        self.write("config.json", {"config": sections, "card": card, **(origin or {}), **environment()})
        self.write("info.json", info_to_json(info))
        self.write("data.json", {**self.read("data.json", {}), **(data or {})})
        if info.tokenizer is not None:
            self._save_tokenizer(info.tokenizer)

    def _save_tokenizer(self, tokenizer: Any) -> None:
        """Write the run's tokenizer; replace one left behind by a failed start."""
        folder = self.path / "tokenizer"
        if folder.exists():
            from ssl_jax.data.text.tokenizers import Tokenizer

            if (folder / "tokenizer.json").is_file() and Tokenizer.load(folder).key == tokenizer.key:
                return
            shutil.rmtree(folder)
        tokenizer.save(folder)

    def check_data(self, data: Mapping[str, Mapping[str, Any]]) -> None:
        """Raise UserError if a split was made from other data than `data` (split -> Dataset.fingerprint)."""
        for split, old in self.read("data.json", {}).items():
            new = data.get(split, old)
            if (new["examples"], new["digest"]) != (old["examples"], old["digest"]):
                same = (
                    f"others of the same number, {old['examples']:,}"
                    if new["examples"] == old["examples"]
                    else (f"{old['examples']:,}, now {new['examples']:,}")
                )
                raise UserError(
                    f"--workdir={self.path}: the examples of {new['source']} ({split}) have changed since the run was started "
                    f"(then {same}); restore them, or use another --workdir"
                )

    def info(self) -> DataInfo:
        """Return the DataInfo that the run was started with."""
        stored = self.read("info.json")
        if stored is None:
            raise UserError(f"--workdir={self.path}: info.json is missing; start the run again to write it")
        tokenizer = None
        if (self.path / "tokenizer").is_dir():
            from ssl_jax.data.text.tokenizers import Tokenizer

            tokenizer = Tokenizer.load(self.path / "tokenizer")
        return info_from_json(stored, tokenizer)

    def begun(self) -> bool:
        """Return whether the run has a checkpoint."""
        folder = self.path / "checkpoints"
        return folder.is_dir() and any(child.name.isdigit() for child in folder.iterdir())

    def results(self) -> dict[str, float]:
        return self.read("results.json", {})

    def status(self) -> dict[str, Any]:
        return self.read("status.json", {})


def plain(config: ConfigDict) -> tuple[dict[str, Any], str]:
    """Return (the config with JSON's types, its recipe card)."""
    sections = json.loads(configs.to_json(config))
    return sections, sections.pop("card", "")


def differences(old: Mapping, new: Mapping, path: str = "") -> list[tuple[str, str]]:
    """Return (key, "key: OLD there, NEW here") for every leaf that differs; missing values are "unset"."""
    found = []
    for key in sorted(set(old) | set(new), key=str):
        name, a, b = f"{path}{key}", old.get(key, "unset"), new.get(key, "unset")
        a, b = ({} if x == "unset" and isinstance(other, Mapping) else x for x, other in ((a, b), (b, a)))
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{name}.")
        elif isinstance(a, Mapping) or isinstance(b, Mapping):
            whole, other = (a, b) if isinstance(a, Mapping) else (b, a)
            found += [(name, f"{name}: {len(whole)} keys against {other}")] if whole else []
        elif a != b:
            found.append((name, f"{name}: {a} there, {b} here"))
    return found


def environment() -> dict[str, Any]:
    """Return versions, git commit and device, which a result depends on besides the config."""
    import jax

    versions = {"python": platform.python_version()}
    for package in ("ssl_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "source"
    devices = jax.devices()
    device = {"kind": devices[0].device_kind, "platform": devices[0].platform, "count": len(devices), "cores": os.cpu_count()}
    return {"versions": versions, "git_commit": git_commit(), "device": device, "host": platform.platform()}


def git_commit() -> str | None:
    """Return the commit of this source tree, with "-dirty" if it has changes; None outside a checkout."""
    here = pathlib.Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def info_to_json(info: DataInfo) -> dict[str, Any]:
    shapes = {name: {"shape": list(s.shape), "dtype": str(s.dtype)} for name, s in info.shapes.items()}
    return {"shapes": shapes, "classes": list(info.classes), "mean": list(info.mean), "std": list(info.std),
            "extra": dict(info.extra)}  # fmt: skip


def info_from_json(stored: Mapping[str, Any], tokenizer: Any = None) -> DataInfo:
    import jax
    import jax.numpy as jnp

    shapes = {n: jax.ShapeDtypeStruct(tuple(s["shape"]), jnp.dtype(s["dtype"])) for n, s in stored["shapes"].items()}
    return DataInfo(shapes, tuple(stored["classes"]), tuple(stored["mean"]), tuple(stored["std"]), tokenizer, stored["extra"])


def _tuples(value: Any) -> Any:
    """Return a value with lists converted to tuples, as in config files."""
    if isinstance(value, Mapping):
        return {key: _tuples(v) for key, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
