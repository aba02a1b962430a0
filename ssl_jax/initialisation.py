"""Start from the trained weights that `config.task.init` names, for every task.

`task.init="hf:DIR"`, or a work directory, DIR or DIR@STEP, loads all parts that the two models share.
`task.init=dict(image=DIR, text=DIR)` names a source for each part of a model (a dual encoder's "image" and "text", a
translation model's "encoder" and "decoder") and loads nothing else.

A *trunk* is an image encoder or a text transformer, whatever part of a task's parameters it is. It is loaded as a whole, and
resized to other images, patches or contexts; another architecture is an error. Heads, decoders and projectors are loaded if
their names and shapes agree.
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ssl_jax.data.text.tokenizers import Tokenizer, is_stand_in
from ssl_jax.errors import UserError
from ssl_jax.models.dual_encoder import DualEncoder
from ssl_jax.models.encoder_decoder import CROSS, EncoderDecoder, PrefixDecoder
from ssl_jax.models.language import Transformer
from ssl_jax.models.vit import ViT
from ssl_jax.task import DataInfo, Params, Task
from ssl_jax.training.rules import flatten

MARKS = {
    "patch_embedding": "image encoder",
    "token_embedding": "text transformer",
}  # the parameter that identifies a trunk of an unknown model
# Parameters of a trunk's readout, which one of the two models may lack.
READ_OFF = r"(final_norm|pooled_norm|pooling|pooler|mask_token)(/.*)?"
# Settings of a trunk that change no parameter's meaning: initialisation, training, implementation, readout, measurement.
FREE = {
    "init", "init_std", "attention", "remat", "scan", "drop_path", "dropout", "attention_dropout", "patch_size", "crop",
    "pooling", "pooler", "norm_pooled", "mask_token", "class_token", "context_length", "mask_padding", "vocabulary",
    "vocabulary_multiple", "tied", "output_bias", "head_transform", "layer_scale", "causal",
}  # fmt: skip
NOTED = {
    "norm_eps",
    "rope_theta",
    "rope_scaling",
    "local_rope_theta",
    "window",
}  # reported only, since a change may be intended
DERIVED = {"mlp_width": "width_of_mlp", "head_width": "width_of_head"}  # their values if they are not set


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained model and its name in the config."""

    task: Task
    params: Params
    info: DataInfo
    name: str


@dataclasses.dataclass(frozen=True)
class Trunk:
    """An image encoder or a text transformer among a task's parameters."""

    part: str  # the key of its parameters
    kind: str  # a value of MARKS
    model: Any  # ViT or Transformer; None for an unknown model
    section: str = "model"  # its section of the config


@dataclasses.dataclass
class Start:
    """The values that replace initial parameters, and a report."""

    values: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    sources: tuple[str, ...] = ()
    resized: list[str] = dataclasses.field(default_factory=list)
    fresh: list[str] = dataclasses.field(default_factory=list)
    unused: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def __call__(self, params: Params) -> Params:
        """Return the initial `params` with the loaded values; additional rows of a table keep their initial values."""

        def value(path: str, leaf: Any) -> Any:
            taken = self.values.get(path)
            if taken is None:
                return leaf
            return taken if taken.shape == leaf.shape else np.concatenate([taken, np.asarray(leaf)[len(taken) :]])

        leaves = [value(path, leaf) for path, leaf in flatten(params).items()]
        return jax.tree.unflatten(jax.tree.structure(params), leaves)

    def report(self) -> dict[str, Any]:
        """Return what was loaded, as recorded in a work directory."""
        return {
            "from": list(self.sources),
            "parameters": sum(value.size for value in self.values.values()),
            "taken": list(dict.fromkeys(path.split("/")[0] for path in self.values)),
            "resized": self.resized,
            "as_initialised": self.fresh,
            "not_used": self.unused,
            "notes": self.notes,
        }

    def line(self) -> str:
        """Return the report as one line."""
        found = self.report()
        said = [
            f"task.init: {found['parameters']:,} parameters of {', '.join(found['taken'])} from {' and '.join(self.sources)}"
        ]
        labels = (("resized", self.resized), ("as initialised", self.fresh), ("not used", self.unused), ("note", self.notes))
        return "; ".join(said + [f"{label}: {', '.join(items)}" for label, items in labels if items])


# Sources --------------------------------------------------------------------------------------------------------------


def named(task_section: Mapping[str, Any] | ConfigDict) -> dict[str, str]:
    """Return the sources of `task.init` by the part that they initialise; "" is the whole model."""
    init = task_section.get("init")
    if init is None:
        return {}
    if isinstance(init, str) and init:
        return {"": init}
    if hasattr(init, "items") and all(isinstance(path, str | None) for path in dict(init).values()):
        return {part: path for part, path in dict(init).items() if path}
    raise UserError(f"task.init={init!r}: expected a work directory, DIR@STEP, hf:DIR, or a section such as dict(image=DIR)")


