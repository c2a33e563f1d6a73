"""The words of timm and torchvision are options of a plan, or get one line that says what to use."""

import pytest
import torch
from torch import nn

import skipway as sw
from skipway.errors import InputError
from skipway.models.registry import plan_of


@pytest.mark.parametrize(
    "name, words, options",
    [
        ("resnet18", {"act_layer": nn.SiLU}, {"activation": "silu"}),
        ("resnet18", {"act_layer": "hard_swish"}, {"activation": "hardswish"}),
        ("resnet18", {"act_layer": "leaky_relu"}, {"activation": "leaky_relu"}),
        ("resnet18", {"act_layer": None, "norm_layer": None}, {"activation": "relu", "norm": "batch"}),
        ("resnet18", {"norm_layer": nn.GroupNorm}, {"norm": "group"}),
        ("resnet18", {"norm_layer": "batchnorm2d"}, {"norm": "batch"}),
        ("resnet18", {"aa_layer": nn.AvgPool2d}, {"aa_layer": "avg"}),
        ("resnet18", {"aa_layer": "blur_pool"}, {"aa_layer": "blurpool"}),
        ("resnetblur18", {"aa_layer": None}, {"aa_layer": "none"}),
        ("resnet18", {"attn_layer": "eca"}, {"attention": "eca"}),
        ("resnet18", {"drop_rate": 0.2, "drop_path_rate": 0.1}, {"drop_rate": 0.2, "dropout": 0.0, "drop_path": 0.1}),
        ("resnet18", {"avg_down": True}, {"shortcut": "pool"}),
        ("resnet18", {"scriptable": False, "drop_block_rate": 0.0, "pretrained_cfg": None}, {"dropout": 0.0}),
        ("resnet18", {"block_args": {}, "bn_momentum": None, "another": None}, {"attention": "none"}),
        ("densenet121", {"drop_path_rate": 0.0, "output_stride": None}, {"drop_rate": 0.0}),
        ("efficientnet_b0", {"pad_type": "same", "bn_eps": 1e-3}, {"padding": "same", "norm_eps": 1e-3}),
        ("tf_efficientnet_b0", {"pad_type": ""}, {"padding": "torch"}),
        ("resnet50", {"zero_init_residual": True}, {"zero_init_last": True}),
        ("resnet50", {"replace_stride_with_dilation": [False, True, True]}, {"output_stride": 8}),
        ("resnet50", {"replace_stride_with_dilation": (False, False, True)}, {"output_stride": 16}),
        ("resnet50", {"replace_stride_with_dilation": [False] * 3}, {"output_stride": None}),
        ("resnet50", {"groups": 32, "width_per_group": 4}, {"cardinality": 32, "base_width": 4}),
        ("densenet121", {"growth_rate": 8, "block_config": (2, 3), "bn_size": 2}, {"growth": 8, "layers": [2, 3]}),
        ("densenet121", {"drop_rate": 0.1, "proj_drop_rate": 0.2}, {"drop_rate": 0.1, "dropout": 0.2}),
        ("efficientnet_b0", {"drop_rate": 0.1, "drop_connect_rate": 0.2}, {"dropout": 0.1, "drop_path": 0.2}),
        ("convnext_atto", {"stochastic_depth_prob": 0.2, "drop_rate": 0.1}, {"drop_path": 0.2, "dropout": 0.1}),
        ("convnext_atto", {"depths": (1, 1), "dims": (8, 16)}, {"layers": [1, 1], "widths": [8, 16]}),
    ],
)
def test_other_words_give_the_plan_of_our_words(name, words, options):
    plan = plan_of(name, **words)
    assert {option: plan[option] for option in options} == options


@pytest.mark.parametrize(
    "words, text",
    [
        ({"scriptable": True}, "resnet18: expected an option of its plan, got scriptable. .*torch.export"),
        ({"stem_width": 32}, "got stem_width. Use stem_channels, which is twice the stem_width"),
        ({"block_args": {"attn_layer": "se"}}, "got block_args. Use attention and attention_ratio"),
        ({"bn_momentum": 0.1}, "got bn_momentum. Remove it, and set momentum or eps of the BatchNorm layers"),
        ({"feature_cls": "fx"}, "got feature_cls. Remove it: Features runs the layers in order"),
        ({"drop_block_rate": 0.1}, "got drop_block_rate. Use dropout or drop_path"),
        ({"weights": "IMAGENET1K_V1"}, "got weights. Use pretrained=True"),
        (
            {"drop_path": 0.1, "drop_path_rate": 0.2},
            "expected one value for drop_path, got drop_path and drop_path_rate",
        ),
        ({"act_layer": nn.PReLU}, "unknown activation 'PReLU': expected one of relu"),
        ({"norm_layer": "layernorm"}, "unknown norm 'layernorm' .*: expected one of batch, group, none"),
        ({"replace_stride_with_dilation": [True] * 3}, r"expected output_stride 8, 16 or 32, got \[True, True, True\]"),
        ({"avg_dawn": True}, "resnet18: unknown option 'avg_dawn'"),
    ],
)
def test_words_without_a_counterpart_are_one_line_with_the_way_out(words, text):
    with pytest.raises(InputError, match=text) as refused:
        plan_of("resnet18", **words)
    assert len(str(refused.value).splitlines()) == 1


# The call of timm's train.py, with the defaults of its options.
SCRIPT = {
    **{"in_chans": 3, "num_classes": 7, "drop_rate": 0.0, "drop_path_rate": None, "drop_block_rate": None},
    **{"global_pool": None, "bn_momentum": None, "bn_eps": None, "scriptable": False, "checkpoint_path": ""},
}


@pytest.mark.parametrize(
    "name", ["resnet18", "resnetv2_50", "densenet121", "convnext_atto", "efficientnet_b0", "resnet9", "resnet20"]
)
def test_the_options_of_a_training_script_of_timm_are_the_defaults(name):
    with torch.device("meta"):
        assert sw.create_model(name, pretrained=False, **SCRIPT).plan == plan_of(name, num_classes=7)
