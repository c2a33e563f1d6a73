"""timm's pretrained weights: the tags of each architecture, as of timm 1.0.31.

The weights of a tag are in the repository timm/NAME.TAG on the Hugging Face Hub.
"""

from skipway.models import registry
from skipway.weights.weight_packages import find_weights

__all__ = ["CLASSES", "TAGS", "TIMM_TAGS", "weight_tags"]

# The tags of each architecture, timm's default first.
_ROWS = {
    "convnext_atto": "d2_in1k",
    "convnext_base": "fb_in22k_ft_in1k fb_in1k fb_in22k_ft_in1k_384 fb_in22k clip_laion2b_augreg_ft_in12k_in1k "
    "clip_laion2b_augreg_ft_in12k_in1k_384 clip_laion2b_augreg_ft_in1k clip_laiona_augreg_ft_in1k_384 "
    "clip_laion2b_augreg_ft_in12k clip_laion2b clip_laion2b_augreg clip_laiona clip_laiona_320 "
    "clip_laiona_augreg_320 dinov3_lvd1689m eupe_lvd1689m",
    "convnext_femto": "d1_in1k",
    "convnext_large": "fb_in22k_ft_in1k fb_in1k fb_in22k_ft_in1k_384 fb_in22k dinov3_lvd1689m",
    "convnext_nano": "in12k_ft_in1k d1h_in1k r384_in12k_ft_in1k in12k r384_in12k r384_ad_in12k",
    "convnext_pico": "d1_in1k",
    "convnext_small": "in12k_ft_in1k in12k_ft_in1k_384 in12k fb_in22k_ft_in1k fb_in1k fb_in22k_ft_in1k_384 fb_in22k "
    "dinov3_lvd1689m eupe_lvd1689m",
    "convnext_tiny": "in12k_ft_in1k in12k_ft_in1k_384 in12k fb_in22k_ft_in1k fb_in1k fb_in22k_ft_in1k_384 fb_in22k "
    "dinov3_lvd1689m eupe_lvd1689m",
    "densenet121": "ra_in1k tv_in1k",
    "densenet161": "tv_in1k",
    "densenet169": "tv_in1k",
    "densenet201": "tv_in1k",
    "densenetblur121d": "ra_in1k",
    "ecaresnet26t": "ra2_in1k",
    "ecaresnet50d": "miil_in1k",
    "ecaresnet50d_pruned": "miil_in1k",
    "ecaresnet50t": "ra2_in1k a1_in1k a2_in1k a3_in1k",
    "ecaresnet101d": "miil_in1k",
    "ecaresnet101d_pruned": "miil_in1k",
    "ecaresnet269d": "ra2_in1k",
    "ecaresnetlight": "miil_in1k",
    "efficientnet_b0": "ra_in1k ra4_e3600_r224_in1k",
    "efficientnet_b1": "ra4_e3600_r240_in1k ft_in1k",
    "efficientnet_b2": "ra_in1k",
    "efficientnet_b3": "ra2_in1k",
    "efficientnet_b4": "ra2_in1k",
    "efficientnet_b5": "sw_in12k_ft_in1k sw_in12k",
    "efficientnet_lite0": "ra_in1k",
    "mobilenetv2_050": "lamb_in1k",
    "mobilenetv2_100": "ra_in1k",
    "mobilenetv2_110d": "ra_in1k",
    "mobilenetv2_120d": "ra_in1k",
    "mobilenetv2_140": "ra_in1k",
    "resnet10t": "c3_in1k",
    "resnet14t": "c3_in1k",
    "resnet18": "a1_in1k a2_in1k a3_in1k tv_in1k fb_ssl_yfcc100m_ft_in1k fb_swsl_ig1b_ft_in1k gluon_in1k",
    "resnet18d": "ra2_in1k ra4_e3600_r224_in1k",
    "resnet26": "bt_in1k",
    "resnet26d": "bt_in1k",
    "resnet26t": "ra2_in1k",
    "resnet34": "a1_in1k a2_in1k a3_in1k bt_in1k ra4_e3600_r224_in1k tv_in1k gluon_in1k",
    "resnet34d": "ra2_in1k",
    "resnet50": "a1_in1k a1h_in1k a2_in1k a3_in1k b1k_in1k b2k_in1k c1_in1k c2_in1k d_in1k ram_in1k am_in1k ra_in1k "
    "bt_in1k tv_in1k tv2_in1k bamboo fb_ssl_yfcc100m_ft_in1k fb_swsl_ig1b_ft_in1k gluon_in1k",
    "resnet50_gn": "a1h_in1k",
    "resnet50c": "gluon_in1k",
    "resnet50d": "ra2_in1k ra4_e3600_r224_in1k a1_in1k a2_in1k a3_in1k gluon_in1k",
    "resnet50s": "gluon_in1k",
    "resnet101": "a1h_in1k a1_in1k a2_in1k a3_in1k tv_in1k tv2_in1k gluon_in1k",
    "resnet101c": "gluon_in1k",
    "resnet101d": "ra2_in1k gluon_in1k",
    "resnet101s": "gluon_in1k",
    "resnet152": "a1h_in1k a1_in1k a2_in1k a3_in1k tv_in1k tv2_in1k gluon_in1k",
    "resnet152c": "gluon_in1k",
    "resnet152d": "ra2_in1k gluon_in1k",
    "resnet152s": "gluon_in1k",
    "resnet200d": "ra2_in1k",
    "resnetaa50": "a1h_in1k",
    "resnetaa50d": "sw_in12k_ft_in1k sw_in12k d_in12k",
    "resnetaa101d": "sw_in12k_ft_in1k sw_in12k",
    "resnetblur50": "bt_in1k",
    "resnetrs50": "tf_in1k",
    "resnetrs101": "tf_in1k",
    "resnetrs152": "tf_in1k",
    "resnetrs200": "tf_in1k",
    "resnetrs270": "tf_in1k",
    "resnetrs350": "tf_in1k",
    "resnetrs420": "tf_in1k",
    "resnetv2_18": "ra4_e3600_r224_in1k",
    "resnetv2_18d": "ra4_e3600_r224_in1k",
    "resnetv2_34": "ra4_e3600_r224_in1k",
    "resnetv2_34d": "ra4_e3600_r224_in1k ra4_e3600_r384_in1k",
    "resnetv2_50": "a1h_in1k",
    "resnetv2_50d_evos": "ah_in1k",
    "resnetv2_50d_gn": "ah_in1k",
    "resnetv2_50x1_bit": "goog_distilled_in1k goog_in21k_ft_in1k goog_in21k",
    "resnetv2_50x3_bit": "goog_in21k_ft_in1k goog_in21k",
    "resnetv2_101": "a1h_in1k",
    "resnetv2_101x1_bit": "goog_in21k_ft_in1k goog_in21k",
    "resnetv2_101x3_bit": "goog_in21k_ft_in1k goog_in21k",
    "resnetv2_152x2_bit": "goog_teacher_in21k_ft_in1k goog_teacher_in21k_ft_in1k_384 goog_in21k_ft_in1k goog_in21k",
    "resnetv2_152x4_bit": "goog_in21k_ft_in1k goog_in21k",
    "resnext50_32x4d": "a1h_in1k a1_in1k a2_in1k a3_in1k ra_in1k tv_in1k tv2_in1k fb_ssl_yfcc100m_ft_in1k "
    "fb_swsl_ig1b_ft_in1k gluon_in1k",
    "resnext50d_32x4d": "bt_in1k",
    "resnext101_32x4d": "fb_ssl_yfcc100m_ft_in1k fb_swsl_ig1b_ft_in1k gluon_in1k",
    "resnext101_32x8d": "tv_in1k tv2_in1k fb_wsl_ig1b_ft_in1k fb_ssl_yfcc100m_ft_in1k fb_swsl_ig1b_ft_in1k",
    "resnext101_32x16d": "fb_wsl_ig1b_ft_in1k fb_ssl_yfcc100m_ft_in1k fb_swsl_ig1b_ft_in1k",
    "resnext101_32x32d": "fb_wsl_ig1b_ft_in1k",
    "resnext101_64x4d": "c1_in1k tv_in1k gluon_in1k",
    "senet154": "gluon_in1k",
    "seresnet50": "a1_in1k a2_in1k a3_in1k ra2_in1k",
    "seresnet152d": "ra2_in1k",
    "seresnext26d_32x4d": "bt_in1k",
    "seresnext26t_32x4d": "bt_in1k",
    "seresnext50_32x4d": "racm_in1k gluon_in1k",
    "seresnext101_32x4d": "gluon_in1k",
    "seresnext101_32x8d": "ah_in1k",
    "seresnext101_64x4d": "gluon_in1k",
    "seresnext101d_32x8d": "ah_in1k",
    "seresnextaa101d_32x8d": "sw_in12k_ft_in1k_288 sw_in12k_ft_in1k sw_in12k ah_in1k",
    "seresnextaa201d_32x8d": "sw_in12k_ft_in1k_384 sw_in12k",
    "test_resnet": "r160_in1k",
    "tf_efficientnet_b0": "ns_jft_in1k ap_in1k aa_in1k in1k",
    "tf_efficientnet_b1": "ns_jft_in1k ap_in1k aa_in1k in1k",
    "tf_efficientnet_b2": "ns_jft_in1k ap_in1k aa_in1k in1k",
    "tf_efficientnet_b3": "ns_jft_in1k ap_in1k aa_in1k in1k",
    "tf_efficientnet_b4": "ns_jft_in1k ap_in1k aa_in1k in1k",
    "tf_efficientnet_b5": "ns_jft_in1k ap_in1k ra_in1k aa_in1k in1k",
    "tf_efficientnet_b6": "ns_jft_in1k ap_in1k aa_in1k",
    "tf_efficientnet_b7": "ns_jft_in1k ap_in1k ra_in1k aa_in1k",
    "tf_efficientnet_lite0": "in1k",
    "tf_efficientnet_lite1": "in1k",
    "tf_efficientnet_lite2": "in1k",
    "tf_efficientnet_lite3": "in1k",
    "tf_efficientnet_lite4": "in1k",
    "wide_resnet50_2": "racm_in1k tv_in1k tv2_in1k",
    "wide_resnet101_2": "tv_in1k tv2_in1k",
}
TIMM_TAGS: dict[str, tuple[str, ...]] = {
    name: tuple(tags.split()) for name, tags in _ROWS.items() if name in registry.ROWS
}
TAGS: dict[str, str] = {name: tags[0] for name, tags in TIMM_TAGS.items()}
# Number of classes of the tags whose weights are not for the 1,000 classes of ImageNet; 0 for weights without a head.
CLASSES: dict[str, int] = {
    **dict.fromkeys(("bamboo", "dinov3_lvd1689m", "eupe_lvd1689m"), 0),
    **dict.fromkeys(("clip_laion2b", "clip_laion2b_augreg", "clip_laiona", "clip_laiona_320"), 640),
    "clip_laiona_augreg_320": 640,
    **dict.fromkeys(("clip_laion2b_augreg_ft_in12k", "in12k", "r384_ad_in12k", "r384_in12k", "sw_in12k"), 11821),
    "d_in12k": 11821,
    "fb_in22k": 21841,
    "goog_in21k": 21843,
}


def weight_tags(name: str) -> tuple[str, ...]:
    """Return the tags of the weights of an architecture, the default first.

    Args:
        name: Architecture, such as "resnet18".

    Returns:
        The tags of timm, after "package" if a pip package with weights of `name` is installed.

    >>> weight_tags("resnet18d")
    ('ra2_in1k', 'ra4_e3600_r224_in1k')
    """
    packaged = ("package",) if find_weights(name) is not None else ()
    return (*packaged, *TIMM_TAGS.get(name, ()))
