# ruff: noqa: E501 (a command is one line)
"""What a newcomer types in the first hour, through the installed command, on data of each kind: every command has its line."""

import os
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

ROOT = os.path.join(os.path.dirname(__file__), "..")
MAE = "--config={root}/configs/mae/folder.py --config.data.image_size=16 --config.data.batch_size=8"
SMALL = "--config.model.patch_size=4 --config.model.width=32 --config.model.depth=2 --config.model.heads=2 --config.model.mlp_width=64"
TINY = f"{SMALL} --config.task.decoder.width=16 --config.task.decoder.depth=1 --config.task.decoder.heads=2"
WORDS = "--config.model.depth=1 --config.model.width=32 --config.model.heads=2"
SHORT = "--config.training.duration='3 steps' --config.training.dtype=float32 --config.training.log_every=1"
EVALUATE = "--config.downstream.linear_probe.l2='(1e-2,)' --config.downstream.knn.k=3"

COMMANDS = (  # (command, exit status, an expression found in what it prints)
    ("--help", 0, r"predict +a supervised model"),
    ("data list", 0, r"folder:"),
    ("data inspect folder:photos", 0, r"(?s)24.*round.*square"),
    ("data inspect csv:captions.csv", 0, r"24"),
    ("data inspect text:book.txt", 0, r"(?i)text"),
    ("data inspect folder:photo", 2, r"did you mean .*photos"),
    (f"run {MAE} --config.data.train=folder:photos --workdir=mae {TINY} {SHORT} {EVALUATE}", 0, r"report: mae/report.html"),
    (f"run {MAE} --config.data.train=folder:photos --workdir=mae {TINY} {SHORT} {EVALUATE}", 0, r"the run is complete"),
    (f"run {MAE} --config.data.train=folder:photos --workdir=x --config.model.patch_size=5", 2, r"patch_size=5 does not divide"),
    (f"run {MAE} --config.data.train=folder:photos --workdir=x --config.task.mask_ratio=0.5", 2, r"did you mean task.mask.ratio"),
    (f"run {MAE} --config.data.train=folder:photos --workdir=x {TINY} {SHORT} --config.task.init=nowhere", 2,
     r"task.init: nowhere: there is no such directory"),
    (f"run {MAE} --config.data.train=folder:photos --workdir=x {TINY} {SHORT} --config.task.init=mae --config.model.heads=4", 2,
     r"another architecture; to use it, add --config.model.heads=2"),
    (f"pretrain {MAE} --config.data.train=folder:photos --workdir=large {TINY} {SHORT} --config.task.init=mae"
     " --config.data.image_size=32 --config.model.patch_size=8", 0, r"resized: encoder/patch_embedding/kernel \[48, 32\] -> \[192, 32\]"),
    ("evaluate --workdir=mae --config.downstream.linear_probe=None --data.test=folder:others", 0, r"knn"),
    ("embed --workdir=mae --data=folder:photos --to=features.npz", 0, r"features.npz: mean \[24, 32\]"),
    ("reconstruct --workdir=mae --count=2", 0, r"mae/reconstructions.png"),
    ("convert --from=mae --to=hf:published", 0, r"hf:published: ViTMAEForPreTraining"),
    ("convert --from=hf:published --to=imported", 0, r"imported: ViTMAEForPreTraining"),
    ("report mae large --to=both", 0, r"report: both/comparison.html"),
    ("finetune --config={root}/configs/downstream/images.py --config.data.train=folder:photos --init=hf:published --workdir=classes"
     f" --config.data.image_size=16 --config.data.batch_size=8 {SMALL} {SHORT}", 0, r"(?s)task.init: .*classification/accuracy"),
    ("predict --workdir=classes --data=folder:flat --to=classes.csv", 0, r"classes.csv: 3 rows of index, name, prediction"),
    ("predict --workdir=mae --data=folder:flat --to=classes.csv", 2, r"is a run of the task masked_image; this command needs classification"),
    ("pretrain --config={root}/configs/gpt/shakespeare_char_cpu.py --config.data.train=text:book.txt --workdir=gpt"
     f" --config.data.block=16 {WORDS} {SHORT} --config.optimizer.warmup='1 steps'", 0, r"3/3"),
    ("generate --workdir=gpt --prompt=the --max_tokens=8", 0, r"^the"),
    ("embed --workdir=gpt --data=text:lines.txt --to=lines.npz", 0, r"lines.npz: mean \[6, 32\]"),
    ("run --config={root}/configs/downstream/sst2.py --workdir=words --config.data.train=csv:words.csv --config.data.test=csv:words.csv"
     f" --config.data.columns.text=text --config.data.tokenizer.size=90 {WORDS} {SHORT}", 0, r"text_classification/accuracy"),
    ("predict --workdir=words --data=text:lines.txt --to=words.jsonl", 0, r"words.jsonl: 6 rows"),
    ("run --config={root}/configs/downstream/sst2.py --workdir=y --config.data.train=csv:words.csv --config.data.test=csv:words.csv"
     " --config.data.columns.text=txt", 2, r"txt.*text"),
    ("run --config={root}/configs/clip/captions.py --config.data.train=csv:captions.csv --workdir=clip --config.data.image_size=16"
     " --config.data.batch_size=8 --config.data.context_length=8 --config.data.tokenizer.size=90 --config.model.image.patch_size=4"
     " --config.model.image.width=32 --config.model.image.depth=2 --config.model.image.heads=2 --config.model.image.mlp_width=64"
     " --config.model.image.positions=sincos2d --config.model.text.width=32 --config.model.text.depth=1 --config.task.init.image=mae@3"
     f" {SHORT}", 0, r"(?s)task.init: .* of image from mae@3.*retrieval"),
    ("retrieve --workdir=clip --text=round --images=folder:photos --top=4", 0, r"clip/retrieved.png"),
    ("retrieve --workdir=nowhere --text=round", 2, r"there is no such directory"),
    ("bench --config={root}/configs/none.py", 2, r"there is no such file"),
)  # fmt: skip


