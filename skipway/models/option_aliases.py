"""Options of timm and torchvision in the words of a plan: one table, used by `registry.plan_of`.

An alias has another name than the option of the plan, or other words as values. A hint is for a word that no option
replaces one to one.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from skipway.errors import InputError
from skipway.nn.activations import ACTIVATIONS

__all__ = ["translate_options"]

# Other word -> option of the plan. A plan that has the other word itself keeps it.
_ALIASES = {
    # timm
    "act_layer": "activation",
    "norm_layer": "norm",
    "attn_layer": "attention",
    "drop_path_rate": "drop_path",
    "drop_connect_rate": "drop_path",
    "drop_rate": "dropout",
    "proj_drop_rate": "dropout",
    "avg_down": "shortcut",
    "dims": "widths",
    "depths": "layers",
    "block_config": "layers",
    "growth_rate": "growth",
    "bn_size": "bottleneck",
    "bn_eps": "norm_eps",
    "kernel_sizes": "kernel",
    "pad_type": "padding",
    "ls_init_value": "layer_scale",
    # torchvision
    "zero_init_residual": "zero_init_last",
    "replace_stride_with_dilation": "output_stride",
    "groups": "cardinality",
    "width_per_group": "base_width",
    "stochastic_depth_prob": "drop_path",
    "num_init_features": "stem_channels",
}
# Option or other word -> other words for its values, and the names of torch's classes, without case and separators.
_VALUES: dict[str, dict[Any, Any]] = {
    "activation": {**{layer.__name__.lower(): name for name, layer in ACTIVATIONS.items()}, "swish": "silu"},
    "norm": {
        **dict.fromkeys(("batchnorm", "batchnorm2d", "batchnormact2d"), "batch"),
        **dict.fromkeys(("groupnorm", "groupnormact"), "group"),
        **dict.fromkeys(("frntlu", "filterresponsenormtlu2d"), "frn"),
        **dict.fromkeys(("evonorms0", "evonorm2ds0"), "evonorm"),
        "identity": "none",
    },
    "attention": {"semodule": "se", "squeezeexcite": "se", "ecamodule": "eca"},
    "aa_layer": {
        **dict.fromkeys(("blur", "blurpool", "blurpool2d"), "blurpool"),
        **dict.fromkeys(("avgpool", "avgpool2d"), "avg"),
        "none": "none",
    },
    "pad_type": {"": "torch"},
    "avg_down": {"true": "pool", "false": "auto"},
    "replace_stride_with_dilation": {"false,false,false": None, "false,false,true": 16, "false,true,true": 8},
}
_EXPORT = "Remove it: torch.jit.script, torch.jit.trace and torch.export work on every network."
_WEIGHTS = "Use pretrained=True, or pretrained with a tag, a repository or a file."
# Word without an option -> what to do instead. Values that ask for nothing, such as False, are dropped.
_HINTS = {
    **dict.fromkeys(("scriptable", "exportable", "no_jit", "jit"), _EXPORT),
    **dict.fromkeys(("weights", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"), _WEIGHTS),
    "progress": "Remove it: every download is reported.",
    **dict.fromkeys(("device", "dtype"), "Remove it, and convert the network with .to(...)."),
    "channels": "Use widths: the channels of a stage, before a bottleneck widens them.",
    "stem_type": "Use stem, and stem_channels.",
    "stem_width": "Use stem_channels, which is twice the stem_width of a deep stem.",
    "stem_chs": "Use stem_channels.",
    "replace_stem_pool": 'Use stem="deep_conv".',
    "conv_layer": "Use weight_standardization=True for StdConv2d.",
    "block_args": "Use attention and attention_ratio.",
    **dict.fromkeys(("bn_momentum", "bn_eps"), "Remove it, and set momentum or eps of the BatchNorm layers."),
    **dict.fromkeys(
        ("drop_path_rate", "drop_connect_rate", "stochastic_depth_prob"),
        "Remove it: this family has no stochastic depth.",
    ),
    "conv_mlp": "Remove it: both forms compute the same.",
    **dict.fromkeys(
        ("feature_cls", "flatten_sequential", "output_fmt"), "Remove it: Features runs the layers in order, as NCHW."
    ),
    "width_factor": "Use widths, and stem_channels.",
    "drop_block_rate": "Use dropout or drop_path, because there is no DropBlock.",
    "memory_efficient": "Use set_grad_checkpointing.",
    "ls_init_value": 'Use join="layerscale".',
    "img_size": "Remove it: these networks take images of any size.",
}


def translate_options(name: str, options: Mapping[str, Any], allowed: Iterable[str]) -> dict[str, Any]:
    """Return options with the names and values of a plan.

    Args:
        name: model name, for errors.
        options: options in the words of skipway, timm or torchvision.
        allowed: options of the plan.

    Returns:
        The options. Unknown words and values are unchanged, so that the plan refuses them.

    Raises:
        InputError: a word has no counterpart, or an option is set twice.

    >>> translate_options("resnet18", {"act_layer": "SiLU", "drop_path_rate": 0.1}, ["activation", "drop_path"])
    {'activation': 'silu', 'drop_path': 0.1}
    """
    known = set(allowed)
    translated: dict[str, Any] = {}
    words: dict[str, str] = {}
    for word, value in options.items():
        if word in _HINTS and known.isdisjoint((word, _ALIASES.get(word))):
            if value is None or (isinstance(value, bool | int | float | str | dict) and not value):
                continue
            raise InputError(f"{name}: expected an option of its plan, got {word}. {_HINTS[word]}")
        option = word if word in known else _ALIASES.get(word, word)
        if option not in known:
            option = word
        elif option != word and value is None:
            continue  # the default of timm and torchvision
        if option in words:
            raise InputError(f"{name}: expected one value for {option}, got {words[option]} and {word}. Remove {word}.")
        translated[option], words[option] = _plan_value(word, option, value), word
    return translated


def _plan_value(word: str, option: str, value: Any) -> Any:
    """Return a value in the words of the plan; a class of layers that has none becomes its name."""
    name = value.__name__ if isinstance(value, type) else value
    key = "".join(character for character in str(name).lower() if character not in "_- ()[]")
    return (_VALUES.get(word) or _VALUES.get(option, {})).get(key, name)
