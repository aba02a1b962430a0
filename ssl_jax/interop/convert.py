"""Import and export of published weights: `load_pretrained` reads them into memory, `convert` converts files."""

import importlib
import os
import pathlib
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ssl_jax import downstream, initialisation, pretext
from ssl_jax.errors import UserError
from ssl_jax.interop import files, image_text, language, originals, vision
from ssl_jax.interop.family import Family, Sections
from ssl_jax.interop.image_encoder import ImageEncoder
from ssl_jax.interop.mapping import Tensors, to_ours, to_theirs
from ssl_jax.pretext.data2vec import Data2VecText
from ssl_jax.pretext.views import ImageTask
from ssl_jax.task import DataInfo, Params, Task
from ssl_jax.training.rules import flatten

FAMILIES: tuple[Family, ...] = (*vision.FAMILIES, *language.FAMILIES, *image_text.FAMILIES)


def load_pretrained(directory: str | os.PathLike[str]) -> tuple[Task, dict, DataInfo]:
    """Return (task, parameters f32, data info) of a directory in Hugging Face layout or a file in a project's own layout.

    Raise UserError if it holds no model, if the architecture is not supported, or if the tensors do not fit it.
    """
    return _load(_path(directory))[:3]


def convert(source: str, target: str, checkpoint: int | None = None) -> str:
    """Convert hf:DIR or FILE.pth to a work directory, or a work directory to hf:DIR; return one line that describes the result.

    checkpoint: the step that is exported, by default the newest. Nothing is written to the target before everything has been
    checked.
    """
    if source.startswith("hf:") and target.startswith("hf:"):
        raise UserError(f"--from={source} --to={target}: one of the two must be a work directory")
    if target.startswith("hf:"):
        return _export(source, _path(target), checkpoint)
    if not source.startswith("hf:") and not source.endswith(originals.SUFFIXES):
        raise UserError(
            f"--from={source} --to={target}: one must be hf:DIR, a directory in Hugging Face layout, or --from a .pth file"
        )
    return _import(_path(source), pathlib.Path(target))


def _path(name: str | os.PathLike[str]) -> pathlib.Path:
    """Expand "~", which a shell does not expand in hf:~/models."""
    return pathlib.Path(str(name).removeprefix("hf:")).expanduser()


# In --------------------------------------------------------------------------------------------------------------------


def _load(path: pathlib.Path) -> tuple[Task, dict, DataInfo, ConfigDict, str]:
    if str(path).endswith(originals.SUFFIXES) and not path.is_dir():
        family, sections, tensors = originals.read(path)
        source = str(path)
    else:
        theirs = files.read_config(path)
        named = family_named(theirs, path)
        tensors, preprocessing = files.read_tensors(path), files.read_preprocessing(path, theirs)
        family, source = fullest(named, tensors, bool(theirs.get("architectures"))), preprocessing.source
        sections = family.read(theirs, tensors, preprocessing)
    config = config_of(sections)
    try:
        task = task_class(config).from_config(config, sections.info)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    return task, read_params(family, task, tensors, source), sections.info, config, family.architecture


def family_named(theirs: dict, path: pathlib.Path) -> Family:
    """Return the family named by config.json's "architectures", else by its "model_type"."""
    named = theirs.get("architectures") or []
    known = {family.architecture: family for family in FAMILIES}
    for name in named if isinstance(named, list) else []:
        if name in known:
            return known[name]
    if not named:
        for family in FAMILIES:
            if family.model_type == theirs.get("model_type"):
                return family
    said = ", ".join(map(str, named)) if isinstance(named, list) and named else theirs.get("model_type")
    if said is None:
        raise UserError(f'hf:{path}: config.json names neither "architectures" nor "model_type"; add one of {", ".join(known)}')
    raise UserError(f"hf:{path}: architecture {said!s} is not supported; use one of {', '.join(known)}")


def fullest(family: Family, tensors: Tensors, named: bool) -> Family:
    """Return `family`, or the family of its model type that the tensors' names show to be larger: the config.json of
    bert-base-uncased says BertForMaskedLM, its weights are a BertForPreTraining's."""
    least = len(family.marks) if named else -1
    for other in sorted(FAMILIES, key=lambda other: -len(other.marks)):
        if other.model_type == family.model_type and len(other.marks) > least and all(mark in tensors for mark in other.marks):
            return other
    return family


def config_of(sections: Sections) -> ConfigDict:
    """Return a complete config with the sections that were read, so that the result is an ordinary work directory."""
    return ConfigDict({
        "seed": 0, "task": dict(sections.task), "model": dict(sections.model), "data": {},
        "training": {"dtype": "float32"}, "optimizer": {},
    })  # fmt: skip


