"""Fused networks in the compilers, tracers and transforms of torch: they compute the same, or name what to use."""

import copy
import warnings

import pytest
import torch
from shrunken import SIZE, random_images, settled
from torch import fx, nn

from skipway.errors import InputError
from skipway.export import fuse
from skipway.nn.chain import Chain
from skipway.nn.joins import JOINS
from skipway.nn.shape_inference import output_shape
from skipway.nn.skip import Skip

NAMES = ("resnet18", "densenet40_12", "tf_efficientnet_lite0", "convnext_atto", "revnet38")


def tree():
    """A tree with every join."""
    return Chain(*(Skip([nn.Conv2d(c, c, 3, padding=1), nn.BatchNorm2d(c)], join=join) for join, c in widths()))


def widths():
    channels = 3
    for join in JOINS:
        yield join, channels
        channels *= 2 if join in ("concat", "append") else 1


def made(name):
    if name != "own tree":
        return settled(name)
    torch.manual_seed(0)
    network = tree().eval()
    output_shape(network, (1, 3, SIZE, SIZE))
    return network


def exported(network, x):
    batch = torch.export.Dim("batch", min=2)
    return torch.export.export(network, (x,), dynamic_shapes=({0: batch},)).module()


def compiled(backend):
    def compile_whole(network, x):
        torch.compiler.reset()
        return torch.compile(network, backend=backend, fullgraph=True)

    return compile_whole


def traced(network, x):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        found = torch.jit.trace(network, x)
    assert not [warning for warning in seen if "skipway" in warning.filename]
    return found


def scripted(network, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that torch.jit is old
        return torch.jit.script(network)


def with_state(network, x):
    twin = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    twin(x)  # packs the zeros
    twin.load_state_dict(network.state_dict())
    return twin


def with_given_state(network, x):
    state = network.state_dict()
    return lambda x: torch.func.functional_call(network, state, (x,))


def one_by_one(network, x):
    return torch.vmap(lambda row: network(row[None])[0])


TOOLS = {
    "torch.export": exported,
    "torch.compile": compiled("eager"),
    "aot_eager": compiled("aot_eager"),
    "torch.jit.trace": traced,
    "deepcopy": lambda network, x: copy.deepcopy(network),
    "state_dict": with_state,
    "functional_call": with_given_state,
    "torch.fx": lambda network, x: fx.symbolic_trace(network),
    "vmap": one_by_one,
    "torch.jit.script": scripted,
}
IN_BF16 = list(TOOLS)[:7]
IN_INT8 = ("deepcopy", "state_dict", "functional_call")


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("name", [*NAMES, "own tree"])
def test_a_network_fused_in_fp32_computes_the_same_in_every_tool(name, tool):
    fused, x = fuse(made(name), "fp32"), random_images(3)
    fused(x)  # packs the weights
    found = TOOLS[tool](fused, x)(x[:2])
    assert torch.allclose(found, fused(x[:2]), rtol=1e-4, atol=1e-5) and found.dtype == torch.float32


@pytest.mark.parametrize("tool", IN_BF16)
@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0"])
def test_a_network_fused_in_bf16_keeps_its_precision(name, tool):
    fused, x = fuse(settled(name), "bf16"), random_images(3)
    found, wanted = TOOLS[tool](fused, x)(x[:2]), fused(x[:2])
    assert (found - wanted).abs().max() < 0.02 * wanted.abs().max() and found.dtype == torch.float32


@pytest.mark.parametrize("tool", ["torch.export", "torch.fx", "torch.jit.trace"])
def test_fused_same_padding_fits_the_size_of_each_input(tool):
    """Its zeros in front of the kernel are those of one size: traced programs pad the input instead."""
    fused, x = fuse(settled("tf_efficientnet_lite0"), "fp32"), random_images(3)
    if tool == "torch.export":
        sizes = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
        program = torch.export.export(fused, (x,), dynamic_shapes=(sizes,)).module()
    else:
        program = TOOLS[tool](fused, x)
    for height, width in ((SIZE + 5, SIZE + 8), (SIZE - 1, SIZE + 1)):
        other = torch.randn(2, 3, height, width)
        assert torch.allclose(program(other), fused(other), atol=1e-5)


@pytest.mark.parametrize("tool", IN_INT8)
def test_a_network_fused_in_int8_is_copied_with_its_codes(tool):
    x = random_images(8)
    fused = fuse(settled("resnet18"), "int8", calibration=x)
    assert torch.equal(TOOLS[tool](fused, x)(x), fused(x))


@pytest.mark.parametrize("tool", [tool for tool in TOOLS if tool not in (*IN_INT8, "torch.compile", "aot_eager")])
def test_a_network_fused_in_int8_is_never_recorded_in_another_precision(tool):
    x = random_images(8)
    fused = fuse(settled("resnet18"), "int8", calibration=x)
    text = r'network fused in (bf16 or )?int8: expected a plain call, got one inside .*Fuse it in "fp32" for these'
    with pytest.raises(InputError, match=text) as caught:
        TOOLS[tool](fused, x)(x)
    assert "\n" not in str(caught.value)


def test_a_compiled_network_fused_in_int8_says_what_to_use():
    x = random_images(8)
    fused = fuse(settled("resnet18"), "int8", calibration=x)
    torch.compiler.reset()
    with pytest.raises(InputError, match="network fused in int8: expected a plain call, got one inside torch.compile"):
        torch.compile(fused, backend="eager")(x)


@pytest.mark.parametrize("tool", ["torch.fx", "vmap", "torch.jit.script"])
def test_tools_that_ignore_autocast_are_refused_in_bf16(tool):
    fused, x = fuse(settled("resnet18"), "bf16"), random_images()
    with pytest.raises(InputError, match="got one inside torch.fx or torch.func, which ignore autocast") as caught:
        TOOLS[tool](fused, x)(x)
    assert "\n" not in str(caught.value)


def test_bytes_are_refused_by_a_traced_network_too():
    graph = fx.symbolic_trace(fuse(settled("resnet18"), "fp32"))
    with pytest.raises(InputError, match="expected normalized floats, got uint8"):
        graph(torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8))


