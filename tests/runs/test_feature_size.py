"""The size of the images whose features a head is fitted to: by their number, and by the time that there is."""

import pytest

from skipway.data.image_spec import Spec
from skipway.model_factory import create_model
from skipway.runs import feature_size as module
from skipway.runs.feature_size import feature_size, seconds_for_features


def network(size):
    network = create_model("resnet20", num_classes=3, layers=[1], widths=[8])
    network.spec = Spec(3, size, size + size // 7, (0.5,) * 3, (0.2,) * 3, class_names=("a", "b", "c"))
    return network


# 10 ms for an image of 224 pixels, 1,000 images.
@pytest.mark.parametrize("seconds, size", [(16.6, 288), (16.5, 272), (10.0, 224), (5.2, 160), (5.1, 144), (-1.0, 128)])
def test_the_size_goes_down_until_the_features_fit_into_their_time(monkeypatch, seconds, size):
    clock = iter([0.0, 0.16])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    assert feature_size(network(224), "fp32", count=1_000, seconds=seconds) == size


def test_few_images_are_larger_than_those_of_the_weights():
    assert feature_size(network(224), "fp32", count=10_000, seconds=None) == 288
    assert feature_size(network(224), "fp32", count=10_001, seconds=None) == 224
    assert feature_size(network(32), "fp32", count=10, seconds=1.0) == 32


def test_what_a_time_limit_leaves_for_features():
    # 95% of it without 4 s for start and end, 1.2 ms for each image's part in the fit and 3 ms for its decoding
    assert seconds_for_features(50.0, 3_000, decoding=0.003) == pytest.approx(47.5 - 4 - 12.6)
