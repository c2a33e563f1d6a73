import math
from dataclasses import fields
from typing import get_type_hints

import pytest
import yaml

from skipway.errors import InputError
from skipway.runs.option_values import choices
from skipway.runs.recipe import GROUPS, Recipe

HINTS = get_type_hints(Recipe)
CHOICES = {name: choices(hint) for name, hint in HINTS.items() if choices(hint)}
NUMBERS = [f for f in fields(Recipe) if f.metadata["minimum"] is not None]


def written(folder, text):
    path = folder / "c.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refused(values):
    with pytest.raises(InputError, match="invalid options: ") as caught:
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
    message = refused({field.name: least - 1})
    assert f"{field.name}: expected " in message and f"{least:,}" in message and f"got {least - 1}" in message
    if most is not None:
        assert f"from {least:,} to {most:,}" in refused({field.name: most * 2 + 1})
    for hostile in (math.nan, math.inf, -math.inf, "many", [1], True):
        assert f"{field.name}: expected " in refused({field.name: hostile})
    assert getattr(Recipe.of({field.name: least}), field.name) == least


@pytest.mark.parametrize("value", [0, -1, -0.1, math.nan, 1e9])
def test_a_learning_rate_that_cannot_train_is_refused(value):
    assert "lr: expected a finite number from 1e-09 to 10,000.0 or one of auto, got " in refused({"lr": value})


@pytest.mark.parametrize("sizes", ["128:4097", "9999:224"])
def test_both_sizes_of_images_that_grow_have_the_limit_of_one(sizes):
    assert f"img_size: expected sizes from 1 to 4,096, got {sizes}" in refused({"img_size": sizes})
    assert Recipe.of({"img_size": "128:4096"}).img_size == "128:4096"


@pytest.mark.parametrize("name", sorted(CHOICES))
def test_a_choice_that_is_not_there_is_refused_with_those_that_are(name):
    known = CHOICES[name]
    message = refused({name: known[-1] + "x"})
    assert f"one of {', '.join(known)}, got '{known[-1]}x' (did you mean {known[-1]}" in message
    assert message.startswith(f"invalid options: {name}: expected ")
    assert f"{name}: expected " in refused({name: [1]})
    assert [getattr(Recipe(**{name: value}), name) for value in known] == list(known)


@pytest.mark.parametrize("name", [f.name for f in fields(Recipe) if f.default is False])
def test_a_switch_takes_only_yes_and_no(name):
    assert f"{name}: expected true or false, got 1" in refused({name: 1})


def test_all_faults_are_said_at_once():
    message = refused({"epochs": 0, "lr": -1, "optimizer": "lamb", "data": 3})
    assert all(f"{name}: expected " in message for name in ("epochs", "lr", "optimizer", "data"))


def test_an_unknown_field_is_refused_with_the_nearest_one():
    with pytest.raises(InputError, match=r"unknown option 'epoch' \(did you mean epochs\?\)\. See `skipway"):
        Recipe.of({"epoch": 3})
    with pytest.raises(InputError, match="unknown option 7"):
        Recipe.of({7: 3})


def test_a_config_sets_only_what_it_names_and_reads_numbers_as_people_write_them(tmp_path):
    assert Recipe.read(written(tmp_path, "epochs: 3\nlr: 1e-3\nclip_grad: 1\nname: 1e3x\nema: 5e-1")) == {
        "epochs": 3,
        "lr": 1e-3,
        "clip_grad": 1,
        "name": "1e3x",
        "ema": 0.5,
    }
    assert "lr: expected a finite number from 1e-09 to 10,000.0 or one of auto, got 'fast'" in refused(
        Recipe.read(written(tmp_path, "lr: fast"))
    )


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
    with pytest.raises(InputError, match=r"cannot read the config .*c\.yaml: expected plain YAML, got: ") as caught:
        Recipe.read(written(tmp_path, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "- epochs", "12", "epochs"], ids=["empty", "list", "number", "word"])
def test_a_config_that_is_no_mapping_is_refused(tmp_path, text):
    with pytest.raises(InputError, match="expected `option: value` lines, got a .*such as `epochs: 20`"):
        Recipe.read(written(tmp_path, text))


@pytest.mark.parametrize("name", ["absent.yaml", "."])
def test_a_config_that_cannot_be_read_is_refused(tmp_path, name):
    with pytest.raises(InputError, match="cannot read the config .*: .*. Check the path."):
        Recipe.read(tmp_path / name)


def test_aliases_that_would_fill_the_memory_are_said_in_short(tmp_path):
    bomb = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    bomb += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    values = Recipe.read(written(tmp_path, "\n".join([*bomb, "data: *a29"])))
    assert len(refused({"data": values["data"], "optimizer": values["data"]})) < 1_000


def test_every_option_has_a_group_and_help_of_at_most_twelve_words():
    for field in fields(Recipe):
        help_text = field.metadata["help"]
        assert field.metadata["group"] in GROUPS and help_text.endswith(".")
        assert len(help_text.split()) <= 12, f"{field.name}: {help_text}"
        assert field.default is not None or field.metadata["effective"] or field.name == "data", field.name


def test_an_empty_text_is_no_default():
    assert "features: expected a text with characters, got none; leave it out" in refused({"features": ""})
    assert "label_sep: expected a text with characters" in refused({"label_sep": ""})
