"""Write docs/settings.md, the reference of all settings, from the dataclasses that read them.

python docs/settings.py
"""

import ast
import dataclasses
import importlib
import inspect
import pathlib
import re
import textwrap
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from ssl_jax import data, downstream, models, pretext

PAGE = pathlib.Path(__file__).with_name("settings.md")
TRAINING = {
    "training": "ssl_jax.training.settings:TrainingSettings",
    "optimizer": "ssl_jax.training.optimizer:OptimizerSettings",
    "schedules.NAME": "ssl_jax.training.schedules:Schedule",
    "checkpoint": "ssl_jax.training.settings:CheckpointSettings",
    "mesh": "ssl_jax.training.settings:MeshSettings",
}
HEAD = """# Settings

Every key of a config, its default and what it means. `python docs/settings.py` writes this page from the dataclasses that read
the sections; a test compares the two. `--config.KEY=VALUE` sets any of them. Every task also takes `task.init`, the model that
its parameters start from ([interop.md](interop.md)); `seed` (default 0), `downstream` (evaluators by name) and `expected` (name
of a result -> interval) stand beside the sections.
"""


def found(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def settings_of(target: str) -> type:
    """Return the dataclass that a task, a model's or a kind's `build` reads its section into."""
    function = found(target)
    source = inspect.getsource(function.from_config if hasattr(function, "from_config") else function)
    names = re.findall(r"\bread\(([A-Z]\w+),", source) + re.findall(r"\b([A-Z]\w+)\.read\(", source)
    return getattr(inspect.getmodule(inspect.unwrap(getattr(function, "from_config", function))), names[0])


def comments(cls: type) -> dict[str, str]:
    """Return the comment on the line of each field, of the class and those it is made from."""
    said: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        if not dataclasses.is_dataclass(base):
            continue
        source = textwrap.dedent(inspect.getsource(base))
        lines = source.splitlines()
        for node in ast.parse(source).body[0].body:
            if isinstance(node, ast.AnnAssign):
                said[node.target.id] = lines[node.end_lineno - 1][node.end_col_offset :].partition("#")[2].strip()
    return said


def nested(hint: Any) -> type | None:
    """Return the dataclass of a field that is a section of its own."""
    options = (hint, *typing.get_args(hint))
    return next((option for option in options if dataclasses.is_dataclass(option) and isinstance(option, type)), None)


def rows(cls: type, path: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield (key, default, comment) of every setting, those of sections within it too."""
    hints, said = typing.get_type_hints(cls), comments(cls)
    for field in dataclasses.fields(cls):
        if not field.init or field.name == "parent":
            continue
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        inner = nested(hints[field.name])
        if inner is not None and not path.count("."):
            off = default is None
            yield f"{path}{field.name}", "None" if off else "a section", said.get(field.name, "")
            yield from rows(inner, f"{path}{field.name}.")
            continue
        shown = (
            "required" if default is dataclasses.MISSING else "a section" if inner and default is not None else repr(default)
        )
        yield f"{path}{field.name}", shown, said.get(field.name, "")


def table(cls: type) -> str:
    escape = lambda text: text.replace("|", "\\|").replace("<", "&lt;")
    code = lambda default: default if default in ("a section", "required") else f"`{escape(default)}`"
    lines = [f"| `{key}` | {code(default)} | {escape(comment)} |" for key, default, comment in rows(cls)]
    return "\n".join(["| key | default | |", "|---|---|---|", *lines]) + "\n" if lines else "No settings.\n"


def section(title: str, cls: type) -> str:
    purpose = inspect.getdoc(cls) or ""
    return f"### {title}\n\n{textwrap.fill(purpose.partition(chr(10) * 2)[0].replace('<', '&lt;'), 128)}\n\n{table(cls)}"


def page() -> str:
    parts = [HEAD, "## task\n"]
    tasks = {name: target for name, target in {**pretext.TASKS, **downstream.TASKS}.items() if target.startswith("ssl_jax.")}
    parts += [section(f"`{name}`", settings_of(target)) for name, target in tasks.items()]
    parts += ["## model\n"]
    kinds: Mapping[str, Mapping[str, str]] = models.MODELS
    named = {name: target for kind in kinds.values() for name, target in reversed(kind.items())}
    parts += [section(f"`{name}`", settings_of(target)) for name, target in named.items()]
    parts += ["## data\n"]
    parts += [section(f"`{name}`", settings_of(target)) for name, target in data.KINDS.items()]
    parts += ["## training, optimizer, schedules, checkpoint, mesh\n"]
    parts += [section(f"`{name}`", found(target)) for name, target in TRAINING.items()]
    parts += ["## downstream\n", *(section(f"`{name}`", found(target)) for name, target in downstream.EVALUATORS.items())]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
