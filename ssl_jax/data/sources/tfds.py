"""`tfds:NAME[/CONFIG][/VERSION][:SPLIT]`: data sets that TFDS prepared as ArrayRecord, read and written without TensorFlow."""

import contextlib
import functools
import io
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ssl_jax.data.images import decode
from ssl_jax.data.sources import MISSING, Source, digest, load_source
from ssl_jax.data.sources.arrays import check_labels
from ssl_jax.data.sources.bundled import BUNDLED
from ssl_jax.errors import UserError

ARRAYS_BYTES = 2**30  # images of one size are decoded into one array up to this size


def data_dir(dir: str | None = None) -> pathlib.Path:
    """Return where prepared data is: `dir` (the config's data.dir), else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    return pathlib.Path(dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def open_tfds(rest: str, dir: str | None = None) -> Source:
    """Open a prepared data set; the split ("train", "test[:50%]" ...) is "train" unless named.

    Raise UserError for missing data (with the way to get them), for an unknown split, and for another file format.
    """
    name, _, split = rest.partition(":")
    folder = find(name, data_dir(dir))
    if folder is None:
        raise UserError(
            f"tfds:{rest}: is not prepared in {data_dir(dir)}; run `ssl-jax data prepare tfds:{name}` "
            "or name the folder that has it with data.dir or TFDS_DATA_DIR"
        )
    return Prepared(f"tfds:{rest}", folder, split or "train")


def find(name: str, root: pathlib.Path) -> pathlib.Path | None:
    """Return the folder root/NAME[/CONFIG]/VERSION of the newest prepared version, or None."""
    if not re.fullmatch(r"\w[\w.\-]*(/[\w.\-]+)*", name):
        raise UserError(f"tfds:{name}: expected NAME, NAME/CONFIG or NAME/CONFIG/VERSION")
    version = lambda path: tuple(int(n) for n in re.findall(r"\d+", path.parent.name))
    here = root / name
    if (here / "dataset_info.json").is_file():
        return here
    newest = max(here.glob("*/dataset_info.json"), key=version, default=None)
    return None if newest is None else newest.parent


def _tfds(uri: str):
    """Import tensorflow_datasets, or raise UserError with the command that installs it."""
    try:
        import tensorflow_datasets

        return tensorflow_datasets
    except ImportError as error:
        raise UserError(f"{uri}: needs the package {error.name}; run pip install tensorflow-datasets array_record") from None


class Prepared(Source):
    """One split of a prepared data set. Images are decoded when they are read; text is decoded from UTF-8."""

    def __init__(self, name: str, folder: pathlib.Path, split: str):
        tfds = _tfds(name)
        self.name, self.folder, self.split = name, folder, split
        builder = tfds.builder_from_directory(folder)
        if builder.info.file_format is None or builder.info.file_format.value != "array_record":
            raise UserError(
                f"{name}: is prepared as {getattr(builder.info.file_format, 'value', 'nothing')} in {folder}; "
                "prepare it again with file_format=array_record"
            )
        if split.partition("[")[0] not in builder.info.splits:
            raise UserError(f"{name}: there is no split {split!r}; it has {', '.join(builder.info.splits)}")
        self.features = dict(builder.info.features)
        skip = {key: tfds.decode.SkipDecoding() for key, f in self.features.items() if isinstance(f, tfds.features.Image)}
        try:
            self.records = builder.as_data_source(split, decoders=skip or None)
        except (ValueError, AssertionError) as error:
            raise UserError(f"{name}: cannot read split {split!r} ({str(error).splitlines()[0]})") from None
        label = self.features.get("label")
        self.all_labelled = isinstance(label, tfds.features.ClassLabel)
        self.classes = tuple(label.names) if self.all_labelled else ()

    def __len__(self) -> int:
        return len(self.records)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "arrays"}  # workers decode their own images

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {key: self._plain(key, value, index) for key, value in self.records[int(index)].items()}

    def _plain(self, key: str, value: Any, index: int) -> Any:
        if not isinstance(value, bytes) or key == "image":
            return value
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{self.describe(index)}: {key} is not UTF-8 text") from None

    def describe(self, index: int) -> str:
        return f"{self.name}: example {index:,}"

    def fingerprint(self) -> str:
        """Return a digest of the prepared version, which does not change, and of the number of examples."""
        return digest([f"{self.folder.parent.name}/{self.folder.name}/{self.split}/{len(self)}".encode()], classes=self.classes)

    @functools.cached_property
    def _labels(self) -> np.ndarray:
        return np.array([record["label"] for record in self.records], np.int64)

    def labels(self) -> np.ndarray | None:
        """Return i32[N], read once; None if there are no labels or if they are withheld (all -1)."""
        if not self.all_labelled or (self._labels == MISSING).all():
            return None
        labels = check_labels(self.name, self._labels)
        if (labels == MISSING).any():
            raise UserError(f"{self.describe(int(np.argmax(labels == MISSING)))} has no label, although others have one")
        return labels

    @functools.cached_property
    def arrays(self) -> dict[str, np.ndarray] | None:
        """Return images of one size as one array, decoded at first use; None if it exceeds a GiB or an image is damaged."""
        shape = getattr(self.features.get("image"), "shape", None)
        if shape is None or None in shape or shape[2] not in (1, 3) or len(self) * np.prod(shape) > ARRAYS_BYTES:
            return None
        images, labels = np.empty((len(self), *shape), np.uint8), np.zeros(len(self), np.int64)
        for index, record in enumerate(self.records):
            try:
                images[index] = np.asarray(decode.decode(record["image"], shape[2])).reshape(shape)
            except (decode.Unreadable, ValueError):
                return None  # images are then decoded individually, and the damaged one is reported or skipped
            labels[index] = record["label"] if self.all_labelled else MISSING
        self._labels = labels
        labels = self.labels()
        return {"image": images} | ({"label": labels} if labels is not None else {})


# Writing ------------------------------------------------------------------------------------------------------------


def prepare(name: str, dir: str | None = None) -> pathlib.Path:
    """Prepare `NAME[/CONFIG]` as ArrayRecord and return its folder; "bundled_NAME" is written from the package's own data.

    Other names go to TFDS's builder of that name, which may download, and may need TensorFlow.
    """
    uri, root = f"tfds:{name}", data_dir(dir)
    there = find(name, root)
    if there is not None:
        return there
    if name.removeprefix("bundled_") in BUNDLED and name.startswith("bundled_"):
        own = name.removeprefix("bundled_")
        return write(name, {split: load_source(f"bundled:{own}/{split}") for split in ("train", "test")}, str(root))
    tfds = _tfds(uri)
    try:
        builder = tfds.builder(name, data_dir=str(root), file_format="array_record", try_gcs=False)
        builder.download_and_prepare()
    except tfds.core.registered.DatasetNotFoundError:
        raise UserError(f"{uri}: TFDS knows no such data set") from None
    except ImportError as error:
        package = (error.name or str(error)).split(".")[0]
        raise UserError(
            f"{uri}: its builder needs {package} to prepare the data; run pip install {package} and try again"
        ) from None
    except Exception as error:  # downloads fail in many ways, outside of our control
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{uri}: could not be prepared in {root} ({first})") from None
    return pathlib.Path(builder.data_path)


def write(name: str, splits: Mapping[str, Source], dir: str | None = None) -> pathlib.Path:
    """Write image sources as the TFDS data set `name`, one split each, as ArrayRecord; return its folder."""
    tfds = _tfds(f"tfds:{name}")
    first = next(iter(splits.values()))
    shape = first.arrays["image"].shape[1:] if first.arrays is not None else (None, None, 3)
    features = {"image": tfds.features.Image(shape=shape)}
    if first.labels() is not None:
        features["label"] = tfds.features.ClassLabel(names=list(first.classes))

    def examples(source: Source) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in range(len(source)):
            example = source[index]
            encoded = {"image": io.BytesIO(_encode(example["image"]))}
            yield index, encoded | ({"label": int(example["label"])} if "label" in features else {})

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        url_infos = {}  # nothing is downloaded, so TFDS needs no checksums

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, download_manager):
            return {split: examples(source) for split, source in splits.items()}

        def _generate_examples(self):
            raise NotImplementedError

    Builder.name = name
    tfds.disable_progress_bar()
    builder = Builder(data_dir=str(data_dir(dir)), file_format="array_record")
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare()
    return pathlib.Path(builder.data_path)


def _encode(image: Any) -> bytes:
    """Return a stored image as a file: unchanged if encoded, else as PNG."""
    if isinstance(image, bytes):
        return image
    buffer = io.BytesIO()
    decode.from_array(np.asarray(image), np.asarray(image).shape[-1]).save(buffer, "PNG")
    return buffer.getvalue()
