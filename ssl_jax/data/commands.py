"""What `ssl-jax data list | inspect URI | prepare URI` print."""

from typing import Any

import numpy as np

from ssl_jax.data.sources import SCHEMES, load_source, tfds
from ssl_jax.data.sources.bundled import BUNDLED
from ssl_jax.errors import UserError

FORMS = {
    "bundled": "bundled:NAME[/SPLIT]           ships with the package",
    "npz": "npz:FILE                       arrays by name: image, label",
    "folder": "folder:DIR                     class folders of images, or one flat folder without labels",
    "tfds": "tfds:NAME[/CONFIG][:SPLIT]     what TFDS prepared as ArrayRecord",
    "text": "text:GLOB                      plain text files",
    "jsonl": "jsonl:FILE                     one JSON object a line: columns by name",
    "csv": "csv:FILE                       columns by name, header or not",
    "tsv": "tsv:FILE                       the same, between tabs",
    "tar": "tar:GLOB                       shards of image and text files that share a name",
}


def list_sources(dir: str | None = None) -> str:
    """The schemes, the bundled data sets, and what is prepared for `tfds:` in `dir` (or TFDS_DATA_DIR)."""
    lines = ["sources:", *("  " + FORMS.get(scheme, scheme + ":...") for scheme in SCHEMES), "bundled:"]
    lines += [f"  bundled:{name}" for name in BUNDLED]
    root = tfds.data_dir(dir)
    found = sorted(path.parent.relative_to(root).as_posix() for path in root.glob("**/dataset_info.json"))
    lines += [f"prepared in {root}:", *(f"  tfds:{name}" for name in found or ["(nothing)"])]
    return "\n".join(lines)


def inspect(uri: str, index: int | None = None, *, dir: str | None = None) -> str:
    """What a source holds: its size, classes and first example; with `index`, that example."""
    source = load_source(uri, **({"dir": dir} if dir else {}))
    if index is not None and not 0 <= index < len(source):
        raise UserError(f"{uri}: has no example {index}; its {len(source):,} examples are 0 to {len(source) - 1}")
    lines = [uri, f"  examples  {len(source):,}"]
    labels = source.labels() if index is None else None
    if source.classes:
        shown = ", ".join(source.classes[:10]) + (" ..." if len(source.classes) > 10 else "")
        lines.append(f"  classes   {len(source.classes)}: {shown}")
    if labels is not None:
        counts = np.bincount(labels, minlength=len(source.classes))
        lines.append(f"  labels    {counts.min():,} to {counts.max():,} examples a class")
    lines.append(f"  {source.describe(index or 0)}")
    lines += [f"    {name:9} {_value(value)}" for name, value in source[index or 0].items()]
    return "\n".join(lines)


def _value(value: Any) -> str:
    if isinstance(value, bytes):
        return _encoded(value)
    if isinstance(value, np.ndarray) and value.ndim:
        return f"{value.dtype}{list(value.shape)} from {value.min()} to {value.max()}" if value.size else "nothing"
    if isinstance(value, str):
        text = value if len(value) <= 200 else f"{value[:200]}... ({len(value):,} characters)"
        return repr(text)
    return str(value)


def _encoded(data: bytes) -> str:
    """A file's format, size and mode, from its header."""
    import io

    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data))
    except Exception:
        return f"{len(data):,} bytes that are no image"
    return f"{image.format}, {image.size[0]} x {image.size[1]}, {image.mode}, {len(data):,} bytes"


def prepare(uri: str, *, dir: str | None = None) -> str:
    """Prepares a `tfds:` data set as ArrayRecord, once; every other source is read as it is."""
    scheme, _, rest = uri.partition(":")
    if scheme != "tfds":
        return f"{uri}: {len(load_source(uri)):,} examples; needs no preparation"
    name = rest.partition(":")[0]
    return f"tfds:{name}: prepared in {tfds.prepare(name, dir)}"