# Weights that float32 cannot hold


def complex_network():
    return nn.Sequential(nn.Conv2d(3, 4, 3, dtype=torch.complex64), nn.ReLU())


def integer_network():
    conv = nn.Conv2d(3, 4, 3)
    conv.weight = nn.Parameter(torch.ones(4, 3, 3, 3, dtype=torch.int8), requires_grad=False)
    return Chain(conv=conv)


def quantized_linear():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that torch.ao is old
        return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)), {nn.Linear}).train(False)


def complex_buffer():
    chain = Chain(norm=nn.BatchNorm2d(4, affine=False))
    chain.norm.running_mean = chain.norm.running_mean.to(torch.complex64)
    return chain


@pytest.mark.parametrize(
    "make, text",
    [
        (complex_network, "got complex64 at 0.weight"),
        (lambda: Chain(head=nn.Linear(2, 2, dtype=torch.complex128)), "got complex128 at head.weight"),
        (lambda: Chain(stem=nn.Conv2d(3, 4, 3).to(torch.float8_e4m3fn)), "got float8_e4m3fn at stem.weight"),
        (integer_network, "got int8 at conv.weight"),
        (quantized_linear, "got qint8 at 0._packed_params._packed_params"),
        (complex_buffer, "got complex64 at norm.running_mean"),
    ],
)
def test_weights_that_are_no_plain_floats_are_refused(make, text):
    with pytest.raises(InputError, match="fuse: expected weights in float16, bfloat16, float32 or float64, " + text):
        fuse(make())


def test_buffers_of_numbers_are_no_weights():
    chain = Chain(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    chain.register_buffer("places", torch.arange(4))
    assert fuse(chain.half(), "fp32")(torch.zeros(1, 3, 8, 8)).dtype == torch.float32
