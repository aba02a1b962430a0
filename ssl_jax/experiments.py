"""Experiments: a base config, the arms (its variations), the seeds, and the presentation of the results.

An experiment file is Python (`get_experiment() -> dict`) and is executed with the user's rights, like a config file:

    def get_experiment():
        return dict(
            config="../../configs/mae/fashion_mnist.py",
            arms=product({"task.mask.ratio": (0.5, 0.75, 0.9)}),
            default="ratio=0.75",
            columns={"linear_probe/accuracy": "linear probe"},
            figure=dict(x="task.mask.ratio"),
        )

The keys are the fields of `ExperimentSettings`.
"""

import dataclasses
import itertools
import json
import pathlib
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from ssl_jax import config as configs
from ssl_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Arm:
    """One row of the table: the config keys it sets, such as {"task.mask.ratio": 0.5}; {} is the base config."""

    name: str
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Return the arm's folder within the sweep's: its name, with "_" for special characters of file systems and shells."""
        return re.sub(r"[^\w.=,+-]+", "_", self.name.replace("%", "percent")).strip("._") or "_"


Arms = tuple[Arm, ...]
Factor = Mapping[str, Sequence[Any]] | Sequence[Arm]


def product(*factors: Factor, names: Sequence[str] | None = None) -> Arms:
    """Return every combination of the factors, the last one varying fastest.

    A factor is a mapping of config keys to values, each key a factor of its own, or the arms of another combinator.
    Arms are named "ratio=0.5, depth=4" unless `names` are given. Raise UserError for a factor without values.
    """
    parts = []
    for factor in factors:
        if isinstance(factor, Mapping):
            parts += [zipped({key: values}) for key, values in factor.items()]
        else:
            parts.append(tuple(factor))
    if not parts or not all(parts):
        raise UserError("product: a factor is empty; give each factor at least one value")
    return _named([_joined(combination) for combination in itertools.product(*parts)], names, "product")


def zipped(values: Mapping[str, Sequence[Any]], names: Sequence[str] | None = None) -> Arms:
    """Return arms whose keys vary together: the first value of every key, then the second, and so on.

    Raise UserError where the keys have different numbers of values, or none.
    """
    columns = {key: tuple(column) for key, column in values.items() if not isinstance(column, str)}
    for key in values:
        if key not in columns:
            raise UserError(f"{key}={values[key]!r}: expected several values, such as ({values[key]!r},)")
    lengths = {key: len(column) for key, column in columns.items()}
    if not lengths or 0 in lengths.values():
        raise UserError(f"{next((k for k, n in lengths.items() if not n), 'zipped')}: has no values; give at least one")
    if len(set(lengths.values())) > 1:
        raise UserError(
            f"zipped: {', '.join(f'{key} has {n} values' for key, n in lengths.items())}; give each the same number"
        )
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return _named([Arm(", ".join(f"{k.rpartition('.')[2]}={_shown(v)}" for k, v in row.items()), row) for row in rows],
                  names, "zipped")  # fmt: skip


def chained(*parts: Arm | Sequence[Arm]) -> Arms:
    """Return the arms of all parts, one after another."""
    return tuple(arm for part in parts for arm in ((part,) if isinstance(part, Arm) else part))


def _named(arms: Sequence[Arm], names: Sequence[str] | None, what: str) -> Arms:
    if names is None:
        return tuple(arms)
    if isinstance(names, str) or len(names) != len(arms):
        raise UserError(f"{what}: names={names!r}: expected {len(arms)} names, one for each arm")
    return tuple(dataclasses.replace(arm, name=name) for arm, name in zip(arms, names, strict=True))


def _joined(arms: Sequence[Arm]) -> Arm:
    values: dict[str, Any] = {}
    for arm in arms:
        for key in arm.values:
            if key in values:
                raise UserError(f"product: {key} is set by two factors; set it in one")
        values |= arm.values
    return Arm(", ".join(arm.name for arm in arms if arm.name), values)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


# The settings of an experiment file ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Figure:
    """The figure: one plot for each metric of `y`, against the config key `x`, with a line for each value of `series`.

    Without `x`, or if its values are not numbers, the arms are shown side by side.
    """

    x: str | None = None
    y: tuple = ()  # keys of columns; (): all
    series: str | None = None
    log_x: bool = False


@dataclasses.dataclass(frozen=True)
class Published:
    """The published table: `rows` holds for each arm the numbers of `columns` (None where none was published).

    If a key of `columns` is also a metric of the experiment's columns, both mean the same quantity, and their orders of the
    arms are compared. `curves` holds ((x, value), ...) for such a key, which the figure shows instead of the rows.
    """

    source: str  # "He et al. 2022, table 1c"
    columns: Mapping[str, str]  # key -> heading
    rows: Mapping[str, tuple]
    curves: Mapping[str, tuple] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ExperimentSettings:
    """The keys of the dictionary that `get_experiment()` returns."""

    config: str | Mapping  # a config file, relative to the experiment file, or the config itself
    arms: tuple  # Arms
    overrides: Mapping = dataclasses.field(default_factory=dict)  # config key -> value, for every arm
    seeds: int | tuple = 3  # their number (0, 1, ...), or a tuple of seeds
    default: str | None = None  # the arm with which the others are compared; None: the first
    columns: Mapping = dataclasses.field(default_factory=dict)  # metric of results.json -> heading
    figure: Figure | None = None
    published: Published | None = None
    share_data: bool = False  # runs that train together read the same batches, decoded once

    def __post_init__(self):
        if not self.arms:
            raise UserError("arms: is empty; give at least one")
        for arm in self.arms:
            if not isinstance(arm, Arm):
                raise UserError(f"arms: {arm!r} is not an Arm; make arms with Arm, product, zipped or chained")
            if not arm.name or not isinstance(arm.name, str):
                raise UserError(f"arms: the arm that sets {dict(arm.values)} has no name; give it one")
        folders: dict[str, str] = {}
        for name, folder in ((arm.name, arm.folder) for arm in self.arms):
            other = folders.setdefault(folder.lower(), name)
            if list(a.name for a in self.arms).count(name) > 1:
                raise UserError(f"arms: two arms are named {name!r}; give each its own name")
            if other != name:
                raise UserError(f"arms: {other!r} and {name!r} would share the folder {folder}; rename one")
        names = [arm.name for arm in self.arms]
        if self.default is not None and self.default not in names:
            raise UserError(f"default={self.default!r}: there is no such arm{configs.nearest(self.default, names)}")
        seeds = self.seeds_tuple
        if not seeds or any(isinstance(s, bool) or not isinstance(s, int) or not 0 <= s < 2**31 for s in seeds):
            raise UserError(f"seeds={self.seeds!r}: must be a count of at least 1, or whole numbers from 0 to 2^31 - 1")
        if len(set(seeds)) < len(seeds):
            raise UserError(f"seeds={self.seeds!r}: names a seed twice; give each once")
        if not self.columns:
            raise UserError(
                'columns: is empty; name metrics of results.json, such as {"linear_probe/accuracy": "linear probe"}'
            )
        for key, heading in self.columns.items():
            if not isinstance(key, str) or not isinstance(heading, str):
                raise UserError(f"columns: {key!r}: {heading!r}: write metric: heading, both text")
        for key in self.figure.y if self.figure else ():
            if key not in self.columns:
                raise UserError(f"figure.y: {key!r} is not a column{configs.nearest(str(key), self.columns)}")
        if self.published is not None:
            self._check_published(names)

    def _check_published(self, names: list[str]) -> None:
        for key, points in self.published.curves.items():
            if key not in self.published.columns:
                raise UserError(f"published.curves: {key!r} is not among published.columns")
            if not all(isinstance(point, list | tuple) and len(point) == 2 for point in points):
                raise UserError(f"published.curves[{key!r}]: write ((x, value), ...)")
        for name, row in self.published.rows.items():
            if name not in names:
                raise UserError(f"published.rows: {name!r} is not an arm{configs.nearest(str(name), names)}")
            row = tuple(row) if isinstance(row, list | tuple) else (row,)
            good = all(v is None or isinstance(v, int | float) and not isinstance(v, bool) for v in row)
            if not good or len(row) != len(self.published.columns):
                raise UserError(f"published.rows[{name!r}]={row!r}: expected {len(self.published.columns)} numbers")

    @property
    def seeds_tuple(self) -> tuple[int, ...]:
        return tuple(range(self.seeds)) if isinstance(self.seeds, int) else tuple(self.seeds)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A checked experiment: its base config, with overrides applied, and its settings."""

    name: str  # "mae/mask_ratio", after the file
    card: str  # the file's docstring
    base: ConfigDict
    settings: ExperimentSettings
    command: str  # without --workdir

    @property
    def arms(self) -> Arms:
        return self.settings.arms

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.settings.seeds_tuple

    @property
    def default(self) -> str:
        return self.settings.default or self.arms[0].name

    def config(self, arm: Arm, seed: int) -> ConfigDict:
        """Return the config of one run, without `expected`, whose intervals hold only for the base config."""
        config = self.base.copy_and_resolve_references()
        config.seed = seed
        for key, value in arm.values.items():
            try:
                configs.assign(config, key, value)
            except UserError as error:
                raise UserError(f"arm {arm.name!r}: {error}") from None
        config.expected = ConfigDict()
        config.card = self.card
        return config

    def document(self) -> dict[str, Any]:
        """Return the content of sweep.json: plain values that identify the folder's sweep and from which the report is made."""
        settings = self.settings
        figure = settings.figure or Figure()
        axes = {"x": figure.x, "series": figure.series}

        def row(arm: Arm) -> dict[str, Any]:
            values = configs.flat(self.config(arm, 0).to_dict())
            return {"name": arm.name, "folder": arm.folder, "values": dict(arm.values)} | {
                axis: values[key] for axis, key in axes.items() if key
            }

        document = {
            "name": self.name,
            "command": self.command,
            "config": self.base.to_dict(),
            "arms": [row(arm) for arm in self.arms],
            "seeds": list(self.seeds),
            "default": self.default,
            "columns": dict(settings.columns),
            "figure": dataclasses.asdict(figure),
            "published": dataclasses.asdict(settings.published) if settings.published else None,
            "share_data": settings.share_data,
            "card": self.card,
        }
        return json.loads(json.dumps(document, default=str))


