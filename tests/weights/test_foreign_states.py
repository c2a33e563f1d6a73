"""Checkpoints as training scripts write them: prefixes, wrappers, leftovers and missing heads."""

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import skipway as sw
from skipway.errors import InputError, ShapeError
from skipway.models.network import build_network
from skipway.models.registry import plan_of
from skipway.weights import unpickle_worker
from skipway.weights.convert import adopt, release
from skipway.weights.key_prefix import find_prefix
from skipway.weights.read_foreign_checkpoint import read_file

SMALL = {"layers": [1, 1], "widths": [4, 8]}
X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def network(name="resnet18", **options):
    torch.manual_seed(3)
    built = build_network(plan_of(name, **{"num_classes": 3, **SMALL, **options}))
    for tensor in built.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape) + 0.2 if tensor.is_floating_point() else torch.tensor(7))
    return built.eval()


def state_of(library="torchvision", name="resnet18", **options):
    return release(network(name, **options), library)


def prefixed(prefix, state):
    return {prefix + key: value for key, value in state.items()}


LOSSES = {
    "loss.weight": torch.ones(3),
    "criterion.pos_weight": torch.ones(1),
    "train_acc.tp": torch.zeros(3, dtype=torch.long),
}


# Prefixes


@pytest.mark.parametrize(
    "prefix",
    [
        *("module.", "model.", "net.", "network.", "backbone.", "encoder.", "_orig_mod.", "module._orig_mod."),
        *("model.backbone.", "module.encoder_q.", "student.module.", "a.b.c.d.", "trunk/", "visual/trunk."),
    ],
)
@pytest.mark.parametrize("library", ["torchvision", "timm", "skipway"])
def test_any_prefix_is_removed_and_reported(prefix, library):
    again = adopt(prefixed(prefix, state_of(library)), library, "resnet18", **SMALL)
    assert torch.equal(again(X), network()(X))
    assert again.origin == f"state dict of {library}'s resnet18, prefix {prefix} removed" and again.is_pretrained


def test_a_state_without_a_prefix_reports_none():
    assert adopt(state_of(), "torchvision", "resnet18", **SMALL).origin == "state dict of torchvision's resnet18"


def test_tensors_outside_the_prefix_are_ignored_and_named():
    state = {**LOSSES, **prefixed("model.", state_of())}
    again = adopt(state, "torchvision", "resnet18", **SMALL)
    assert torch.equal(again(X), network()(X))
    assert again.origin.endswith(
        "prefix model. removed, ignored outside it: loss.weight (3,), criterion.pos_weight (1,), train_acc.tp (3,)"
    )


@pytest.mark.parametrize(
    "state, key",
    [
        ({**state_of(), **LOSSES}, "loss.weight"),
        ({**prefixed("model.", state_of()), "model.loss.weight": torch.ones(3)}, "model.loss.weight"),
        ({**state_of(), **prefixed("ema.", state_of())}, "ema.conv1.weight"),
    ],
)
def test_tensors_below_the_prefix_that_do_not_belong_are_refused_by_name(state, key):
    with pytest.raises(ShapeError, match=rf"resnet18.*: .*{key} \(\d.* is unexpected.*\. Nothing was loaded"):
        adopt(state, "torchvision", "resnet18", **SMALL)


def test_lightning_s_checkpoint_is_read_from_a_file(tmp_path):
    content = {
        "epoch": 3,
        "state_dict": {**prefixed("model.", state_of("timm")), **LOSSES},
        "hyper_parameters": {"lr": 1},
    }
    torch.save(content, tmp_path / "last.ckpt")
    again = sw.create_model("resnet18", pretrained=tmp_path / "last.ckpt", **SMALL)
    assert torch.equal(again(X), network()(X))
    assert "(torchvision), prefix model. removed, ignored outside it: loss.weight (3,), " in again.origin


def test_an_averaged_model_is_taken_without_its_counter():
    averaged = torch.optim.swa_utils.AveragedModel(network())
    again = adopt(averaged.state_dict(), "skipway", "resnet18", **SMALL)
    assert torch.equal(again(X), network()(X)) and again.origin.endswith("ignored outside it: n_averaged ()")


