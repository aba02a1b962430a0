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

PHASES = ("step", "save", "evaluate", "compile", "start")  # "start": imports, the data, the lock; "evidence" is after training
LIMIT = 12  # kills of one run: about as many as it takes before it is through
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


def start(task: str, workdir: pathlib.Path, data: pathlib.Path, *words: str) -> Child:
    command = [sys.executable, "-m", "tests.reliability.run_config", "run", f"--config={CONFIG}:{task}"]
    # compiled programs are kept beside the data, so that a kill can hit the writing of one and not that of another test
    environment = {"SSL_JAX_CHAOS_DATA": str(data), "SSL_JAX_CACHE": str(data / "cache"), "XDG_CACHE_HOME": str(data / "cache")}
    return Child([*command, f"--workdir={workdir}", *words], **environment)


def left_alone(task: str, workdir: pathlib.Path, data: pathlib.Path, *words: str) -> None:
    """A run without a kill."""
    child = start(task, workdir, data, *words)
    assert child.end() == 0, child.output


def kill(child: Child, phase: str, rng: random.Random) -> bool:
    """SIGKILL at a random time in a phase; False when the run was over before."""
    if phase != "start":
        child.wait_for(f"PHASE {phase}", rng.randint(1, {"step": 6, "save": 3}.get(phase, 1)), or_the_end=True)
    time.sleep(rng.random() * {"start": 6, "compile": 1, "evidence": 1, "evaluate": 0.15}.get(phase, 0.05))
    alive = child.process.poll() is None
    child.process.kill()
    child.end()
    return alive


def torture(task: str, kills: int, seed: int, folder: pathlib.Path, data: pathlib.Path) -> dict[str, int]:
    """Kill a run of `task` up to LIMIT times, let it end, compare; then another. How many kills hit in each phase."""
    rng = random.Random(f"{task} {seed}")
    if task == "classification":
        left_alone("masked_image", data / "init", data, "--config.training.duration=6 steps")
    twin = folder / f"{task}-twin"
    left_alone(task, twin, data)
    hits = dict.fromkeys((*PHASES, "evidence"), 0)
    for attempt in range(kills // LIMIT + 5):
        if sum(hits.values()) == kills:
            return hits
        workdir = folder / f"{task}-killed-{attempt}"
        plan = [PHASES[i % len(PHASES)] for i in range(min(kills - sum(hits.values()), LIMIT) - 1)]
        rng.shuffle(plan)
        plan.append("evidence")
        if all(kill(start(task, workdir, data), phase, rng) for phase in plan):
            hits = {phase: count + plan.count(phase) for phase, count in hits.items()}
        left_alone(task, workdir, data)
        assert_same_run(workdir, twin)
    raise AssertionError(f"{task}: runs end before they have been killed as often as they should: {hits}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=60, help="in all, spread over the tasks")
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