def load(paths: Mapping[str, str], restore: Callable[[str, int | None], tuple[Task, Params, DataInfo]]) -> dict[str, Trained]:
    """Read each source once; `restore(path, step)` returns (task, parameters, data info)."""
    found: dict[str, Trained] = {}
    for path in dict.fromkeys(paths.values()):
        folder, step = split_step(path)
        try:
            found[path] = Trained(*restore(folder, step), path)
        except UserError as error:
            raise UserError(f"task.init: {str(error).removeprefix('--workdir=')}") from None
    return {part: found[path] for part, path in paths.items()}


def check_exist(paths: Mapping[str, str]) -> None:
    """Raise UserError for a missing source, before any data are read."""
    for path in paths.values():
        if not pathlib.Path(split_step(path)[0].removeprefix("hf:")).expanduser().exists():
            raise UserError(f"task.init: {path}: there is no such directory")


def split_step(path: str) -> tuple[str, int | None]:
    """Split DIR@STEP."""
    match = re.fullmatch(r"(.+)@(\d+)", path)
    return (match[1], int(match[2])) if match and not path.startswith("hf:") else (path, None)


def tokenizer_folder(paths: Mapping[str, str]) -> str | None:
    """Return the folder of the initial model's tokenizer; None if it has none."""
    for path in (path for part, path in paths.items() if part != "image"):
        folder = pathlib.Path(split_step(path)[0].removeprefix("hf:")).expanduser()
        for place in (folder / "tokenizer", folder):
            if (place / "tokenizer.json").is_file():
                return str(place)
    return None


# Matching -------------------------------------------------------------------------------------------------------------


def trunks(task: Task, tree: Mapping[str, Any]) -> list[Trunk]:
    """Return the image encoders and text transformers among the parameters `tree` of a task, decoders last."""
    image, text = MARKS.values()
    model = getattr(task, "model", None)
    if isinstance(model, DualEncoder):
        tower = Transformer(model.config.text, model.vocabulary, model.config.text.causal, context_length=model.context_length)
        return [Trunk("image", image, model.image_encoder, "model.image"), Trunk("text", text, tower, "model.text")]
    if isinstance(model, EncoderDecoder):
        return [Trunk(part, text, getattr(model, part), f"model.{part}") for part in ("encoder", "decoder")]
    if isinstance(model, PrefixDecoder):
        return [Trunk("transformer", text, model.transformer)]
    if isinstance(model, Transformer):
        return [Trunk("transformer", text, model)]
    if isinstance(getattr(task, "encoder", None), ViT):
        return [Trunk("encoder", image, task.encoder)]
    return [Trunk(part, kind, None) for part, value in tree.items() for mark, kind in MARKS.items()
            if isinstance(value, Mapping) and mark in value]  # fmt: skip


def shapes_of(task: Task) -> Params:
    """Return the tree of a task's parameters as shapes, without allocating memory."""
    batch = {name: jax.ShapeDtypeStruct((1, *s.shape), s.dtype) for name, s in task.info.shapes.items()}
    return jax.eval_shape(task.init, jax.random.key(0), batch)


def match(task: Task, sources: Mapping[str, Trained], *, heads: bool = True) -> Start:
    """Return the values that the parameters of `task` take from `sources`, given by part, or "" for the whole model.

    heads: whether to load parts that are not trunks too. Raise UserError if the architecture or vocabulary differs, or if a
    source has no parameters in common with the task.
    """
    shapes = shapes_of(task)
    wanted, start = trunks(task, shapes), Start(sources=tuple(dict.fromkeys(source.name for source in sources.values())))
    parts, whole = [trunk.part for trunk in wanted], sources.get("")
    for part in sources:
        if part and part not in parts:
            raise UserError(f"task.init.{part}: this model has no such part; its parts are {', '.join(parts)}")
    free = list(trunks(whole.task, whole.params)) if whole else []
    for trunk in wanted:
        source = sources.get(trunk.part, whole)
        if source is None:
            continue
        given = free if source is whole else trunks(source.task, source.params)
        given = [other for other in given if other.kind == trunk.kind]
        other = next((other for other in given if other.part == trunk.part), given[0] if given else None)
        if other is not None:
            take_trunk(start, trunk, other, source, shapes[trunk.part], task.info)
            free = [rest for rest in free if rest is not other]
        elif source is not whole:
            raise UserError(
                f"task.init.{trunk.part}: {source.name} holds {', '.join(sorted(source.params))}, but no {trunk.kind}"
            )
    if whole is not None:
        if wanted and not start.values:
            kinds = " or ".join(dict.fromkeys(trunk.kind for trunk in wanted))
            raise UserError(f"task.init: {whole.name} holds {', '.join(sorted(whole.params))}, but no {kinds}")
        start.unused += [trunk.part for trunk in free]
        take_heads(start, task, whole, shapes, parts if heads else list(shapes), heads)
    if not start.values:
        raise UserError(f"task.init: {' and '.join(start.sources)} has no parameters in common with this model; name another")
    start.fresh += [name for name in modules(flatten(shapes)) if name.split("/")[0] not in modules_parts(start)]
    start.fresh = list(dict.fromkeys(start.fresh))
    return start