@pytest.mark.parametrize(
    "trained, copy",
    [
        ("module.encoder_q.", "module.encoder_k."),
        ("student.", "teacher."),
        ("online.", "target_network."),
        ("model.", "ema_model.module."),
        ("model.", "model_ema."),
        ("backbone.", "backbone_momentum."),
    ],
)
@pytest.mark.parametrize("order", [1, -1])
def test_the_trained_network_comes_before_its_averaged_copy(trained, copy, order):
    other = {key: torch.zeros_like(value) for key, value in state_of().items()}
    both = [prefixed(trained, state_of()), prefixed(copy, other)][::order]
    again = adopt({**both[0], **both[1], "queue": torch.ones(2)}, "torchvision", "resnet18", **SMALL)
    assert torch.equal(again(X), network()(X))
    assert f"prefix {trained} removed, ignored outside it: {copy}* ({len(other)} tensors), queue (2,)" in again.origin


def test_a_tensor_that_is_missing_is_not_taken_from_a_copy():
    state = {**prefixed("model.", state_of()), **prefixed("ema.", state_of()), **prefixed("other.", state_of())}
    del state["model.layer2.0.bn1.weight"]
    with pytest.raises(
        ShapeError, match=r"prefix model\. removed.*: model\.layer2\.0\.bn1\.weight is missing\. Nothing"
    ):
        adopt(state, "torchvision", "resnet18", **SMALL)


def test_no_prefix_comes_before_any_prefix():
    assert find_prefix(["a.x", "a.y", "x", "y"], {"x", "y"}, str).text == ""
    assert find_prefix(["a.x", "b.x"], {"x"}, str) == ("a.", 1, ("b.",))
    assert find_prefix(["z"], {"x"}, str) == ("", 0, ())


def test_equal_names_in_another_network_are_no_prefix():
    children = nn.Sequential(*network().children()).state_dict()
    with pytest.raises(ShapeError, match=r"torchvision's resnet18: conv1\.weight is missing; .*0\.step\.conv\.wei"):
        adopt(children, "torchvision", "resnet18", **SMALL)
    assert find_prefix(["0.x", "1.a", "1.b", "1.c"], {"x", "y"}, str) == ("", 0, ())
    assert find_prefix(["0.x", "0.y"], {"x", "y", "z", "u", "v"}, str).text == "0.", "a part of a deeper network"


@pytest.mark.parametrize("part", ["_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."])
def test_wrappers_around_inner_modules_are_removed_and_reported(part):
    state = {key.replace("layer1.0.", f"layer1.{part}0."): value for key, value in state_of().items()}
    again = adopt(prefixed("net.", state), "torchvision", "resnet18", **SMALL)
    assert torch.equal(again(X), network()(X))
    assert again.origin.endswith(f"resnet18, {part} removed from its keys, prefix net. removed")


def test_old_names_are_understood_below_a_prefix():
    options = {"layers": [2, 1], "growth": 4, "num_classes": 2}
    dense = build_network(plan_of("densenet121", **options)).eval()
    state = {f"model.{k.replace('conv1', 'conv.1')}": v for k, v in release(dense, "torchvision").items()}
    again = adopt(state, "torchvision", "densenet121", layers=[2, 1], growth=4)
    assert torch.equal(again(torch.ones(1, 3, 32, 32)), dense(torch.ones(1, 3, 32, 32)))


# Wrappers


@pytest.mark.parametrize("wrapper", unpickle_worker.WRAPPERS)
def test_the_entries_of_training_scripts_are_known(wrapper):
    again = adopt({"epoch": 3, wrapper: state_of(), "optimizer": {"lr": 0.1}}, "torchvision", "resnet18", **SMALL)
    assert torch.equal(again(X), network()(X)) and "entry" not in again.origin


@pytest.mark.parametrize(
    "chosen, other",
    [("state_dict", "state_dict_ema"), ("model", "model_ema"), ("student", "teacher"), ("model_state_dict", "ema")],
)
def test_trained_weights_come_before_averaged_ones_in_a_file_and_in_memory(chosen, other, tmp_path):
    content = {other: {"conv1.weight": torch.ones(1)}, chosen: prefixed("module.", state_of())}
    torch.save(content, tmp_path / "w.pth")
    note = f"entry {chosen} (not {other})"
    for again in (
        adopt(content, "torchvision", "resnet18", **SMALL),
        sw.create_model("resnet18", pretrained=tmp_path / "w.pth", **SMALL),
    ):
        assert torch.equal(again(X), network()(X)) and f", {note}, prefix module. removed" in again.origin


