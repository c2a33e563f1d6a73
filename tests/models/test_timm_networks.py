"""Names that timm 1.0.31 has too mean the same networks: its counts, widths and reductions, as plain numbers."""

import json
from pathlib import Path

import pytest

from skipway.models import registry
from skipway.models.feature_extraction import Features
from skipway.models.network import build_meta_network

# name -> [parameters, num_features, channels of feature_info, reductions of feature_info]; made with
# timm.create_model(name) on the meta device, for all of timm.list_models() that are registered here.
TIMM = json.loads((Path(__file__).parent.parent / "timm_networks.json").read_text())
RESNETS = [name for name in TIMM if registry.ROWS[name][0] == "resnet"]


def test_every_shared_name_has_as_many_parameters_as_in_timm():
    counted = {name: registry.count_parameters(registry.plan_of(name)) for name in TIMM}
    assert counted == {name: row[0] for name, row in TIMM.items()}


def test_no_network_of_timm_s_resnet_modules_is_missing():
    kinds = ("resnetaa", "resnetblur", "_bit", "senet154", "densenet264d", "densenetblur", "_evos", "_frn", "_pruned")
    assert [kind for kind in kinds if not any(kind in name for name in TIMM)] == []
    assert len(TIMM) >= 146 and len(RESNETS) >= 101


@pytest.mark.parametrize("name", RESNETS)
def test_feature_maps_have_timm_s_channels_and_reductions(name):
    _, num_features, channels, reductions = TIMM[name]
    plan = registry.plan_of(name)
    network = build_meta_network({**plan, "layers": [1] * 4, "inner_widths": []})  # blocks of a stage have equal widths
    info = Features(network).feature_info
    assert [stage["num_chs"] for stage in info] == channels and network.head.in_features == num_features
    assert [stage["reduction"] for stage in info] == reductions