def make_data(folder):
    """Photographs in class folders, without, and with captions; a book; labelled sentences."""
    random = np.random.default_rng(0)
    captions = ["path,caption"]
    for i in range(24):
        name = ("round", "square")[i % 2]
        image = random.integers(0, 256, (20, 24, 3)).astype(np.uint8)
        image[4:12, 4:12] = 255 * (i % 2)
        for place in (f"photos/{name}", f"others/{name}", *(["flat"] if i < 3 else [])):
            (folder / place).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / place / f"{i}.png")
        captions.append(f"photos/{name}/{i}.png,a {name} thing {i}")
    (folder / "captions.csv").write_text("\n".join(captions) + "\n")
    sentences = ["the cat sat on the mat", "a dog ran far away", "the sun is up", "no rain today"]
    (folder / "book.txt").write_text("\n".join(sentences * 40) + "\n")
    (folder / "lines.txt").write_text("\n".join((sentences * 2)[:6]) + "\n")
    rows = [f"{text} {i},{'good' if i % 2 else 'bad'}" for i, text in enumerate(sentences * 8)]
    (folder / "words.csv").write_text("\n".join(["text,label", *rows]) + "\n")


@pytest.mark.slow
def test_the_first_hour(tmp_path):
    """At most four minutes on two cores that have nothing else to do."""
    make_data(tmp_path)
    program = shutil.which("ssl-jax", path=os.path.dirname(sys.executable)) or "ssl-jax"
    environment = {**os.environ, "COLUMNS": "80"}
    failures, seconds = [], []
    for command, status, expected in COMMANDS:
        started = time.monotonic()
        line = f"{program} {command.replace('{root}', ROOT)}"
        done = subprocess.run(line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
        printed = done.stdout + done.stderr
        seconds.append(time.monotonic() - started)
        one_line = status == 0 or "Traceback" not in printed
        right = done.returncode == status and one_line and re.search(expected, printed, re.MULTILINE)
        print(f"{'ok  ' if right else 'FAIL'} {seconds[-1]:6.1f} s  ssl-jax {command[:100]}", flush=True)
        if not right:
            failures.append(
                f"ssl-jax {command}\n  exit {done.returncode}, expected {status} and {expected!r} in\n{printed[-1200:]}"
            )
    print(f"{len(COMMANDS)} commands, {sum(seconds):.0f} s")
    assert not failures, "\n\n".join(failures)
