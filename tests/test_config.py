"""Configs: every key and type is checked against the code it configures, and a mistake is told in one line."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import pytest
from ml_collections import ConfigDict

from ssl_jax import config
from ssl_jax.config import Duration
from ssl_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Mask:
    kind: str = "random"
    ratio: float = 0.75

    def __post_init__(self):
        if not 0 < self.ratio < 1:
            raise UserError(f"ratio={self.ratio}: must lie in (0, 1)")


@dataclasses.dataclass(frozen=True)
class Settings:
    mask: Mask = Mask()
    depth: int = 4
    window: int | None = None
    rules: tuple = ()


def test_sections_become_nested_settings():
    found = config.read(Settings, ConfigDict(dict(mask=dict(ratio=0.5), rules=[["a", 1.0]], window=3)), "task")
    assert found == Settings(Mask(ratio=0.5), 4, 3, (("a", 1.0),))


@pytest.mark.parametrize(
    "section, message",
    [
        (dict(mask_ratio=0.5), "unknown key task.mask_ratio; did you mean task.mask.ratio?"),
        (dict(dept=3), "unknown key task.dept; did you mean task.depth?"),
        (dict(zzz=3), "unknown key task.zzz; valid keys are depth, mask, rules, window"),
        (dict(mask=dict(ratio=1.2)), "task.mask.ratio=1.2: must lie in (0, 1)"),
        (dict(mask=dict(ratio=float("nan"))), "task.mask.ratio=nan: must be a finite number"),
        (dict(mask=3), "task.mask=3: expected a section with the keys kind, ratio, not int"),
        (dict(depth="4"), "task.depth='4': expected int, not str"),
        (dict(depth=True), "task.depth=True: expected int, not bool"),
        (dict(depth=2**40), "task.depth=1099511627776: must be a 32-bit integer"),
        (ConfigDict(dict(depth=dict(x=1, y=2))), "task.depth={'x': 1, 'y': 2}: expected int, not a section"),
        (3, "task=3: expected a section with keys, such as dict(...)"),
    ],
)
def test_a_mistake_names_key_value_and_mend(section, message):
    with pytest.raises(UserError) as error:
        config.read(Settings, section, "task")
    assert str(error.value) == message


@pytest.mark.parametrize(
    "text, steps",
    [("10_000 steps", 10_000), ("1 step", 1), ("2 epochs", 20), ("1.5 epochs", 15), ("640 examples", 10), ("5 %", 50),
     ("64e1 tokens", 5), ("2 minutes", 60)],
)  # fmt: skip
def test_durations_in_every_unit(text, steps):
    found = Duration.parse(text, "x").steps(
        path="x", batch_size=64, examples=640, tokens_per_example=2, total=1000, steps_per_minute=30
    )
    assert found == steps


@pytest.mark.parametrize("text", [10, 10.0, "10", "ten steps", "-3 steps", "3 fortnights", None, "1e400 steps", "inf epochs"])
def test_a_bare_number_or_unknown_unit_is_refused(text):
    with pytest.raises(UserError, match="write a number and its unit|must be below"):
        Duration.parse(text, "training.duration")


CONFIG = """
from ml_collections import ConfigDict
def get_config(arg="a"):
    if arg not in ("a", "b"):
        raise ValueError("arg must be a or b")
    return ConfigDict(dict(task=dict(name=arg), model=dict(width=8), data=dict(batch_size=4),
                           training=dict(), optimizer=dict(lr=1.0)))
"""


def test_overrides_reach_nested_keys_and_keep_text_as_text(tmp_path):
    file = tmp_path / "c.py"
    file.write_text(CONFIG)
    overrides = {"model.width": "16", "model.new.key": "0.5", "task.name": "5", "training.duration": "20 steps"}
    found = config.load(f"{file}:b", overrides)
    assert (found.model.width, found.model.new.key, found.task.name) == (16, 0.5, "5")
    assert found.training.duration == "20 steps"
    assert config.literal("none", "mean") == "none" and config.literal("None", "9 steps") is None  # the way to unset a text
    assert config.literal("none") == "none" and config.literal("None") is None and config.literal("none", 3) is None


@pytest.mark.parametrize(
    "spec, overrides, message",
    [
        ("missing.py", {}, "there is no such file"),
        ("c.py:z", {}, r"c.py:z, line 5: ValueError: arg must be a or b"),
        ("c.py", {"optimiser.lr": "1"}, "unknown key optimiser; did you mean optimizer"),
        ("c.py", {"model.width.x": "1"}, "model.width is a value, not a section"),
        ("c.py", {"model..x": "1"}, "a name is missing between the dots"),
        ("c.py", {"data": "None"}, "the section data is missing"),
        ("c.py", {"model": "vit"}, "model='vit': expected a section"),
        ("c.py", {"checkpoint": "False"}, "checkpoint=False: cannot be switched off"),
        ("empty.py", {}, "defines no get_config"),
        ("broken.py", {}, "broken.py, line 2: ZeroDivisionError"),
        ("syntax.py", {}, "syntax.py, line 3: SyntaxError"),
        ("exits.py", {}, "exits.py, line 3: SystemExit: no"),
        ("text.py", {}, "returned 'mae'; expected a ConfigDict"),
        ("name.py", {}, "name.py, line 2: NameError: name 'batch' is not defined"),
        ("user.py", {}, "user.py, line 4: use a or b"),
        ("c.json", {}, "must be a Python file"),
    ],
)
def test_a_config_that_cannot_be_loaded_is_one_line(tmp_path, spec, overrides, message):
    bodies = {
        "c.py": CONFIG, "c.json": "{}", "empty.py": "", "broken.py": "\n1 / 0", "syntax.py": "\n\ndef get_config(:",
        "exits.py": "import sys\ndef get_config():\n    sys.exit('no')", "text.py": "def get_config():\n    return 'mae'",
        "name.py": "def get_config():\n    return batch",
        "user.py": "from ssl_jax.errors import UserError\n\ndef get_config():\n    raise UserError('use a or b')",
    }  # fmt: skip
    for name, body in bodies.items():
        (tmp_path / name).write_text(body)
    with pytest.raises(UserError, match=message) as error:
        config.load(str(tmp_path / spec), overrides)
    assert "\n" not in str(error.value)


def test_an_override_may_have_another_type_than_the_value_in_the_file(tmp_path):
    """`read` knows which types a key takes; the file's own value is one of them."""
    (tmp_path / "c.py").write_text(CONFIG)
    overrides = {"data.image_size": "(14, 14)", "data.batch_size": "abc", "model.width": "None", "training": "{}"}
    found = config.load(str(tmp_path / "c.py"), overrides)
    assert (found.data.image_size, found.data.batch_size, found.model.width) == ((14, 14), "abc", None)


