"""Kill runs at random times, start them again until they are done, and compare them with twins that were left alone.

python -m tests.reliability.chaos --kills=100 [--seed=0] [--tasks=masked_image,next_token]
"""

import argparse
import json
import os
import pathlib
import random
import sys
import tempfile
import time

import numpy as np

from tests.reliability.chaos_config import TASKS
from tests.reliability.processes import Child, assert_same_run

PHASES = ("compile", "step", "evaluate", "save", "anywhere")
CONFIG = pathlib.Path(__file__).parent / "chaos_config.py"


def make_data(folder: pathlib.Path) -> None:
    """Images with labels, a text, and pictures with captions: a few kilobytes of each."""
    from PIL import Image

    rng = np.random.default_rng(0)
    label = np.arange(96) % 3
    image = rng.integers(0, 256, (96, 16, 16, 3)) // 2 + label[:, None, None, None] * 40
    np.savez(folder / "images.npz", image=image.astype(np.uint8), label=label.astype(np.int32))
    words = "the quick brown fox jumps over a lazy dog while seven small birds sing in an old green tree".split()
    sentences = [" ".join(rng.choice(words, rng.integers(4, 9))) + "." for _ in range(600)]
    paragraphs = [" ".join(sentences[i : i + 6]) for i in range(0, len(sentences), 6)]
    (folder / "text.txt").write_text("\n\n".join(paragraphs))
    (folder / "pictures").mkdir()
    with open(folder / "pairs.jsonl", "w") as file:
        for i in range(48):
            Image.fromarray(image[i].astype(np.uint8)).save(folder / f"pictures/{i}.png")
            file.write(json.dumps({"image": f"pictures/{i}.png", "text": sentences[i]}) + "\n")


def start(task: str, workdir: pathlib.Path, data: pathlib.Path) -> Child:
    command = [sys.executable, "-m", "tests.reliability.run_config", "pretrain", f"--config={CONFIG}:{task}"]
    environment = {"SSL_JAX_CHAOS_DATA": str(data), "SSL_JAX_CACHE": str(data / "cache"), "XDG_CACHE_HOME": str(data / "cache")}
    return Child([*command, f"--workdir={workdir}"], **environment)


def left_alone(task: str, workdir: pathlib.Path, data: pathlib.Path) -> float:
    """A run without a kill; its seconds."""
    started = time.monotonic()
    child = start(task, workdir, data)
    assert child.end() == 0, child.output
    return time.monotonic() - started


def kill(child: Child, phase: str, rng: random.Random, seconds: float) -> bool:
    """SIGKILL in a phase, or anywhere; False when the run was over before."""
    deadline = time.monotonic() + seconds * (rng.random() if phase == "anywhere" else 3)
    if phase != "anywhere":
        count = {"compile": 1, "step": rng.randint(1, 12), "evaluate": rng.randint(1, 2), "save": rng.randint(1, 3)}[phase]
        while time.monotonic() < deadline and child.process.poll() is None:
            if sum(line == f"PHASE {phase}" for line in list(child.lines)) >= count:
                break
            time.sleep(0.002)
        time.sleep(rng.random() * (1.0 if phase == "compile" else 0.1))
    else:
        while time.monotonic() < deadline and child.process.poll() is None:
            time.sleep(0.01)
    alive = child.process.poll() is None
    child.process.kill()
    child.end()
    return alive


def torture(task: str, kills: int, seed: int, folder: pathlib.Path, data: pathlib.Path) -> dict[str, int]:
    """Kill a run of `task` so often, finish it, compare. How many kills hit in each phase."""
    rng = random.Random(f"{task} {seed}")
    twin, workdir = folder / f"{task}-twin", folder / f"{task}-killed"
    seconds = left_alone(task, twin, data)
    hits = dict.fromkeys(PHASES, 0)
    number = rng.randrange(len(PHASES))
    rounds = 0
    while sum(hits.values()) < kills:
        rounds += 1
        assert rounds <= 4 * kills + 8, f"{task}: runs end before they can be killed: {hits}"
        phase = PHASES[number % len(PHASES)]
        number += 1
        child = start(task, workdir, data)
        if kill(child, phase, rng, seconds):
            hits[phase] += 1
        else:
            assert child.process.returncode == 0, child.output
            assert_same_run(workdir, twin)
            workdir = folder / f"{task}-killed-{rounds}"  # it was done: begin another
    left_alone(task, workdir, data)
    assert_same_run(workdir, twin)
    return hits


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=12, help="in all, spread over the tasks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tasks", default=",".join(TASKS))
    arguments = parser.parse_args()
    tasks = arguments.tasks.split(",")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "data").mkdir()
        make_data(folder / "data")
        for i, task in enumerate(tasks):
            kills = arguments.kills // len(tasks) + (i < arguments.kills % len(tasks))
            if kills:
                hits = torture(task, kills, arguments.seed, folder, folder / "data")
                print(f"{task}: {kills} kills {hits}, equal bit for bit", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