def load(file: str, *, settings: Mapping[str, str] | None = None, overrides: Mapping[str, str] | None = None) -> Experiment:
    """Load the experiment of a file, with `--experiment.KEY` (`settings`) and `--config.KEY` (`overrides`) applied.

    Raise UserError for a missing file, a file without get_experiment, an unknown setting, and an override of a key that
    the arms set themselves.
    """
    card, section = _read_file(file)
    if not isinstance(section, Mapping):
        raise UserError(f"{file}: get_experiment() returned {type(section).__name__}; return a dict of settings")
    section = dict(section)
    for key, value in (settings or {}).items():
        *parents, last = key.split(".")
        place = section
        for name in parents:
            place[name] = dict(place.get(name) or {})
            place = place[name]
        place[last] = configs.literal(value, place.get(last))
    try:
        read = configs.read(ExperimentSettings, section, "experiment")
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    flags = [*(f"--experiment.{k}={v}" for k, v in (settings or {}).items()),
             *(f"--config.{k}={v}" for k, v in (overrides or {}).items())]  # fmt: skip
    command = shlex.join(["ssl-jax", "sweep", f"--experiment={file}", *flags])
    path = pathlib.Path(file).resolve()
    base = _base(read, file, overrides or {})
    experiment = Experiment(f"{path.parent.name}/{path.stem}", card, base, read, command)
    _check_axes(experiment, file)
    return experiment


