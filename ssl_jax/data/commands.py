"""The output of `ssl-jax data list | inspect URI | prepare URI`."""

from ssl_jax.data.inspection import inspect as inspect
from ssl_jax.data.sources import SCHEMES, TEXT_ONLY, load_source, tfds
from ssl_jax.data.sources.bundled import BUNDLED

FORMS = {
    "bundled": "bundled:NAME[/SPLIT]           ships with the package",
    "npz": "npz:FILE                       arrays by name: image, label",
    "folder": "folder:DIR                     class folders of images, or one flat folder without labels",
    "tfds": "tfds:NAME[/CONFIG][:SPLIT]     what TFDS prepared as ArrayRecord",
    "text": "text:GLOB                      plain text files",
    "jsonl": "jsonl:FILE                     one JSON object per line: columns by name",
    "csv": "csv:FILE                       columns by name: image path, caption, label; text",
    "tsv": "tsv:FILE                       the same, separated by tabs",
    "tar": "tar:GLOB                       shards of image, text and class files that share a name",
    "parquet": "parquet:GLOB                   tables of the datasets library: image, label, caption; text",
    "parallel": "parallel:SOURCE,TARGET         two files with a sentence and its translation in each line",
    "trec": "trec:FILE                      TREC's questions with their classes",
}


def list_sources(dir: str | None = None) -> str:
    """Return, as text, the schemes, the bundled data sets, and data sets prepared for `tfds:` in `dir` (or TFDS_DATA_DIR)."""
    lines = ["sources:", *("  " + FORMS.get(scheme, scheme + ":...") for scheme in (*SCHEMES, *TEXT_ONLY)), "bundled:"]
    lines += [f"  bundled:{name}" for name in BUNDLED]
    root = tfds.data_dir(dir)
    found = sorted(path.parent.relative_to(root).as_posix() for path in root.glob("**/dataset_info.json"))
    lines += [f"prepared in {root}:", *(f"  tfds:{name}" for name in found or ["(nothing)"])]
    return "\n".join(lines)


def prepare(uri: str, *, dir: str | None = None) -> str:
    """Prepare a `tfds:` data set as ArrayRecord, once; other sources need no preparation."""
    scheme, _, rest = uri.partition(":")
    if scheme != "tfds":
        return f"{uri}: {len(load_source(uri)):,} examples; needs no preparation"
    name = rest.partition(":")[0]
    return f"tfds:{name}: prepared in {tfds.prepare(name, dir)}"
