"""What `ssl-jax data list | inspect URI | prepare URI` print."""

from ssl_jax.data.inspection import inspect as inspect
from ssl_jax.data.sources import SCHEMES, load_source, tfds
from ssl_jax.data.sources.bundled import BUNDLED

FORMS = {
    "bundled": "bundled:NAME[/SPLIT]           ships with the package",
    "npz": "npz:FILE                       arrays by name: image, label",
    "folder": "folder:DIR                     class folders of images, or one flat folder without labels",
    "tfds": "tfds:NAME[/CONFIG][:SPLIT]     what TFDS prepared as ArrayRecord",
    "text": "text:GLOB                      plain text files",
    "jsonl": "jsonl:FILE                     one JSON object a line: columns by name",
    "csv": "csv:FILE                       columns by name: image path, caption, label; text",
    "tsv": "tsv:FILE                       the same, between tabs",
    "tar": "tar:GLOB                       shards of image, text and class files that share a name",
    "parquet": "parquet:GLOB                   tables of the datasets library: image, label, caption; text",
}


def list_sources(dir: str | None = None) -> str:
    """Return the schemes, the bundled data sets, and what is prepared for `tfds:` in `dir` (or TFDS_DATA_DIR), as text."""
    lines = ["sources:", *("  " + FORMS.get(scheme, scheme + ":...") for scheme in SCHEMES), "bundled:"]
    lines += [f"  bundled:{name}" for name in BUNDLED]
    root = tfds.data_dir(dir)
    found = sorted(path.parent.relative_to(root).as_posix() for path in root.glob("**/dataset_info.json"))
    lines += [f"prepared in {root}:", *(f"  tfds:{name}" for name in found or ["(nothing)"])]
    return "\n".join(lines)


def prepare(uri: str, *, dir: str | None = None) -> str:
    """Prepare a `tfds:` data set as ArrayRecord, once; every other source is read as it is."""
    scheme, _, rest = uri.partition(":")
    if scheme != "tfds":
        return f"{uri}: {len(load_source(uri)):,} examples; needs no preparation"
    name = rest.partition(":")[0]
    return f"tfds:{name}: prepared in {tfds.prepare(name, dir)}"