def _check_axes(experiment: Experiment, file: str) -> None:
    """Raise UserError if an arm has no value for the figure's `x` or `series`."""
    figure = experiment.settings.figure
    for name, key in (("x", figure and figure.x), ("series", figure and figure.series)):
        for arm in experiment.arms if key else ():
            keys = configs.flat(experiment.config(arm, 0).to_dict())
            if key not in keys:
                near = configs.nearest(key, [k for k in keys if not k.startswith(("downstream.", "card"))])
                raise UserError(f"{file}: figure.{name}={key!r}: the config of arm {arm.name!r} sets no such key{near}")


def _read_file(file: str) -> tuple[str, Any]:
    """Return (docstring, result of get_experiment()) of an experiment file."""
    if not pathlib.Path(file).is_file():
        raise UserError(f"--experiment={file}: there is no such file")
    module = configs.execute(file, "--experiment", "get_experiment")
    with configs.one_line(file, file):
        return module.__doc__ or "", module.get_experiment()


def _base(settings: ExperimentSettings, file: str, overrides: Mapping[str, str]) -> ConfigDict:
    if isinstance(settings.config, str):
        base = configs.load(_beside(file, settings.config))
    else:
        base = ConfigDict(dict(settings.config))
    for key, value in settings.overrides.items():
        try:
            configs.assign(base, key, value)
        except UserError as error:
            raise UserError(f"{file}: overrides: {error}") from None
    varied = {key: arm.name for arm in settings.arms for key in arm.values}
    for key, value in overrides.items():
        if key == "seed":
            raise UserError("--config.seed: give --experiment.seeds=N instead")
        inside = next((k for k in varied if f"{k}.".startswith(f"{key}.") or f"{key}.".startswith(f"{k}.")), None)
        if inside is not None:
            raise UserError(f"--config.{key}: the arms set {inside} themselves (arm {varied[inside]!r}); change the experiment")
        configs.override(base, key, value)
    if "seed" in varied:
        raise UserError(f"{file}: arm {varied['seed']!r} sets seed; use `seeds` instead, with each of which every arm runs")
    if "card" in base:
        del base.card
    configs.check_sections(base, file)
    return base


def _beside(file: str, spec: str) -> str:
    """Resolve a config's FILE[:ARG] relative to the experiment file; return the shortest path from the current directory."""
    path, colon, argument = spec.partition(":")
    return f"{(pathlib.Path(file).resolve().parent / path).resolve()}{colon}{argument}"