def test_the_note_about_entries_is_one_short_line(tmp_path, monkeypatch):
    monkeypatch.setattr("skipway.weights.read_foreign_checkpoint._MAX_NOTE", 20)
    torch.save({"model": state_of(), "ema": state_of(), "teacher": state_of()}, tmp_path / "w.pth")
    assert read_file(tmp_path / "w.pth").note == "entry model (not ema"


# Heads


HEADLESS = {key: value for key, value in state_of("timm").items() if not key.startswith("fc.")}


@pytest.mark.parametrize("state", [HEADLESS, prefixed("module.encoder_q.", HEADLESS)])
def test_a_state_without_a_head_gets_a_new_one(state, tmp_path):
    safetensors.torch.save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "w.safetensors")
    for again in (
        adopt(state, "timm", "resnet18", num_classes=5, **SMALL),
        sw.create_model("resnet18", 5, pretrained=tmp_path / "w.safetensors", **SMALL),
        sw.create_model("resnet18", class_names=list("abcde"), pretrained=tmp_path / "w.safetensors", **SMALL),
    ):
        assert again(X).shape == (2, 5) and "new head for 5 classes" in again.origin
        same = {k: v for k, v in again.state_dict().items() if not k.startswith("head.")}
        assert all(torch.equal(v, network().state_dict()[k]) for k, v in same.items())
    features = sw.create_model("resnet18", pretrained=tmp_path / "w.safetensors", features_only=True, **SMALL)
    assert [x.shape[1] for x in features(X)] == [4, 4, 8]


def test_a_state_without_a_head_needs_num_classes():
    with pytest.raises(
        ShapeError, match=r"fc.weight is missing; fc.bias is missing\. .*pass num_classes for a new one"
    ):
        adopt(HEADLESS, "timm", "resnet18", **SMALL)


def test_the_projection_in_place_of_a_head_is_ignored_and_named():
    """As in the checkpoints of MoCo v2 and SimCLR."""
    projection = {f"fc.{i}.{leaf}": torch.ones(8) for i in (0, 2) for leaf in ("weight", "bias")}
    state = prefixed("module.encoder_q.", {**HEADLESS, **projection})
    again = adopt(state, "torchvision", "resnet18", num_classes=5, **SMALL)
    assert "head ignored: fc.0.weight (8,), fc.0.bias (8,), fc.2.weight (8,), fc.2.bias (8,)" in again.origin
    with pytest.raises(ShapeError, match=r"module.encoder_q.fc.weight is missing.*fc.0.weight \(8,\) is unexpected"):
        adopt(state, "torchvision", "resnet18", **SMALL)


def test_a_replaced_head_is_named():
    again = adopt(state_of(), "torchvision", "resnet18", num_classes=5, **SMALL)
    assert again.origin.endswith("head ignored: fc.weight (3, 8), fc.bias (3,), new head for 5 classes")


@pytest.mark.parametrize("num_classes", [None, 5])
def test_half_a_head_is_damage(num_classes):
    state = state_of()
    del state["fc.weight"]
    with pytest.raises(ShapeError, match=r"fc\.weight is missing"):
        adopt(state, "torchvision", "resnet18", num_classes, **SMALL)


def test_no_head_is_wanted(tmp_path):
    torch.save(prefixed("net.", HEADLESS), tmp_path / "w.pth")
    torch.save(state_of(), tmp_path / "head.pth")
    for again in (
        adopt(HEADLESS, "timm", "resnet18", num_classes=0, **SMALL),
        adopt(state_of(), "torchvision", "resnet18", num_classes=0, **SMALL),
        sw.create_model("resnet18", 0, pretrained=tmp_path / "w.pth", **SMALL),
        sw.create_model("resnet18", 0, pretrained=tmp_path / "head.pth", **SMALL),
    ):
        whole = network()
        whole.head = nn.Identity()
        assert again.plan["num_classes"] == 0 and torch.equal(again(X), whole(X))
        assert ("head ignored" in again.origin) == ("head.pth" in again.origin or "torchvision's" in again.origin)


# Our own layout


