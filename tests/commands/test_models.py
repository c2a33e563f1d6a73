"""The list of the networks that have a name."""

import pytest

import skipway as sw
from skipway.commands.models import model_facts, model_table
from skipway.errors import InputError


def test_every_registered_network_has_its_line():
    lines = list(model_table())
    assert [line.split()[0] for line in lines] == sw.list_models()
    assert len({line.index(" parameters  ") for line in lines}) == 1  # one below the other


@pytest.mark.parametrize(
    "name, told",
    [
        ("resnet50d", "25,576,264 parameters  bottleneck 3-4-6-3, deep stem, shortcut pool, 1,000 classes"),
        ("resnet20", "269,722 parameters  basic 3-3-3, small stem, widths 16-32-64, shortcut pad, 10 classes"),
        ("densenet161", "28,681,000 parameters  densenet 6-12-36-24, large stem, growth 48, 1,000 classes"),
        ("resmlp", "274,570 parameters  resmlp 4, 10 classes"),
        ("resnet9", "6,573,120 parameters  resnet9 2-0-2, small stem, 10 classes"),
    ],
)
def test_a_line_tells_what_the_network_is_made_of(name, told):
    assert [line.split(maxsplit=1) for line in model_table(name)] == [[name, told]]


def test_weights_are_listed_with_the_classes_of_their_tag():
    lines = {
        line.split()[0]: line for line in model_table(["convnext_tiny", "resnet18d"], "*.fb_in1k", pretrained=True)
    }
    assert [*lines] == sw.list_models(["convnext_tiny", "resnet18d"], pretrained=True, exclude_filters="*.fb_in1k")
    assert " 44,615,857 parameters  " in lines["convnext_tiny.fb_in22k"], "as in timm"
    (row,) = model_facts("convnext_tiny.in12k", pretrained=True)
    assert row["parameters"] == 36_910_477 and row["plan"]["num_classes"] == 11821


def test_a_pattern_that_nothing_matches_is_refused():
    with pytest.raises(InputError, match="cannot list models: expected a pattern that matches an architecture, got 'y"):
        model_table("y*")
