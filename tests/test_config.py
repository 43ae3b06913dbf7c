"""Recipes: their published numbers, overrides, and a sentence for every mistake."""

import json
from pathlib import Path

import pytest

from resa_jax.config import check_config, fields, from_json, load_config, to_json
from resa_jax.errors import UserError
from resa_jax.fields import fields_of
from resa_jax.methods.interface import create_method
from resa_jax.recipes import default_config
from resa_jax.schema import describe_fields, known_fields, method_group, method_names
from resa_jax.workdir import claim_workdir


CONFIGS = Path(__file__).parents[1] / "configs"


def load(name, *overrides):
    return load_config(str(CONFIGS / name), overrides)


# Table 8 of the paper, and the floor of 0.1 x lr.
RECIPES = {
    "cifar10_resnet18.py": ("sgd", 1000, 256, 0.3, 1e-4, 2, 0.03, False),
    "cifar100_resnet18.py": ("sgd", 1000, 256, 0.3, 1e-4, 2, 0.03, False),
    "cifar100lt_resnet18.py": ("sgd", 1000, 256, 0.3, 1e-4, 2, 0.03, False),
    "imagenet100_resnet18.py": ("sgd", 400, 128, 0.5, 2.5e-5, 2, 0.025, False),
    "imagenet_resnet50.py": ("sgd", 100, 256, 0.5, 1e-5, 2, 0.05, True),
    "imagenet_resnet50.py:bs1024,epochs=200": ("sgd", 200, 1024, 0.5, 1e-5, 10, 0.2, True),
    "imagenet_resnet50.py:bs1024,epochs=800": ("sgd", 800, 1024, 0.4, 1e-5, 10, 0.16, True),
    "imagenet_vits.py": ("adamw", 300, 1024, 5e-4, 0.1, 40, 2e-4, True),
    "imagenet_vits.py:authors": ("adamw", 300, 1024, 5e-4, 0.1, 40, 1e-4, True),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_the_published_ones(name):
    config = load(name)
    found = (
        config.optimizer.name,
        config.epochs,
        config.batch_size,
        config.base_lr,
        config.weight_decay,
        config.warmup_epochs,
        pytest.approx(config.final_lr),
        config.method.predictor,
    )
    assert found == RECIPES[name]
    assert config.ema_momentum == 0.996
    method = config.method.to_dict()
    del method["predictor"]
    assert method == {
        "name": "resa",
        "temperature": 0.4,
        "epsilon": 0.05,
        "symmetric": False,
        "assignment": "encoding",
        "momentum_network": True,
        "hidden_size": 2048,
        "output_size": 512,
    }
    weak, standard = config.views
    assert (weak.interpolation, standard.interpolation) == ("bilinear", "bicubic")
    assert weak.crop_scale == standard.crop_scale == (0.2, 1.0)
    assert weak.solarize_probability == weak.jitter_probability == weak.blur_probability == 0
    assert standard.solarize_probability == 0.2
    assert standard.blur_probability == (0.0 if "cifar" in name else 0.5)


def test_overrides():
    config = load(
        "digits.py",
        "views[1].crop_scale=(0.5, 1.0)",
        "final_lr=1e-3",
        "data.mean=auto",
        "data.std=(1,2,3)",
        "steps=5",
        "encoder.width=null",
        "method.symmetric=true",
        "data.test_source=folder:a=b",
    )
    assert config.views[1].crop_scale == (0.5, 1.0)
    assert (config.final_lr, config.steps, config.encoder.width) == (1e-3, 5, None)
    assert (config.data.mean, config.data.std) == ("auto", (1.0, 2.0, 3.0))
    assert config.method.symmetric is True
    assert config.data.test_source == "folder:a=b"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("warmup_epoch=1", ["warmup_epoch", "warmup_epochs"]),
        ("lr=1", ["'lr'", "base_lr"]),
        ("image_size=32", ["image_size", "encoder.image_size"]),
        ("encoder.nam=vit_s16", ["encoder.nam", "encoder.name"]),
        ("views[0].crop_scal=1", ["crop_scal", "views[0].crop_scale"]),
        ("views[7].size=1", ["views[7].size", "views[0].size"]),
        ("encoder=vit_s16", ["config.encoder", "group"]),
        ("batch_size=many", ["batch_size=many", "whole number"]),
        ("batch_size=0.5", ["batch_size=0.5", "whole number"]),
        ("batch_size=-8", ["batch_size", "-8", "positive"]),
        ("base_lr=nan", ["base_lr", "nan", "positive"]),
        ("method.symmetric=maybe", ["method.symmetric", "true or false"]),
        ("temperature=0.2", ["'temperature'", "'method.temperature'"]),
        ("method.temprature=0.2", ["'method.temprature'", "'method.temperature'"]),
        ("method.name=resaa", ["'resaa'", "the nearest method is 'resa'"]),
        ("views[0]=8", ["views[0]", "group"]),
        ("views[0].hue=0.7", ["hue", "between 0 and 0.5"]),
        ("base_lr=inf", ["base_lr", "inf", "at most"]),
        ("batch_size=100000000000000000000000000", ["batch_size", "at most"]),
        ("data.std=(0,1,1)", ["data.std", "above 0"]),
        ("profile=(1,2,3)", ["profile", "two whole numbers"]),
        ("profile=(0,2)", ["profile", "from 1"]),
        ("method=simclr", ["config.method", "group"]),
        ("precision=float16", ["precision", "float16", "bfloat16"]),
        ("views[0].crop_scale=(1.0,0.5)", ["crop_scale", "smaller first"]),
        ("views[0].crop_scale=0.5", ["crop_scale", "numbers in parentheses"]),
        ("views[1].blur_probability=2", ["blur_probability", "between 0 and 1"]),
        ("data.mean=(0.5,0.5)", ["data.mean", "2 numbers", "channels is 3"]),
        ("checkpoint.keep=0", ["checkpoint.keep", "positive"]),
    ],
)
def test_mistakes_get_a_sentence(override, words):
    with pytest.raises(UserError) as error:
        load("digits.py", override)
    assert all(word in str(error.value) for word in words), error.value
    assert str(error.value).endswith((".", "?"))