def modules_parts(start: Start) -> set[str]:
    """Return the parts that were loaded or reported as newly initialised."""
    return {path.split("/")[0] for path in (*start.values, *start.fresh)}


def take_trunk(start: Start, trunk: Trunk, other: Trunk, source: Trained, shapes: Any, info: DataInfo) -> None:
    """Add the values of the trunk `other` of `source` to `start`, resized to `trunk`."""
    check_settings(start, trunk, other, source)
    new, tree = flatten(shapes), dict(source.params[other.part])
    if "class_token" in tree and "class_token" not in shapes and "positions" in tree:
        tree["positions"] = np.asarray(tree["positions"])[1:]
    if isinstance(trunk.model, ViT) and isinstance(other.model, ViT):
        note_normalization(start, source.info, info)
        if trunk.model.channels != other.model.channels:
            raise UserError(f"task.init: {source.name} reads images of {other.model.channels} channels, but the data have "
                            f"{trunk.model.channels}; add --config.data.channels={other.model.channels}")  # fmt: skip
        try:
            tree = trunk.model.adapt(tree, other.model.grid, other.model.config.patch)
        except UserError as error:
            raise UserError(f"task.init: {error}") from None
    old, before = flatten(tree), flatten(source.params[other.part])
    offset = getattr(getattr(trunk.model, "config", None), "position_offset", 0)
    for path, shape in ((path, leaf.shape) for path, leaf in new.items()):
        name = f"{trunk.part}/{path}"
        if path not in old:
            if not re.fullmatch(f"{READ_OFF}|{CROSS}", path):
                raise another(source, f"it lacks {name}", trunk)
            start.fresh.append(name.removesuffix("/scale").removesuffix("/bias"))
            continue
        value = np.asarray(old[path], np.float32)
        if path == "position_embedding" and value.shape[1:] == shape[1:]:
            value = for_context(value, shape[0], offset)
        elif path == "token_embedding" and value.shape[1:] == shape[1:]:
            value = for_vocabulary(value, shape[0], source, info)
        if value.shape[1:] != shape[1:] or value.ndim and path != "token_embedding" and value.shape != shape:
            raise another(source, f"{name} is {list(value.shape)} there and {list(shape)} here", trunk)
        if np.shape(before[path]) != shape:
            start.resized.append(f"{name} {list(np.shape(before[path]))} -> {list(shape)}")
        start.values[name] = value
    left = [path for path in old if path not in new]
    shared = trunk.part == "decoder" and "token_embedding" not in new
    wrong = [p for p in left if not (re.fullmatch(READ_OFF, p) or p == "class_token" or shared and p == "token_embedding")]
    if wrong:
        raise another(source, f"this model has no {other.part}/{wrong[0]}", trunk)
    start.unused += list(modules(f"{other.part}/{path}" for path in left))
    start.fresh = list(dict.fromkeys(start.fresh))


def another(source: Trained, why: str, trunk: Trunk) -> UserError:
    return UserError(f"task.init: {source.name} has another architecture: {why}; give {trunk.section} its settings")


def check_settings(start: Start, trunk: Trunk, other: Trunk, source: Trained) -> None:
    """Raise UserError, with the flags to add, unless both trunks compute the same function of their parameters."""
    ours, theirs = getattr(trunk.model, "config", None), getattr(other.model, "config", None)
    if ours is None or theirs is None:
        return
    fields = {f.name for f in dataclasses.fields(ours)} & {f.name for f in dataclasses.fields(theirs)}
    flags = []
    for name in (f.name for f in dataclasses.fields(ours) if f.name in fields - FREE):
        here, there = getattr(ours, name), getattr(theirs, name)
        if name in DERIVED and (here, there) != (None, None):  # if neither is set, they follow from other settings
            here, there = (getattr(config, DERIVED[name]) for config in (ours, theirs))
        elif name == "kv_heads" and (here, there) != (None, None):
            here, there = (config.kv_heads or config.heads for config in (ours, theirs))
        if here == there:
            continue
        if name in NOTED:
            start.notes.append(f"{trunk.section}.{name}={here} here, {there} there")
        else:
            flags.append(f"--config.{trunk.section}.{name}={there}")
    if getattr(ours, "class_token", False) and not getattr(theirs, "class_token", True):
        flags.append(f"--config.{trunk.section}.class_token=False")
    if (ours.layer_scale is None) != (theirs.layer_scale is None):
        flags.append(f"--config.{trunk.section}.layer_scale={theirs.layer_scale}")
    if flags:
        raise UserError(f"task.init: {source.name} has another architecture; to use it, add {' '.join(flags)}")
    causal = [getattr(t.model, "causal", None) for t in (trunk, other)]
    if causal[0] != causal[1]:
        start.notes.append(f"{trunk.part} is {'' if causal[0] else 'not '}causal here, {'' if causal[1] else 'not '}there")


