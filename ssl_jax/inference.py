"""The commands that use a trained model: reconstruct, generate, fill-mask, embed, retrieve."""

import itertools
import math
import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ssl_jax import data, runs
from ssl_jax.data.sources import Source
from ssl_jax.data.sources.files import without_surrogates
from ssl_jax.data.sources.text_columns import Table
from ssl_jax.errors import UserError
from ssl_jax.task import DataInfo, Params, Task
from ssl_jax.workdir import Workdir


def restore_task(workdir: str, needed: tuple[str, ...], command: str) -> tuple[Task, Params, DataInfo]:
    """Return the run's task, parameters and data info; raise UserError unless the task is one of `needed`."""
    task, params, info = runs.restore(workdir)
    if needed and task.name not in needed:
        raise UserError(f"{command}: {workdir} is a run of the task {task.name}; this command needs {' or '.join(needed)}")
    return task, params, info


def dataset_of(workdir: str, task: Task, uri: str | None, info: DataInfo) -> Any:
    """Return the run's test data, or the source `uri` with the run's image size, normalisation and tokenizer."""
    config = ConfigDict(dict(data={}, task=dict(name=task.name)))
    if not workdir.startswith("hf:"):
        config = Workdir.existing(workdir).config()
    if uri is None and not config.data:
        raise UserError(f"{workdir}: has no data; name a source, such as folder:DIR")
    section, options = config.data, {}
    if uri is not None:
        section = ConfigDict(runs.data_as_trained(config.data, task, info, workdir) | dict(train=uri, test=uri))
    if uri is not None and task.data in ("images", "pairs"):  # a source with its own classes, or without labels
        section, options = ConfigDict({**section, "classes": ()}), {"unlabelled": True}
    return data.build(task.data, section, split="test", train=False, task_section=config.task, workdir=workdir, **options)


def reconstruct(workdir: str, *, images: str | None, count: int, seed: int, to: str | None) -> None:
    """Write original, masked and reconstructed images as a PNG sheet."""
    from ssl_jax.randomness import stream
    from ssl_jax.reports.panels import image_sheet, write

    if count < 1:
        raise UserError(f"--count={count}: must be at least 1")
    task, params, info = restore_task(workdir, ("masked_image",), "reconstruct")
    batch = runs.panel_batch(dataset_of(workdir, task, images, info), count)
    panel = task.panels(params, batch, stream(seed, "reconstruct"))["reconstruction"]
    path = pathlib.Path(to or f"{workdir}/reconstructions.png")
    if not path.parent.is_dir():
        raise UserError(f"--to={path}: there is no directory {path.parent}; make it first")
    write(path, image_sheet(panel))
    print(path)


def generate(workdir: str, *, prompt: str, max_tokens: int, temperature: float, top_k: int | None, top_p: float | None,
             num_samples: int, seed: int) -> None:  # fmt: skip
    """Print continuations of `prompt`, or for an empty prompt new texts."""
    from ssl_jax.pretext import generation

    task, params, info = restore_task(workdir, ("next_token",), "generate")
    tokenizer = info.tokenizer
    prompt = without_surrogates(prompt)
    given = generation.prompt_tokens(tokenizer, prompt)
    samples = generation.generate(
        task, params, given, max_tokens=max_tokens, temperature=temperature, top_k=top_k,
        top_p=top_p, num_samples=num_samples, key=seed,
    )  # fmt: skip
    texts = []
    for row in samples.tolist():
        row = list(itertools.takewhile(lambda token: token not in tokenizer.stop_ids, row))
        start, whole = tokenizer.decode(given), tokenizer.decode([*given, *row])  # some decoders depend on the previous token
        texts.append(prompt + (whole[len(start) :] if whole.startswith(start) else tokenizer.decode(row)))
    print("\n\n---\n\n".join(texts))


def fill_mask(workdir: str, *, text: str, top: int) -> None:
    """Print the most likely words for each mask, with their probabilities."""
    from ssl_jax.pretext.generation import fill_mask as fill

    task, params, info = restore_task(workdir, ("masked_token",), "fill-mask")
    for place in fill(task, params, info.tokenizer, text, top=top):
        print("  ".join(f"{word} {probability:.3f}" for word, probability in place))


TEXT_KINDS = ("tokens", "sequences", "labelled_text")  # kinds of data with one text per example


