"""Mutated configs, a few of every file in configs/ and at night about 200 others: each trains a step or is refused in one line.

The models are shrunk and the data replaced by a few kilobytes. A mutation misspells a key, drops it, or changes its
value's type, sign or size. No traceback, no hang.
"""

import contextlib
import copy
import math
import pathlib
import signal
import zlib

import jax
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict

from ssl_jax import config as configs
from ssl_jax import runs
from ssl_jax.errors import UserError
from ssl_jax.training.exceptions import Diverged
from tests.reliability.chaos import make_data

ROOT = pathlib.Path(__file__).parents[2]
FILES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.py"))
FEW = 2
EXAMPLES = [
    pytest.param(FEW, id="few", marks=pytest.mark.slow),
    pytest.param(math.ceil(208 / len(FILES)), id="many", marks=pytest.mark.nightly),
]
SECONDS = 240  # for one config; far above what any needs, far below a hang
SMALL = dict(width=16, depth=1, heads=2, mlp_width=32)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_data(folder)
    lines = [line for line in (folder / "text.txt").read_text().splitlines() if line]
    rows = [f"{line}\t{i % 2}\t{lines[-i - 1]}" for i, line in enumerate(lines[:64])]
    (folder / "labelled.tsv").write_text("\n".join(["text\tlabel\tpair", *rows]) + "\n")
    (folder / "a.txt").write_text("\n".join(lines[:64]) + "\n")
    (folder / "b.txt").write_text("\n".join(lines[30:94]) + "\n")
    answer = lambda line: {"text": line.split()[1], "answer_start": line.index(line.split()[1], len(line.split()[0]))}
    questions = [{"id": str(i), "question": "what jumps?", "answers": [answer(line)]} for i, line in enumerate(lines[:24])]
    paragraphs = [{"context": line, "qas": [q]} for line, q in zip(lines, questions, strict=False)]
    (folder / "squad.json").write_text(configs.to_json({"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]}))
    with pytest.MonkeyPatch.context() as patch, cheap_compilation(folder / "cache/xla"):
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield folder


@contextlib.contextmanager
def cheap_compilation(folder: pathlib.Path):
    """Unoptimized, and kept: most mutations change numbers and no program."""
    settings = dict(
        jax_disable_most_optimizations=True, jax_compilation_cache_dir=str(folder),
        jax_persistent_cache_min_compile_time_secs=0.05, jax_persistent_cache_min_entry_size_bytes=-1,
    )  # fmt: skip
    before = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def small(file: str, folder: pathlib.Path) -> ConfigDict:
    """The config of `file`, its model shrunk and its data replaced."""
    config = configs.load(str(ROOT / file))
    kind = runs.task_class(config).data
    sources = {
        "images": f"npz:{folder}/images.npz", "tokens": f"text:{folder}/text.txt", "sequences": f"text:{folder}/text.txt",
        "pairs": f"jsonl:{folder}/pairs.jsonl",
        "labelled_text": f"tsv:{folder}/labelled.tsv", "parallel_text": f"parallel:{folder}/a.txt,{folder}/b.txt",
        "squad": f"squad:{folder}/squad.json",
    }  # fmt: skip
    data = config.data
    data.train, data.batch_size = sources[kind], 8
    if "test" in data:
        data.test = sources[kind]
    if "image_size" in data or kind == "pairs":
        data.image_size = 16
    if kind in ("tokens", "sequences"):
        data.holdout = 0.3
        remove(data, "test")
    for key, value in (("block", 16), ("max_length", 48), ("max_source_length", 16), ("max_target_length", 16),
                       ("doc_stride", 8), ("max_query_length", 8), ("context_length", 12)):  # fmt: skip
        if key in data:
            data[key] = value
    if "tokenizer" in data:
        data.tokenizer.name = data.tokenizer.name if data.tokenizer.name in ("characters", "wordpiece") else "wordpiece"
        data.tokenizer.size = 200
        remove(data.tokenizer, "path")
    if "columns" in data:
        data.columns = dict(text="text", label="label")
        remove(data, "test_columns", "header", "classes")
    shrink(config.model)
    if "decoder" in config.task:
        config.task.decoder = SMALL
    if config.model.get("name") == "dual_encoder":
        config.model.dim = 16
    config.training.duration = "4 steps"
    config.optimizer.warmup = "0 steps"
    if "cooldown" in config.optimizer:
        config.optimizer.cooldown = "50 %"
    if "targets" in config.task:
        config.task.targets.top_blocks = 1
    for view in config.data.get("views", {}).values():
        view.image_size = 8
    if "accumulation" in config.training:
        config.training.accumulation = 2
    return config


def remove(section: ConfigDict, *keys: str) -> None:
    for key in keys:
        if key in section:
            del section[key]


def shrink(model: ConfigDict) -> None:
    towers = [model[key] for key in ("image", "text", "encoder", "decoder") if key in model]
    for part in towers or [model]:
        part.update(SMALL)
        remove(part, "kv_heads", "head_width", "window", "context", "position_offset")
        if "patch_size" in part or "size" in part:
            part.patch_size = 4


def leaves(section: ConfigDict, path: tuple = ()) -> list[tuple]:
    found = []
    for key in sorted(section):
        value = section[key]
        found += leaves(value, (*path, key)) if isinstance(value, ConfigDict) else [(*path, key)]
    return found


VALUES = {
    "negative": lambda v: -abs(v) - 1 if is_number(v) else -1,
    "zero": lambda v: 0,
    "huge": lambda v: 10**9,
    "beyond 32 bits": lambda v: 10**30,
    "tiny": lambda v: 1e-30,
    "nan": lambda v: float("nan"),
    "infinite": lambda v: float("inf"),
    "text": lambda v: "nonsense",
    "a number": lambda v: 3,
    "a half": lambda v: 0.5,
    "true": lambda v: True,
    "none": lambda v: None,
    "a list": lambda v: (1, "x"),
    "a section": lambda v: dict(x=1),
    "doubled": lambda v: v * 2 if is_number(v) else f"{v}{v}",
}
MUTATIONS = ("misspelt", "dropped", "doubled letter", *VALUES)


def is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def mutate(config: ConfigDict, where: int, how: str) -> str:
    """Change one leaf; what was done, for the failure's message."""
    config.unlock()
    paths = leaves(config)
    path = paths[where % len(paths)]
    section = config
    for key in path[:-1]:
        section = section[key]
    section.unlock()
    key, value = path[-1], section[path[-1]]
    if how in ("misspelt", "dropped", "doubled letter"):
        del section[key]
        if how != "dropped":
            section[key[1:] + key[0] if how == "misspelt" else key[0] + key] = value
    else:
        with section.ignore_type():
            section[key] = VALUES[how](value)
    return f"{'.'.join(path)}: {how}"


class Hangs(BaseException):
    pass


def train_one_step(config: ConfigDict, workdir: pathlib.Path) -> None:
    """What a run does up to and with its first step."""
    parts = runs.prepare(config, str(workdir))
    if parts.evaluators:
        parts.dataset("test", False)
    trainer = runs.trainer_of(parts)
    trainer.run(seed=config.get("seed", 0), total_steps=1, quiet=True)


def outcome(config: ConfigDict, workdir: pathlib.Path) -> str:
    def hang(*_):
        raise Hangs

    signal.signal(signal.SIGALRM, hang)
    signal.alarm(SECONDS)
    try:
        train_one_step(config, workdir)
        return "trained"
    except (UserError, Diverged) as error:  # Diverged: a number so large that the first step overflows
        assert len(str(error)) > 10, f"says nothing: {error}"  # one line by construction, see UserError
        return "refused"
    finally:
        signal.alarm(0)


@pytest.mark.parametrize("examples", EXAMPLES)
@pytest.mark.parametrize("file", FILES)
def test_a_mutated_config_trains_or_is_refused_in_one_line(file, examples, data, tmp_path):
    base = small(file, data)
    assert outcome(copy.deepcopy(base), tmp_path / "run") == "trained", "the config itself"
    seen = {"trained": 0, "refused": 0}

    @seed(zlib.crc32(file.encode()))
    @settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate]
    )  # fmt: skip
    @given(st.integers(0, 10_000), st.sampled_from(MUTATIONS))
    def check(where, how):
        config = copy.deepcopy(base)
        done = mutate(config, where, how)
        try:
            seen[outcome(config, tmp_path / "run")] += 1
        except (Exception, Hangs) as error:
            raise AssertionError(f"{file}: {done}: {type(error).__name__}: {error}") from error

    check()
    jax.clear_caches()
    assert sum(seen.values()) >= examples and (examples == FEW or seen["refused"] > 0)
