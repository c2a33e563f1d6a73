import math
from dataclasses import fields

import pytest
import yaml

from skipway.errors import InputError
from skipway.runs.recipe import CHOICES, Recipe

NUMBERS = [f for f in fields(Recipe) if f.metadata["minimum"] is not None]


def written(folder, text):
    path = folder / "c.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refused(values):
    with pytest.raises(InputError, match="the recipe does not work: ") as caught:
        Recipe.of(values)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2
    return str(caught.value)


def test_the_defaults_are_a_recipe_that_yaml_brings_back(tmp_path):
    recipe = Recipe(data="a folder: with # é ж \udcff", lr=1e-5, name="-x", follow_links=True)
    assert Recipe.of(Recipe.read(written(tmp_path, recipe.as_yaml()))) == recipe
    assert list(yaml.safe_load(recipe.as_yaml())) == ["schema", *Recipe.names()]
    assert recipe.changed() == {"data": recipe.data, "lr": 1e-5, "name": "-x", "follow_links": True}


@pytest.mark.parametrize("field", NUMBERS, ids=lambda f: f.name)
def test_every_number_out_of_its_range_is_refused_with_the_range(field):
    least, most = field.metadata["minimum"], field.metadata["maximum"]
    said = refused({field.name: least - 1})
    assert f"{field.name} must be " in said and f"{least:,}" in said and str(least - 1) in said
    if most is not None:
        said = refused({field.name: most * 2 + 1})
        assert f"from {least:,} to {most:,}" in said
    for hostile in (math.nan, math.inf, -math.inf, "many", [1], True):
        assert f"{field.name} " in refused({field.name: hostile})
    assert getattr(Recipe.of({field.name: least}), field.name) == least


@pytest.mark.parametrize("value", [0, -1, -0.1, math.nan, 1e9])
def test_a_learning_rate_that_cannot_train_is_refused(value):
    assert "lr must be from 1e-09 to 10,000.0, not " in refused({"lr": value})


@pytest.mark.parametrize("sizes", ["128:4097", "9999:224"])
def test_both_sizes_of_images_that_grow_have_the_limit_of_one(sizes):
    assert f"img_size must be from 1 to 4,096 in both numbers, not {sizes}" in refused({"img_size": sizes})
    assert Recipe.of({"img_size": "128:4096"}).img_size == "128:4096"


@pytest.mark.parametrize("name", sorted(CHOICES))
def test_a_choice_that_is_not_there_is_refused_with_those_that_are(name):
    known = [k for k in CHOICES[name] if k]
    said = refused({name: known[-1] + "x"})
    assert f"{name} is one of {', '.join(known)}, not '{known[-1]}x' (did you mean {known[-1]}" in said
    assert f"{name} is a text, not 7" in refused({name: 7})


@pytest.mark.parametrize("name", [f.name for f in fields(Recipe) if f.default is False])
def test_a_switch_takes_only_yes_and_no(name):
    assert f"{name} is a yes or no (true, false), not 1" in refused({name: 1})


def test_all_faults_are_said_at_once():
    said = refused({"epochs": 0, "lr": -1, "optimizer": "lamb", "data": 3})
    assert all(word in said for word in ("epochs must", "lr must", "optimizer is one of", "data is a text"))


def test_an_unknown_field_is_refused_with_the_nearest_one():
    with pytest.raises(InputError, match=r"a recipe has no field 'epoch' \(did you mean epochs\?\); 'x': 1|'epoch'"):
        Recipe.of({"epoch": 3})
    with pytest.raises(InputError, match="no field 7"):
        Recipe.of({7: 3})


def test_a_config_sets_only_what_it_names_and_reads_numbers_as_people_write_them(tmp_path):
    assert Recipe.read(written(tmp_path, "epochs: 3\nlr: 1e-3\nclip_grad: 1\nname: 1e3x\nema: 5e-1")) == {
        "epochs": 3,
        "lr": 1e-3,
        "clip_grad": 1,
        "name": "1e3x",
        "ema": 0.5,
    }
    assert "lr is a number, or auto, not 'fast'" in refused(Recipe.read(written(tmp_path, "lr: fast")))


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['true']",
        "epochs: !!python/name:os.system",
        b"epochs: \xff\xfe",
        "[" * 50_000,
        "{a: [",
        "a: 1\n b: 2",
        "x" * 200_000,
        "epochs: " + "9" * 5000,
    ],
    ids=["object", "name", "latin", "deep", "torn", "indent", "long", "digits"],
)
def test_a_config_that_is_not_plain_yaml_is_refused(tmp_path, text):
    with pytest.raises(InputError, match=r"the config .*c\.yaml is not plain YAML: ") as caught:
        Recipe.read(written(tmp_path, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "- epochs", "12", "epochs"], ids=["empty", "list", "number", "word"])
def test_a_config_that_is_no_mapping_is_refused(tmp_path, text):
    with pytest.raises(InputError, match="must hold `field: value` lines, such as `epochs: 20`"):
        Recipe.read(written(tmp_path, text))


@pytest.mark.parametrize("name", ["absent.yaml", "."])
def test_a_config_that_cannot_be_read_is_refused(tmp_path, name):
    with pytest.raises(InputError, match="cannot read the config"):
        Recipe.read(tmp_path / name)


def test_aliases_that_would_fill_the_memory_are_said_in_short(tmp_path):
    bomb = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    bomb += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    values = Recipe.read(written(tmp_path, "\n".join([*bomb, "data: *a29"])))
    assert len(refused({"data": values["data"], "optimizer": values["data"]})) < 1_000