PLACEHOLDER = """
from ml_collections import ConfigDict, config_dict
def get_config():
    c = ConfigDict(dict(task=dict(name="t"), data=dict(batch_size=4), training=dict(), optimizer=dict(lr=1.0)))
    c.model = dict(width=config_dict.required_placeholder(int), dim=8)
    c.model.mlp_width = c.model.get_ref("dim") * 4
    return c
"""


def test_placeholders_are_filled_and_references_follow_overrides(tmp_path):
    (tmp_path / "c.py").write_text(PLACEHOLDER)
    with pytest.raises(UserError, match="model.width is missing; give it with --config.model.width=VALUE"):
        config.load(str(tmp_path / "c.py"))
    found = config.load(str(tmp_path / "c.py"), {"model.width": "3", "model.dim": "16"})
    assert (found.model.width, found.model.mlp_width) == (3, 64)


def test_a_path_or_argument_may_hold_a_colon(tmp_path):
    folder = tmp_path / "a:b"
    folder.mkdir()
    (folder / "c.py").write_text(CONFIG)
    assert config.load(f"{folder / 'c.py'}:b").task.name == "b"


@dataclasses.dataclass(frozen=True)
class Flip:
    OFF_WHEN_EMPTY: ClassVar[bool] = True
    flip: bool = False


@dataclasses.dataclass(frozen=True)
class Sections:
    mask: Mask = Mask()
    augment: Flip = Flip(True)
    crop: Mask | None = Mask()
    rules: Mapping = dataclasses.field(default_factory=lambda: dict(a=1))
    tied: bool | Mask = True


@pytest.mark.parametrize("off", [None, False])
def test_none_and_false_switch_a_section_off_and_never_mean_its_defaults(off):
    found = config.read(Sections, dict(augment=off, crop=off, rules=off), "data")
    assert (found.augment, found.crop, found.rules) == (Flip(False), None, {})
    assert config.read(Sections, dict(tied=False), "data").tied is False
    with pytest.raises(UserError, match=f"data.mask={off}: cannot be switched off; its keys are kind, ratio"):
        config.read(Sections, dict(mask=off), "data")


@pytest.mark.parametrize("text", ["None", "False", "none"])
@pytest.mark.parametrize("name", ["downstream", "expected", "mesh"])
def test_optional_sections_are_switched_off_from_the_command_line(tmp_path, name, text):
    (tmp_path / "c.py").write_text(CONFIG)
    assert name not in config.load(str(tmp_path / "c.py"), {f"{name}.knn.k": "5", name: text})


CARD = '''
r"""A recipe.

    ssl-jax run --config=recipe.py {} --workdir=runs/x

Faster: --config.training.dtype=bfloat16.
"""
from ml_collections import ConfigDict
def get_config():
    c = ConfigDict({{name: {{}} for name in ("data", "task", "model", "optimizer")}})
    c.data.train, c.training = "bundled:shakespeare", dict(duration="9 steps", log_every=1)
    c.downstream = dict(knn=dict(k=5))
    c.expected = {{"knn/accuracy": (0, 1), "probe/accuracy": (0, 1)}}
    return c
'''


@pytest.mark.parametrize(
    ("command", "overrides", "kept"),
    [
        ("", {}, {"knn", "probe"}),
        ("", {"seed": "3", "training.log_every": "7", "mesh.data": "1"}, {"knn", "probe"}),
        ("", {"training.duration": "20 steps"}, set()),
        ("", {"data.train": "text:mine.txt"}, set()),
        ("", {"downstream.knn.k": "7"}, {"probe"}),
        ("", {"training.duration": "20 steps", "expected": "dict()"}, None),
        ("--config.data.train=text:that.txt", {"data.train": "text:/somewhere/that.txt"}, {"knn", "probe"}),
        ("\\\n        --config.data.train=text:that.txt", {"data.train": "text:that.txt"}, {"knn", "probe"}),
        ("--config.data.train=text:that.txt", {"data.train": "text:other.txt"}, set()),
        ("--config.data.train=text:that.txt", {}, set()),
    ],
)
def test_what_is_expected_of_a_recipe_is_expected_of_it_as_its_card_says(tmp_path, command, overrides, kept):
    (tmp_path / "recipe.py").write_text(CARD.format(command).lstrip())
    found = config.load(str(tmp_path / "recipe.py"), overrides).get("expected")
    assert found == "dict()" if kept is None else {name.partition("/")[0] for name in found} == kept