def embed(workdir: str, *, data: str, features: tuple[str, ...], to: str) -> None:
    """Write the named features of a source to an npz file, one row per example in the source's order.

    The file also holds "index" i64[rows], each row's number in the source; "name", its name in the source (a file, a line);
    "skipped", the names of examples without a row; and, if there are labels, "label" i32[rows], -1 for none, and the names
    "classes". In a text, each line or record is an example, truncated to the model's context.
    """
    path = pathlib.Path(to)
    if path.suffix != ".npz" or not path.absolute().parent.is_dir():
        raise UserError(f"--to={to}: name a .npz file in a directory that exists")
    task, params, info = restore_task(workdir, (), "embed")
    of_text = task.data in TEXT_KINDS
    source, index, arrays = (text_features if of_text else dataset_features)(workdir, task, params, info, data, features)
    name = lambda i: source.describe(i).removeprefix(f"{source.name}: ")
    skipped = [name(i) for i in sorted(set(range(len(source))) - set(index.tolist()))]
    places = {"index": index, "name": np.array([name(i) for i in index.tolist()]), "skipped": np.array(skipped, str)}
    np.savez(path, **{key.replace("/", "."): value for key, value in arrays.items()}, **places)
    print(f"{path}: " + ", ".join(f"{key} {list(value.shape)}" for key, value in arrays.items()))
    if skipped:
        more = f" and {len(skipped) - 5:,} more" if len(skipped) > 5 else ""
        print(f"skipped {len(skipped):,} of {len(source):,} examples: {', '.join(skipped[:5])}{more}")


def dataset_features(
    workdir: str, task: Task, params: Params, info: DataInfo, uri: str, names: tuple[str, ...]
) -> tuple[Source, np.ndarray, dict[str, np.ndarray]]:
    """Return (source, index of each row in it, features) of a source read like the run's own data."""
    from ssl_jax.data.pipeline import Part
    from ssl_jax.downstream.evaluators.features import Encoder

    dataset = dataset_of(workdir, task, uri, info)
    arrays = Encoder(task, params).extract(dataset, names)
    index, source = arrays.pop("index").astype(np.int64), dataset.source
    while isinstance(source, Part):
        index, source = source.indices[index], source.parent.source
    return source, index, arrays | ({"classes": np.array(dataset.info.classes, str)} if "label" in arrays else {})


def text_features(
    workdir: str, task: Task, params: Params, info: DataInfo, uri: str, names: tuple[str, ...]
) -> tuple[Source, np.ndarray, dict[str, np.ndarray]]:
    """Return (table of texts, index of each row in it, features) of a text source, one row per line or record."""
    from ssl_jax.data.text.encoding import bucket, encode_sentences, encode_texts
    from ssl_jax.data.text.lines import text_dataset, text_rows
    from ssl_jax.downstream.evaluators.features import Encoder

    section = {} if workdir.startswith("hf:") else Workdir.existing(workdir).config().data.to_dict()
    table, labels = text_rows(uri, section, info.classes)
    causal, tokenizer = task.data == "tokens", info.tokenizer
    longest = info.shapes["tokens"].shape[0] - causal
    index = np.arange(len(table))
    if causal and not tokenizer.begin_ids:  # the model cannot read an empty text
        index = np.array([i for i, text in enumerate(table.columns["text"]) if tokenizer.encode(text)], np.int64)
    column = lambda name: [table.columns[name][i] for i in index]
    if len(index) == 0:
        raise UserError(f"{uri}: contains only empty texts; name a source with text")
    if causal:
        tokens, length = encode_texts(tokenizer, column("text"), longest)
        arrays = {"tokens": tokens, "length": length}
    else:
        pairs = column("pair") if "pair" in table.columns else None
        tokens, token_types, length, _ = encode_sentences(tokenizer, column("text"), pairs, longest)
        arrays = {"tokens": tokens, "length": length, "token_types": token_types}
    encoder, found = Encoder(task, params), {}
    every_token = any("tokens" in name for name in names)  # all features must have the same shape
    width = np.array([longest if every_token else bucket(n, longest) for n in length.tolist()])
    for size in np.unique(width):
        rows = np.flatnonzero(width == size)
        part = {name: value[rows] if value.ndim == 1 else value[rows, :size] for name, value in arrays.items()}
        places = Table(table.name, {}, tuple(table.places[i] for i in index[rows]))
        extracted = encoder.extract(text_dataset(info, part, places), names)
        for name, value in extracted.items():
            found.setdefault(name, np.zeros((len(index), *value.shape[1:]), value.dtype))[rows] = value
    del found["index"]  # an index within texts of one width
    named = {} if labels is None else {"label": labels[index], "classes": np.array(info.classes, str)}
    return table, index, found | named


def retrieve(workdir: str, *, text: str | None, images: str | None, image: str | None, texts: str | None, top: int,
             to: str | None) -> None:  # fmt: skip
    """Write the best images for a text as a contact sheet, or print the best captions for an image."""
    from ssl_jax.downstream.evaluators.retrieval import retrieve as rank

    task, params, info = restore_task(workdir, ("image_text",), "retrieve")
    path = to or f"{workdir}/retrieved.png"
    for name, score in rank(task, params, info, text=text, images=images, image=image, texts=texts, top=top, to=path):
        print(name if math.isnan(score) else f"{score:6.3f}  {name}")
    if text is not None:
        print(path)
