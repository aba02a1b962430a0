"""Experiment files: combinators, overrides, and a line for each mistake."""

import pytest

from ssl_jax import experiments
from ssl_jax.errors import UserError
from ssl_jax.experiments import Arm, chained, product, zipped

EXPERIMENT = """
'''A card.'''
from ssl_jax.experiments import Arm, chained, product, zipped
def get_experiment():
    config = dict(data=dict(train="npz:train.npz", batch_size=8), task=dict(name="masked_image", mask=dict(ratio=0.75)),
                  model=dict(name="vit", width=16), training=dict(duration="6 steps"), optimizer=dict(lr=1e-3),
                  expected={{"knn/accuracy": (0.9, 1.0)}})
    experiment = dict(config=config, arms=product({{"task.mask.ratio": (0.5, 0.75)}}), columns={{"knn/accuracy": "k-NN"}})
    return dict(experiment, **dict({settings}))
"""


@pytest.fixture
def load(tmp_path):
    """Loads an experiment with settings, as Python text, over those above."""

    def load(text="", **options):
        (tmp_path / "toy.py").write_text(EXPERIMENT.format(settings=text))
        return experiments.load(str(tmp_path / "toy.py"), **options)

    return load


def test_a_product_varies_its_last_factor_fastest():
    arms = product({"a.lr": (1, 2)}, {"b": (3, 4)})
    assert [arm.name for arm in arms] == ["lr=1, b=3", "lr=1, b=4", "lr=2, b=3", "lr=2, b=4"]
    assert arms[1].values == {"a.lr": 1, "b": 4}


def test_combinators_combine():
    arms = product(chained(Arm("small", {"w": 1}), zipped({"w": (2, 3), "d": (4, 5)}, names=["mid", "big"])), {"lr": (0.1,)})
    assert [arm.name for arm in arms] == ["small, lr=0.1", "mid, lr=0.1", "big, lr=0.1"]
    assert arms[2].values == {"w": 3, "d": 5, "lr": 0.1}


@pytest.mark.parametrize(
    "make, line",
    [
        (lambda: product(), "product: a factor is empty"),
        (lambda: product({"a": ()}), "a: has no values"),
        (lambda: product({"a": (1,)}, ()), "product: a factor is empty"),
        (lambda: zipped({"a": (1, 2), "b": (1,)}), "a has 2 values, b has 1 values"),
        (lambda: product({"a": (1,)}, {"a": (2,)}), "a is set by two factors"),
        (lambda: product({"a": (1, 2)}, names=["one"]), "expected 2 names"),
        (lambda: zipped({"a": "text"}), "expected several values"),
    ],
)
def test_what_no_arms_can_be_made_of_is_one_line(make, line):
    with pytest.raises(UserError, match=line):
        make()


def test_each_run_has_its_arm_and_seed_and_no_expected_interval(load):
    experiment = load()
    config = experiment.config(experiment.arms[0], 7)
    assert (config.task.mask.ratio, config.seed, dict(config.expected), config.card) == (0.5, 7, {}, "A card.")
    assert experiment.base.task.mask.ratio == 0.75 and "seed" not in experiment.base
    assert experiment.seeds == (0, 1, 2) and experiment.default == "ratio=0.5"


def test_overrides_reach_settings_and_every_arm(load):
    experiment = load('overrides={"model.width": 8}', settings={"seeds": "5"}, overrides={"training.duration": "2 steps"})
    assert experiment.seeds == (0, 1, 2, 3, 4)
    config = experiment.config(experiment.arms[1], 0)
    assert config.model.width == 8 and config.training.duration == "2 steps"
    assert "--experiment.seeds=5" in experiment.command and "2 steps" in experiment.command


def test_an_arm_may_replace_a_section_or_change_a_type(load):
    experiment = load('arms=(Arm("none", {"task.mask": None}), Arm("other", {"task.mask": dict(kind="grid")}))')
    assert [experiment.config(arm, 0).task.to_dict().get("mask") for arm in experiment.arms] == [None, {"kind": "grid"}]


def test_the_base_config_may_be_a_file_beside_the_experiment(load, tmp_path):
    text = "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict(dict(task={}, model={}, data={},"
    (tmp_path / "base.py").write_text(text + " training=dict(duration='9 steps'), optimizer={}))\n")
    assert load('config="base.py"').base.training.duration == "9 steps"


@pytest.mark.parametrize(
    "settings, line",
    [
        ("arms=()", "arms: is empty"),
        ('arms=product({"task.mask.ratio": ()})', "task.mask.ratio: has no values"),
        ('arms=(Arm("a"), Arm("a"))', "two arms are named 'a'"),
        ('arms=(Arm("a b"), Arm("a/b"))', "would share the folder a_b"),
        ('arms=("a",)', "'a' is not an Arm"),
        ('default="ratio=0.74"', r"there is no such arm; did you mean ratio=0\.7"),
        ("columns={}", "columns: is empty"),
        ("seeds=0", "seeds=0"),
        ("seeds=(1, 1)", "names a seed twice"),
        ("seed=3", "unknown key experiment.seed; did you mean experiment.seeds"),
        ('figure=dict(y=("knn",))', "'knn' is not a column; valid keys are knn/accuracy"),
        ('figure=dict(x="task.mask.ration")', "sets no such key; did you mean task.mask.ratio"),
        ('published=dict(source="s", columns=dict(a="a"), rows={"ratio=0.6": (1,)})', "is not an arm"),
        ('published=dict(source="s", columns=dict(a="a"), rows={"ratio=0.5": (1, 2)})', "expected 1 numbers"),
        ('arms=(Arm("a", {"seed": 1}),)', "use `seeds` instead"),
        ('overrides={"model.width.x": 1}', "model.width is a value"),
        ('config="nowhere.py"', "there is no such file"),
        ("config=dict(task={})", "the section model is missing"),
    ],
)
def test_a_wrong_experiment_is_one_line(load, settings, line):
    with pytest.raises(UserError, match=line):
        load(settings)


def test_an_override_of_what_the_arms_set_is_refused(load):
    for key in ("task.mask.ratio", "task.mask", "task"):
        with pytest.raises(UserError, match="the arms set task.mask.ratio themselves"):
            load(overrides={key: "0.3"})
    with pytest.raises(UserError, match="give --experiment.seeds"):
        load(overrides={"seed": "1"})


@pytest.mark.parametrize(
    "text, line",
    [("x = 1", r"defines no get_experiment\(\)"), ("1 / 0", "ZeroDivisionError"), ("def get_experiment(): return 3", "int")],
)
def test_a_file_that_is_no_experiment_is_one_line(tmp_path, text, line):
    (tmp_path / "f.py").write_text(text)
    with pytest.raises(UserError, match=line):
        experiments.load(str(tmp_path / "f.py"))
    with pytest.raises(UserError, match="no such file"):
        experiments.load(str(tmp_path / "g.py"))