def task_class(config: ConfigDict) -> Any:
    module, _, name = {**pretext.TASKS, **downstream.TASKS}[config.task.name].partition(":")
    return getattr(importlib.import_module(module), name)


def shapes_of(task: Task) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a task's parameters by path."""
    return {path: leaf.shape for path, leaf in flatten(initialisation.shapes_of(task)).items()}


def nested(flat: Tensors) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        place = params
        for name in parents:
            place = place.setdefault(name, {})
        place[last] = value
    return params


def read_params(family: Family, task: Task, tensors: Tensors, source: str) -> dict[str, Any]:
    tensors, shapes = family.names(task, tensors, source), shapes_of(task)
    shapes |= {path: shapes[like] for path, like in family.carried(task).items()}
    return nested(to_ours(family.rows(task), tensors, shapes, source))


def _import(path: pathlib.Path, target: pathlib.Path) -> str:
    from ssl_jax.training.checkpoint import Checkpoints
    from ssl_jax.training.settings import CheckpointSettings
    from ssl_jax.workdir import Workdir

    task, params, info, config, architecture = _load(path)
    with files.appearing_whole(target) as folder:
        workdir = Workdir(folder)
        workdir.start(config, info)
        checkpoints = Checkpoints(folder / "checkpoints", CheckpointSettings(keep=1))
        checkpoints.save(0, {"params": params}, {"exported": True, "from": str(path)})
        checkpoints.close()
        workdir.write("status.json", {"trained": 0, "imported": architecture})
    return f"{target}: {architecture}, {_count(params)} parameters, as a work directory of the task {task.name}"


# Out -------------------------------------------------------------------------------------------------------------------


def _export(source: str, target: pathlib.Path, checkpoint: int | None) -> str:
    from ssl_jax.data.images.settings import eval_crop
    from ssl_jax.training.checkpoint import load_params
    from ssl_jax.workdir import Workdir

    workdir = Workdir.existing(source)
    config, info = workdir.config(), workdir.info()
    if config.task.get("name") not in {**pretext.TASKS, **downstream.TASKS}:
        raise UserError(f"--from={source}: task.name={config.task.get('name')!r} is unknown")
    task = task_class(config).from_config(config, info)
    _, params = load_params(workdir.path / "checkpoints", checkpoint)
    task, params, left_out = encoder_alone(task, params)
    architecture, theirs, tensors = exported(task, params)
    with files.appearing_whole(target) as folder:
        files.write_directory(folder, theirs, tensors, info, eval_crop(config.get("data"), task.data, info))
    without = f", without the task's own: {', '.join(left_out)}" if left_out else ""
    return f"hf:{target}: {architecture}, {_count(params)} parameters{without}"


def hindrance(task: Task) -> str | None:
    """Return one line that names the setting because of which no architecture can hold the model; None if one can."""
    if isinstance(task, ImageTask):
        task = ImageEncoder(task.encoder, task.info)
    try:
        family = family_of(task)
        family.write(task), family.rows(task)
    except UserError as error:
        return str(error).removesuffix("; it cannot hold this model")
    return None


def encoder_alone(task: Task, params: Params) -> tuple[Task, Params, tuple[str, ...]]:
    """Return the encoder of a task whose head no architecture holds (a predictor, prototypes), and the omitted parameters."""
    if isinstance(task, ImageTask):
        task, name = ImageEncoder(task.encoder, task.info), "encoder"
    elif isinstance(task, Data2VecText):
        name = "transformer"
    else:
        return task, params, ()
    return task, {name: params[name]}, tuple(sorted(set(params) - {name}))


def family_of(task: Task) -> Family:
    """Return the family that a task's model is exported as; raise UserError if there is none."""
    family = next((family for family in FAMILIES if family.can_hold(task)), None)
    if family is None:
        raise UserError(f"task.name={task.name!r}: no architecture that can be exported holds this task's model")
    return family


def exported(task: Task, params: Params) -> tuple[str, dict[str, Any], dict[str, np.ndarray]]:
    """Return (architecture, config.json, tensors by name); raise UserError if no architecture can hold the model."""
    family = family_of(task)
    theirs = {"architectures": [family.architecture], "model_type": family.model_type, "dtype": "float32"}
    theirs |= family.write(task)
    ours = flatten(params)
    ours = {path: ours[like] for path, like in family.carried(task).items() if like in ours} | ours
    return family.architecture, theirs, to_theirs(family.rows(task), ours, family.architecture)


def _count(params: Params) -> str:
    return f"{sum(np.size(leaf) for leaf in jax.tree.leaves(params)):,}"