def test_mistakes_in_the_config_name():
    with pytest.raises(UserError, match=r"digit.py: there is no such file, nor a recipe"):
        load("digit.py")
    with pytest.raises(UserError, match="no variant 'smok'; it knows: smoke"):
        load("digits.py:smok")
    with pytest.raises(UserError, match="epochs=many needs a whole number"):
        load("imagenet_resnet50.py:epochs=many")


def test_every_field_survives_json():
    config = load("digits.py")
    tree = json.loads(to_json(config))
    assert [view["size"] for view in tree["views"]] == [8, 8]
    names = {name.partition("[")[0].partition(".")[0] for name, _ in fields(config)}
    assert names == set(tree)


def test_typos_in_a_config_file_are_refused():
    with pytest.raises(AttributeError, match="base_lr"):
        default_config().base_lt = 1.0
    config = default_config()
    config.method.epsilon = -1.0
    with pytest.raises(UserError, match=r"config\.method\.epsilon is -1\.0"):
        check_config(config)


def test_workdir_of_another_run_is_refused(tmp_path):
    config = load("digits.py")
    claim_workdir(tmp_path, config)
    before = (tmp_path / "config.json").read_text()
    claim_workdir(tmp_path, load("digits.py", "log_every=7", "eval.max_images=5"))
    with pytest.raises(UserError, match=r"base_lr = 0\.\d+, not 9\.0") as error:
        claim_workdir(tmp_path, load("digits.py", "base_lr=9.0"))
    assert str(tmp_path) in str(error.value)
    claim_workdir(tmp_path, config)
    assert (tmp_path / "config.json").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_unusable_workdirs(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/run cannot be used"):
        claim_workdir(tmp_path / "file" / "run", load("digits.py"))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        claim_workdir(tmp_path, load("digits.py"))


def test_what_may_change_when_a_run_is_resumed():
    resumable = {name for name, field in known_fields("resa", 1).items() if field.resumable}
    singles = {"log_every", "profile", "sharding", "encoder.remat", "data.workers"}
    singles |= {"data.test_source"}
    groups = tuple(name for name in known_fields("resa", 1) if name.startswith(("eval.", "check")))
    assert resumable == singles | set(groups)


def test_a_method_declares_its_fields_once():
    """Read from the file without running it, they are those of the class."""
    for name in method_names():
        declared = {f.name: f for f in fields_of(method_group(name))}
        method = create_method(default_config(name).method)
        own = {f.name: f for f in fields_of(type(method))}
        assert declared.keys() - {"name"} == own.keys()
        for field in own.values():
            assert declared[field.name][1:3] == field[1:3]  # kind and default


def test_configs_of_version_0_1_are_read():
    tree = json.loads(to_json(load("imagenet_vits.py")))
    method = tree.pop("method")
    del method["name"]
    tree["projector"] = {name: method.pop(name) for name in ("hidden_size", "output_size")}
    old = json.dumps(tree | method)
    assert dict(fields(from_json(old))) == dict(fields(load("imagenet_vits.py")))


def test_the_page_of_all_fields_is_the_one_in_the_docs():
    page = (CONFIGS.parent / "docs" / "config.md").read_text()
    assert page.endswith(describe_fields())


def test_a_folder_is_taken_as_it_is():
    data = load("cifar100lt_resnet18.py").data
    assert (data.long_tail, data.test_source) == (20, "tfds:cifar100")
    data = load("cifar100lt_resnet18.py", "data.source=folder:x").data
    assert (data.long_tail, data.test_source) == (None, None)
    overrides = "data.long_tail=10", "data.source=folder:x", "data.test_source=folder:y"
    data = load("cifar100lt_resnet18.py", *overrides).data
    assert (data.long_tail, data.test_source) == (10, "folder:y")
    assert load("imagenet100_resnet18.py").data.classes == "imagenet100.txt"
    assert load("imagenet100_resnet18.py", "data.source=folder:x").data.classes is None


def test_fields_that_are_younger_than_a_file_have_their_defaults():
    config = load("imagenet_vits.py")
    tree = json.loads(to_json(config))
    del tree["gradient_reduction"], tree["data"]["canvas"], tree["views"][1]["hue"]
    old = from_json(json.dumps(tree))
    assert (old.gradient_reduction, old.data.canvas) == ("float32", 512)
    assert dict(fields(old)) == dict(fields(config)) | {"views[1].hue": old.views[1].hue}