def take_heads(
    start: Start, task: Task, source: Trained, shapes: Mapping[str, Any], trunk_parts: Iterable[str], wanted: bool
) -> None:
    """Add the parts that are not trunks, each module if all its names and shapes agree.

    A head over classes is loaded only if the classes are the same.
    """
    limits = getattr(task, "index_limits", dict)()
    classes = len(task.info.classes) if "label" in limits and task.info.classes != source.info.classes else None
    params = dict(source.params)
    if "pooler" not in params and "pooler" in params.get("next_sentence", {}):
        params["pooler"] = params["next_sentence"]["pooler"]
    old = flatten({part: value for part, value in params.items() if part not in source_trunks(source)})
    new = {path: leaf for path, leaf in flatten(shapes).items() if wanted and path.split("/")[0] not in trunk_parts}
    for module in modules(new):
        ours = {path: leaf.shape for path, leaf in new.items() if inside(path, module)}
        theirs = {path: np.shape(leaf) for path, leaf in old.items() if inside(path, module)}
        over_classes = classes is not None and all(shape[-1:] == (classes,) for shape in ours.values())
        if ours == theirs and not over_classes:
            start.values |= {path: np.asarray(old[path], np.float32) for path in ours}
        else:
            start.fresh.append(module)
    start.unused += [module for module in modules(old) if not any(inside(path, module) for path in start.values)]


def source_trunks(source: Trained) -> list[str]:
    return [trunk.part for trunk in trunks(source.task, source.params)]


def modules(paths: Iterable[str]) -> list[str]:
    """Return the modules of some paths: "decoder/stack" of "decoder/stack/block00/..."; "head" of "head/kernel"."""
    return list(dict.fromkeys("/".join(path.split("/")[:-1][:2]) or path for path in paths))


def inside(path: str, module: str) -> bool:
    return path == module or "/".join(path.split("/")[:-1][:2]) == module


def note_normalization(start: Start, there: DataInfo, here: DataInfo) -> None:
    """Report if images were normalised differently in the source."""
    spread = lambda values: (
        np.broadcast_to(np.asarray(values, float), 3) if len(values) in (1, 3) else np.asarray(values, float)
    )
    pairs = ((there.mean, here.mean), (there.std, here.std))
    if all(a and b for a, b in pairs) and not all(np.allclose(spread(a), spread(b), atol=0.02) for a, b in pairs):
        rounded = lambda values: tuple(round(float(v), 3) for v in values)
        start.notes.append(
            f"it read images normalised by mean {rounded(there.mean)} and deviation {rounded(there.std)}, data.normalize has "
            f"{rounded(here.mean)} and {rounded(here.std)}"
        )


def for_context(table: np.ndarray, rows: int, offset: int = 0) -> np.ndarray:
    """Return a table of learned positions for another context: truncated, or repeated (Beltagy et al. 2020, section 5).

    offset: the number of leading rows without a position (RoBERTa's padding), which are unchanged.
    """
    body, wanted = table[offset:], rows - offset
    return np.concatenate([table[:offset], np.tile(body, (-(-wanted // len(body)), 1))[:wanted]])


def for_vocabulary(table: np.ndarray, rows: int, source: Trained, info: DataInfo) -> np.ndarray:
    """Return the rows of a token embedding for this vocabulary, which may have new tokens at its end.

    Raise UserError if a token has another id, since it would get another token's embedding.
    """
    here, there = info.tokenizer, source.info.tokenizer
    known = all(isinstance(t, Tokenizer) and not is_stand_in(t) for t in (here, there))
    if known and here.key != there.key:
        vocabulary, other = here.vocabulary, there.vocabulary
        token = next((token for token, i in other.items() if i < rows and vocabulary.get(token) != i), None)
        if token is not None:
            folder = tokenizer_folder({"": source.name}) or "DIR"
            raise UserError(
                f"task.init: {source.name} has another vocabulary: {token!r} is {other[token]} there and "
                f"{vocabulary.get(token, 'no token')} here; add --config.data.tokenizer.name=file "
                f"--config.data.tokenizer.path={folder}"
            )
    if rows < len(table) and known and here.size > rows or not known and rows != len(table):
        raise UserError(f"task.init: {source.name} has {len(table):,} tokens, but this model {rows:,}; use its tokenizer")
    return table[:rows]