def test_a_state_of_ours_without_a_plan_is_loaded_by_name(tmp_path):
    mine = network("resnet20", layers=[1, 1, 1], widths=[4, 4, 8])
    torch.save({"state_dict": prefixed("model.", mine.state_dict()) | LOSSES}, tmp_path / "w.ckpt")
    for source in (tmp_path / "w.ckpt", f"skipway:{tmp_path / 'w.ckpt'}"):
        again = sw.create_model("resnet20", pretrained=source, layers=[1, 1, 1], widths=[4, 4, 8])
        assert torch.equal(again(X), mine(X)) and again.spec is None and "w.ckpt (skipway), prefix" in again.origin


@pytest.mark.parametrize("stem", ["large", "small", "deep"])
def test_a_state_of_features_is_loaded_with_a_new_head(stem):
    mine = network(stem=stem)
    state = prefixed("backbone.", sw.Features(mine).state_dict())
    again = adopt(state, "skipway", "resnet18", num_classes=4, stem=stem, **SMALL)
    assert all(map(torch.equal, sw.Features(again)(X), sw.Features(mine)(X)))


# Everything at once


FAMILIES = {
    "timm": [
        ("resnet18", SMALL),
        ("resnetv2_18", SMALL),
        (
            "efficientnet_b0",
            {"layers": [1, 1], "widths": [8, 16], "kernels": [3, 3], "strides": [1, 2], "expansions": [1, 2]},
        ),
        ("convnext_tiny", {"layers": [1] * 4, "widths": [4, 8, 8, 8]}),
    ],
    "torchvision": [("resnet18", SMALL), ("densenet121", {"layers": [1, 1], "growth": 4})],
    "skipway": [("resnet20", {"layers": [1, 1, 1], "widths": [4, 4, 8]}), ("resnet9", {"widths": [4] * 4})],
}


@st.composite
def checkpoints(draw):
    """A network, its library and options, its state below a prefix, with leftovers and wrappers, and a key of it."""
    library = draw(st.sampled_from(sorted(FAMILIES)))
    name, options = draw(st.sampled_from(FAMILIES[library]))
    mine = build_network(plan_of(name, num_classes=3, **options)).eval()
    words = st.sampled_from(["module", "model", "net", "backbone", "encoder", "_orig_mod", "encoder_q", "f", "0"])
    prefix = "".join(f"{word}." for word in draw(st.lists(words, max_size=3)))
    state = prefixed(prefix, release(mine, library))
    if prefix:
        leftovers = draw(st.lists(st.sampled_from(sorted(LOSSES)), unique=True))
        state |= {key: LOSSES[key] for key in leftovers}
        if draw(st.booleans()):
            state |= prefixed("ema.", {k: torch.zeros_like(v) for k, v in release(mine, library).items()})
    keys = draw(st.permutations(sorted(state)))
    state = {key: state[key] for key in keys}
    counted = [key for key in keys if key.startswith(prefix) and not key.startswith("ema.") and key not in LOSSES]
    key = draw(st.sampled_from([key for key in counted if not key.endswith("num_batches_tracked")]))
    for wrapper in draw(st.lists(st.sampled_from(unpickle_worker.WRAPPERS), max_size=3)):
        state = {wrapper: state, "epoch": 3}
    return mine, (library, name, options), state, key


def inner(state):
    while "epoch" in state:
        state = next(value for value in state.values() if isinstance(value, dict))
    return state


@given(checkpoint=checkpoints(), change=st.sampled_from(["remove", "rename", "reshape"]))
@settings(max_examples=60, deadline=None)
def test_a_checkpoint_gives_equal_tensors_and_any_damaged_tensor_is_named(checkpoint, change):
    mine, (library, name, options), state, key = checkpoint
    again = adopt(state, library, name, **options)
    assert all(torch.equal(value, mine.state_dict()[own]) for own, value in again.state_dict().items())
    tensors = inner(state)
    assert all(leftover in again.origin for leftover in LOSSES if leftover in tensors)
    value = tensors.pop(key)
    if change == "rename":
        tensors[f"{key}_old"] = value
    elif change == "reshape":
        tensors[key] = torch.cat([value, value])
    with pytest.raises(InputError) as refused:
        adopt(state, library, name, **options)
    assert key in str(refused.value) and len(str(refused.value).splitlines()) == 1
