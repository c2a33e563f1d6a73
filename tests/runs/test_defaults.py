from itertools import product
from typing import get_type_hints

import pytest
import torch

from skipway.distributed import collectives
from skipway.errors import InputError
from skipway.models.registry import FAMILIES
from skipway.runs.defaults import FAMILY_DEFAULTS, TargetCounts, batch_size_for, precision_for, settings_for
from skipway.runs.option_values import choices
from skipway.runs.recipe import Recipe


def test_every_family_has_its_own_training_for_every_optimiser():
    optimizers = [name for name in choices(get_type_hints(Recipe)["optimizer"]) if name != "auto"]
    assert set(FAMILY_DEFAULTS) == set(product(FAMILIES, optimizers))


def test_what_the_recipe_says_goes_before_what_the_family_would_do():
    recipe = Recipe(
        lr=0.3, momentum=0.5, weight_decay=0.0, label_smoothing=0.0, bias_lr_mult=2.0, precision="fp32", device="cpu"
    )
    settings = settings_for(recipe, {"family": "resnet9"}, 64)
    told = (settings.lr, settings.momentum, settings.weight_decay, settings.label_smoothing, settings.bias_lr_mult)
    assert told == (0.3, 0.5, 0.0, 0.0, 2.0)


def test_the_learning_rate_goes_with_the_root_of_the_images_in_a_step():
    one = settings_for(Recipe(), {"family": "resnet"}, 128).lr
    assert settings_for(Recipe(), {"family": "resnet"}, 512).lr == pytest.approx(2 * one)
    assert settings_for(Recipe(grad_accum_steps=4), {"family": "resnet"}, 128).lr == pytest.approx(2 * one)


def test_wider_networks_for_tables_have_a_lower_rate():
    rates = [settings_for(Recipe(), {"family": "resmlp", "width": w}, 128, is_table=True).lr for w in (32, 64, 256)]
    assert rates == pytest.approx([8e-3, 8e-3, 2e-3])


def test_few_of_many_images_do_not_choose_the_epoch():
    def kept(validation, count=48_000, pretrained=False, **options):
        recipe, targets = Recipe(**options), TargetCounts(count=count, validation=validation)
        return settings_for(recipe, {"family": "resnet"}, 64, targets=targets, pretrained=pretrained).kept_epoch

    assert [kept(validation) for validation in (0, 1, 2_400, 2_401)] == ["best", "last", "last", "best"]
    assert [kept(500, count) for count in (19_999, 20_000)] == ["best", "last"]
    assert [kept(500, schedule=name) for name in ("cosine", "constant", "steps")] == ["last", "best", "best"]
    assert kept(500, patience=3) == kept(500, pretrained=True) == "best"


def test_the_batch_size_grows_with_the_set():
    assert [batch_size_for(Recipe(), n) for n in (16, 100, 200, 10_000, 50_000)] == [8, 16, 32, 128, 256]
    assert batch_size_for(Recipe(batch_size=7), 100) == 7


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_named():
    with pytest.raises(
        InputError, match="cannot use --device cuda: expected a device that torch finds here .cpu., got cuda"
    ):
        settings_for(Recipe(device="cuda"), {"family": "resnet"}, 32)


def test_a_network_is_split_over_several_processes_alone_and_without_penalties(monkeypatch):
    with pytest.raises(InputError, match="cannot use --fsdp: expected several processes, got one. Add --nproc"):
        settings_for(Recipe(fsdp=True), {"family": "resnet"}, 64)
    monkeypatch.setattr(collectives, "world_size", lambda: 2)
    assert settings_for(Recipe(fsdp=True), {"family": "resnet"}, 64).fsdp
    with pytest.raises(InputError, match="cannot use --l1 or --l2 with --fsdp: they need unsharded weights. Use"):
        settings_for(Recipe(fsdp=True, l2=1e-4), {"family": "resnet"}, 64)
    with pytest.raises(InputError, match="cannot use --recompute with --fsdp: gradients"):
        settings_for(Recipe(fsdp=True, recompute=2), {"family": "resnet"}, 64)


@pytest.mark.parametrize(
    "capability, bf16, expected", [((9, 0), True, "bf16"), ((7, 5), False, "fp16"), ((6, 1), False, "fp32")], ids=str
)
def test_the_precision_of_a_gpu_is_what_it_computes_fast(monkeypatch, capability, bf16, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Tesla")
    assert precision_for(Recipe(), "cuda", is_table=False) == expected
    assert precision_for(Recipe(), "cuda", is_table=True) == "fp32"
    assert precision_for(Recipe(precision="fp16"), "cuda", is_table=False) == "fp16"
    if not bf16:
        assert precision_for(Recipe(fsdp=True), "cuda", is_table=False) == "fp32"
        message = (
            rf"cannot use --precision bf16 on Tesla: expected .* got one that emulates it. Use --precision {expected}"
        )
        with pytest.raises(InputError, match=message):
            precision_for(Recipe(precision="bf16"), "cuda", is_table=False)


@pytest.mark.parametrize("device, fsdp, got", [("cpu", False, "device cpu"), ("cuda", True, "--fsdp")])
def test_fp16_needs_a_gpu_that_holds_all_weights(device, fsdp, got):
    message = f"cannot use --precision fp16: expected a CUDA device without --fsdp, got {got}. Use --precision bf16"
    with pytest.raises(InputError, match=message):
        precision_for(Recipe(precision="fp16", fsdp=fsdp), device, is_table=False)
