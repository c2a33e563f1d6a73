import json
import math
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipway.data.image_limits import MAX_PRESIZE, MAX_SIZE
from skipway.data.image_spec import INTERPOLATIONS, RESIZE_MODES, Spec
from skipway.data.images.choose_decode_settings import ROOM
from skipway.errors import InputError
from skipway.runs.recipe import Recipe

GREY = Spec(1, 28, 28, (0.5,), (0.25,), ("a", "b"))
COLOUR = Spec(3, 24, 32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), ("cat", "dog", "ß"), "crop")


def test_a_spec_tells_the_shape_of_an_input_and_the_number_of_classes():
    assert COLOUR.input_shape == (3, 24, 24) and COLOUR.num_classes == 3
    assert GREY.input_shape == (1, 28, 28) and GREY.resize_mode == "squash"


@pytest.mark.parametrize("spec", [GREY, COLOUR, replace(COLOUR, tta=True)])
def test_a_spec_comes_back_equal_through_json(spec):
    again = Spec.from_dict(json.loads(json.dumps(spec.as_dict())))
    assert again == spec and hash(again) == hash(spec)


def test_a_spec_made_with_lists_equals_the_one_made_with_tuples():
    assert Spec(1, 28, 28, [0.5], [0.25], ["a", "b"]) == GREY


def test_a_file_from_before_interpolation_was_stored_is_bilinear():
    old = {k: v for k, v in COLOUR.as_dict().items() if k != "interpolation"}
    assert Spec.from_dict(old) == COLOUR and COLOUR.interpolation == "bilinear"
    assert Spec.from_dict({**old, "interpolation": "bicubic"}) == replace(COLOUR, interpolation="bicubic") != COLOUR


def test_a_file_from_before_views_were_stored_has_one():
    assert "tta" not in COLOUR.as_dict() and not Spec.from_dict(COLOUR.as_dict()).tta
    assert Spec.from_dict({**COLOUR.as_dict(), "tta": True}) == replace(COLOUR, tta=True) != COLOUR


finite = st.floats(-1e6, 1e6)


@given(
    st.sampled_from([1, 3]).flatmap(
        lambda c: st.builds(
            lambda size, more, mean, std, names, *how: Spec(c, size, size + more, mean, std, names, *how),
            st.integers(1, 512),
            st.integers(0, 100),
            st.lists(finite, min_size=c, max_size=c),
            st.lists(st.floats(1e-6, 1e6), min_size=c, max_size=c),
            st.lists(st.text(max_size=20), min_size=1, max_size=5, unique=True),
            st.sampled_from(RESIZE_MODES),
            st.sampled_from(INTERPOLATIONS),
        )
    )
)
def test_every_valid_spec_comes_back_equal(spec):
    assert Spec.from_dict(json.loads(json.dumps(spec.as_dict()))) == spec


@pytest.mark.parametrize(
    "change, text",
    [
        ({"channels": 17}, "expected 1 to 16 channels, got 17. Use 1 for gray"),
        (
            {"value_range": ((0, 1), (0, 1))},
            "expected one finite pair .* for each of 1 channels",
        ),
        (
            {"value_range": ((1, 0),)},
            "a value range: expected one finite pair .*Compute it from",
        ),
        ({"value_range": ((0, math.inf),)}, "a value range: expected one finite pair"),
        ({"value_range": "0:255"}, "a value range: expected one finite pair"),
        ({"size": 0}, "expected 1 <= size <= presize, got size 0 and presize 28"),
        ({"size": 29}, "expected 1 <= size <= presize, got size 29 and presize 28"),
        ({"mean": (0.5, 0.5)}, "expected mean and std of length 1, got 2 and 1"),
        ({"std": ()}, "expected mean and std of length 1, got 1 and 0"),
        ({"mean": (math.nan,)}, "expected a finite mean and a positive, finite std, got mean"),
        ({"std": (0.0,)}, "expected a finite mean and a positive, finite std, got mean"),
        ({"std": (math.inf,)}, "expected a finite mean and a positive, finite std, got mean"),
        ({"resize_mode": "stretch"}, "expected resize_mode to be one of squash, crop, pad, got 'stretch'"),
        ({"interpolation": "nearest"}, "expected interpolation to be one of bilinear, bicubic, got 'nearest'"),
        ({"class_names": ()}, "expected 1 to 100,000 class names, got 0"),
        ({"class_names": ("a", "a")}, "a Spec: expected unique class names, got duplicates. Rename or merge equal"),
        ({"class_names": ("a\n" * 600,)}, r"a Spec: expected class names of at most 1024 bytes, got a\\x0aa"),
        ({"class_names": "ab"}, "expected class_names as a list of strings, got .*. Pass one string per class"),
        ({"class_names": (1, 2)}, "expected class_names as a list of strings, got .*. Pass one string per class"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line(change, text):
    with pytest.raises(InputError, match=text) as refused:
        replace(GREY, **change)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    "values",
    [{}, None, [], "spec", {"channels": 3}, {**GREY.as_dict(), "color": 1}],
)
def test_a_file_with_other_fields_is_refused(values):
    with pytest.raises(InputError, match="a Spec: expected the fields channels, class_names, .*got .*Use a file"):
        Spec.from_dict(values)


@pytest.mark.parametrize(
    "change",
    [
        {"channels": "one"},
        {"size": None},
        {"size": 27.9},
        {"size": "28"},
        {"size": math.inf},
        {"presize": []},
        {"mean": ["x"]},
        {"mean": 0.5},
        {"std": [None]},
    ],
)
def test_a_file_with_values_of_another_kind_is_refused(change):
    with pytest.raises(InputError, match="expected numbers for sizes, mean and std, got"):
        Spec.from_dict({**GREY.as_dict(), **change})


@pytest.mark.parametrize("names", [None, 3, "ab", {"a": 1}])
def test_a_file_whose_class_names_are_no_list_is_refused(names):
    with pytest.raises(InputError, match="expected class_names as a list of strings"):
        Spec.from_dict({**GREY.as_dict(), "class_names": names})


@pytest.mark.parametrize("size, presize", [(MAX_SIZE + 1, MAX_SIZE + 1), (28, MAX_PRESIZE + 1), (10**9, 10**9)])
def test_a_file_cannot_ask_for_memory(size, presize):
    text = f"expected size <= 4096 and presize <= 4710, got size {size} and presize {presize}. Use smaller images"
    with pytest.raises(InputError, match=text):
        Spec.from_dict({**GREY.as_dict(), "size": size, "presize": presize})


def test_whatever_a_recipe_trains_on_can_be_read():
    (field,) = [field for field in fields(Recipe) if field.name == "img_size"]
    assert field.metadata["maximum"] == MAX_SIZE and round(MAX_SIZE * ROOM) == MAX_PRESIZE
    spec = replace(GREY, size=MAX_SIZE, presize=MAX_PRESIZE)
    assert Spec.from_dict(spec.as_dict()) == spec
