"""JPEGs from a folder to batches at 224 pixels: our loader and torch's DataLoader with the same PIL transforms.

    python experiments/throughput/loader.py [--step]

Both decode, take a random-resized crop (area 0.2 to 1, bicubic) and flip, with one worker process per core; torch's batches
are normalised f32 tensors, ours are u8, which the device normalises inside the step. The script makes photograph-like JPEGs of
500 x 375. `fast_decode` (ours) lets libjpeg decode at a reduced scale, with different pixels, and is reported separately.
--step: also a ViT-S/16 masked image step fed by the loader, and the share of its time that it waits for data.
Writes experiments/throughput/loader.json.
"""

import argparse
import json
import math
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from ssl_jax import bench, devices, runs
from ssl_jax import config as configs
from ssl_jax.data.images import dataset as image_data
from ssl_jax.data.images.normalization import NORMALIZATIONS
from ssl_jax.data.pipeline import Stream
from ssl_jax.reports.tables import markdown

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import measure  # noqa: E402

ROOT = pathlib.Path(__file__).parents[2]
SIZE, SCALE, RATIO = 224, (0.2, 1.0), (3 / 4, 4 / 3)


def make_folder(folder: pathlib.Path, count: int, width: int = 500, height: int = 375) -> None:
    """Write JPEGs of smooth random colours with noise, about 60 kB each at quality 90."""
    generator = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), np.uint8)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        noisy = np.clip(np.asarray(coarse) + generator.normal(0, 12, (height, width, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{i:05d}.jpg", quality=90)


def ours(folder: pathlib.Path, batch: int, workers: int, fast: bool) -> Iterator:
    section = ConfigDict(dict(train=f"folder:{folder}", batch_size=batch, image_size=SIZE, channels=3, normalize="imagenet",
                              holdout=0.0, workers=workers, fast_decode=fast,
                              augment=dict(crop=dict(scale=SCALE, ratio=RATIO), flip=True)))  # fmt: skip
    dataset = image_data.build(section, split="train", train=True)
    return Stream(dataset, batch_size=batch, seed=0, placement="host").iterate(0)


def theirs(folder: pathlib.Path, batch: int, workers: int) -> Iterator:
    import torch
    from torch.utils.data import DataLoader, Dataset

    mean, std = (torch.tensor(v).view(3, 1, 1) for v in NORMALIZATIONS["imagenet"])
    paths = sorted(folder.glob("*.jpg"))

    class Folder(Dataset):
        def __len__(self):
            return len(paths)

        def __getitem__(self, index):
            image = Image.open(paths[index]).convert("RGB")
            image = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=random_box(torch, *image.size))
            if torch.rand(()) < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            array = torch.from_numpy(np.array(image)).permute(2, 0, 1)
            return (array.float() / 255 - mean) / std

    loader = DataLoader(Folder(), batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0, drop_last=True)
    while True:
        yield from loader


def random_box(torch, width: int, height: int) -> tuple[int, int, int, int]:
    """Return the crop of torchvision's RandomResizedCrop."""
    for _ in range(10):
        area = width * height * float(torch.empty(()).uniform_(*SCALE))
        aspect = math.exp(float(torch.empty(()).uniform_(*map(math.log, RATIO))))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            x, y = int(torch.randint(0, width - w + 1, ())), int(torch.randint(0, height - h + 1, ()))
            return x, y, x + w, y + h
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, (width + side) // 2, (height + side) // 2


def rate(batches: Iterator, count: int, batch: int) -> float:
    """Return images per second over `count` batches."""
    start = time.perf_counter()
    for _ in range(count):
        next(batches)
    return count * batch / (time.perf_counter() - start)


def alternate(folder: pathlib.Path, batch: int, count: int, alternations: int) -> dict:
    """Return the median images per second of each; readers are restarted for every block, and their first batches ignored."""
    workers = devices.cores()
    readers = {
        "ours": lambda: ours(folder, batch, workers, False),
        "ours, threads": lambda: ours(folder, batch, 0, False),
        "ours, fast_decode": lambda: ours(folder, batch, workers, True),
        "torch DataLoader": lambda: theirs(folder, batch, workers),
    }
    rates = {name: [] for name in readers}
    for _ in range(alternations):
        for name, start in readers.items():
            batches = start()
            rate(batches, 4, batch)  # workers start, buffers fill
            rates[name].append(rate(batches, count, batch))
            getattr(batches, "close", lambda: None)()
            del batches
    return {
        "images_per_s": {name: float(np.median(values)) for name, values in rates.items()},
        "all": rates,
        "workers": workers,
    }


def with_step(folder: pathlib.Path, batch: int) -> dict:
    changes = {"data.train": f"folder:{folder}", "data.batch_size": str(batch), "data.workers": "1",
               "training.dtype": "float32"}  # fmt: skip
    config = configs.load(str(ROOT / "configs/mae/folder.py"), changes)
    found = bench.measure(runs.prepare(config), steps=10)
    return {name: found[name] for name in ("examples_per_s", "data_wait", "step_ms")} | {"batch": batch}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=1024, help="JPEGs")
    parser.add_argument("--batches", type=int, default=16, help="batches of 32 per block")
    parser.add_argument("--alternations", type=int, default=5)
    parser.add_argument("--step", action="store_true", help="also feed a training step")
    parser.add_argument("--json", type=pathlib.Path, default=pathlib.Path(__file__).with_name("loader.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        make_folder(folder, arguments.count)
        found = alternate(folder, 32, arguments.batches, arguments.alternations)
        if arguments.step:
            found["with_step"] = with_step(folder, 16)
    body = [[reader, f"{value:,.0f}"] for reader, value in found["images_per_s"].items()]
    text = f"{found['workers']} cores.\n\n" + markdown(["", "images/s"], body)
    if "with_step" in found:
        step = found["with_step"]
        wait = f"{100 * step['data_wait']:.1f} % of its time"
        speed = f"{step['examples_per_s']:.1f} images/s"
        text += f"\nFeeding a ViT-S/16 step, batch {step['batch']}: {speed}; the step waits for data {wait}.\n"
    print(text)
    arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    if arguments.json == parser.get_default("json"):
        measure.into_readme("loader", text)


if __name__ == "__main__":
    main()
