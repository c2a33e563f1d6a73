import pytest
import torch
import torch.nn.functional as F
from torch import nn

from skipway.errors import InputError, ShapeError
from skipway.nn.shape_inference import output_shape
from skipway.nn.shortcut_types import Pad, Project, fitted_shortcut, make_norm, make_shortcut
from skipway.nn.skip import Skip

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
LIKE_A_CONVOLUTION = [(1, (8,)), (2, (8, 8)), (2, (29, 29)), (2, (7, 4)), (2, (4, 1)), (2, (1, 1)), (3, (5, 6, 7))]


def body(dims, channels, stride):
    return CONVS[dims](4, channels, 3, stride, padding=1) if dims else nn.Linear(4, channels)


@pytest.mark.parametrize("kind", ["project", "pad", "pool", "auto"])
@pytest.mark.parametrize("channels", [4, 6])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dims, size", [(0, ()), *LIKE_A_CONVOLUTION])
def test_a_named_shortcut_fits_any_body_that_strides(kind, channels, stride, dims, size):
    if dims == 0 and stride != 1:
        return
    skip = Skip(body(dims, channels, stride), kind)
    x = torch.randn(2, 4, *size)
    assert output_shape(skip, x.shape) == tuple(skip(x).shape) == tuple(skip.body(x).shape)


@pytest.mark.parametrize("kind", ["pad", "pool", "auto"])
def test_where_the_shapes_agree_only_project_adds_anything(kind):
    assert make_shortcut(kind, 4, 4) is None
    assert isinstance(make_shortcut("project", 4, 4), Project)
    skip = Skip(nn.Conv2d(4, 4, 3, padding=1), kind)
    before = sum(p.numel() for p in skip.parameters())
    output_shape(skip, (2, 4, 5, 5))
    assert skip.shortcut is None and sum(p.numel() for p in skip.parameters()) == before


def test_a_plain_skip_and_a_pad_hold_no_parameters():
    assert [n for n, _ in Skip(nn.Linear(3, 3)).named_parameters()] == ["body.weight", "body.bias"]
    assert not list(Pad(3, 6, 2).parameters())


def test_pad_takes_every_other_position_and_puts_zeros_around_the_channels():
    x = torch.randn(2, 3, 5, 4)
    y = Pad(3, 6, 2)(x)
    assert y.shape == (2, 6, 3, 2) and torch.equal(y[:, 1:4], x[:, :, ::2, ::2]) and not y[:, [0, 4, 5]].any()


def test_pad_works_on_features_alone():
    assert Pad(2, 5)(torch.ones(1, 2)).tolist() == [[0, 1, 1, 0, 0]]


def test_pad_cannot_take_channels_away():
    with pytest.raises(ShapeError, match='shortcut "pad": expected at least 6 output channels, got 3. Use "project"'):
        Pad(6, 3)
    with pytest.raises(ShapeError, match='Skip at 1.0: shortcut "pad": expected at least 6 output channels'):
        output_shape(nn.Sequential(nn.ReLU(), nn.Sequential(Skip(nn.Linear(6, 3), "pad"))), (2, 6))


def test_project_is_a_strided_1x1_convolution_and_a_norm():
    project = Project(3, 5, stride=2).eval()
    x = torch.randn(2, 3, 7, 7)
    wanted = F.batch_norm(F.conv2d(x, project.conv.weight, stride=2), torch.zeros(5), torch.ones(5))
    assert torch.allclose(project(x), wanted) and project.conv.bias is None and project.pool is None
    assert sorted(project.state_dict())[0] == "conv.weight"


@pytest.mark.parametrize("size, stride, wanted", [(29, 2, 15), (28, 2, 14), (28, 3, 10), (29, 3, 10)])
def test_pool_averages_what_is_there_before_it_projects(size, stride, wanted):
    project = make_shortcut("pool", 1, 2, stride).eval()
    project.conv.weight.data.fill_(1)
    x = torch.arange(float(size)).expand(1, 1, size, size).contiguous()
    row = torch.tensor([x[0, 0, 0, i : i + stride].mean() for i in range(0, size, stride)])
    y = project(x)
    assert y.shape == (1, 2, wanted, wanted) and torch.allclose(y[0, 1, 0], row, rtol=1e-4)
    only = make_shortcut("pool", 1, 1, stride)  # no channel is new: nothing to project
    assert not list(only.parameters()) and torch.allclose(only(x)[0, 0, 0], row)


def test_pool_lets_every_position_count_where_a_strided_projection_drops_three_of_four():
    for kind, share in (("pool", 1), ("project", 1 / 4)):
        x = torch.ones(1, 3, 8, 8, requires_grad=True)
        make_shortcut(kind, 3, 5, 2).eval()(x).sum().backward()
        assert x.grad.ne(0).float().mean() == pytest.approx(share)


def test_no_shortcut_holds_a_nonlinearity():
    x = torch.randn(4, 3, 6, 6)
    for kind in ("project", "pad", "pool"):
        shortcut = make_shortcut(kind, 3, 5, 2).eval()
        assert torch.allclose(shortcut(-2 * x), -2 * shortcut(x), atol=1e-5)


def test_a_projection_begins_with_he_s_spread():
    assert Project(64, 512).conv.weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_fitted_shortcut_has_the_network_s_dtype_even_around_a_body_without_parameters(dtype):
    class First(nn.Module):
        def forward(self, x):
            return x[:, :2]

    network = nn.Sequential(nn.Linear(4, 4), Skip(First(), "project")).to(dtype)
    output_shape(network, (3, 4))
    assert {p.dtype for p in network.parameters()} == {dtype}
    assert network(torch.ones(3, 4, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("training", [True, False])
def test_a_fitted_shortcut_trains_where_its_skip_trains(training):
    network = nn.Sequential(Skip(nn.Linear(4, 2), "auto")).train(training)
    output_shape(network, (3, 4))
    assert {m.training for m in network.modules()} == {training}


def test_parameters_have_one_order_however_the_shortcut_was_made():
    fitted = Skip(nn.Linear(4, 2), "project", join="scale", after=nn.PReLU())
    output_shape(fitted, (3, 4))
    given = Skip(nn.Linear(4, 2), Project(4, 2, dims=0), join="scale", after=nn.PReLU())
    assert [n for n, _ in fitted.named_parameters()] == [n for n, _ in given.named_parameters()]
    assert list(fitted.state_dict()) == list(given.state_dict())


def test_a_module_is_a_shortcut_too():
    shortcut = nn.Conv2d(3, 5, 1)
    skip = Skip(nn.Conv2d(3, 5, 3, padding=1), shortcut)
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(skip(x), skip.body(x) + shortcut(x)) and "shortcut.weight" in skip.state_dict()


@pytest.mark.parametrize(
    "shortcut, text",
    [
        (Project(3, 5, 2), "Project(3, 5, stride=2)"),
        (Project(3, 5, dims=0), "Project(3, 5, dims=0)"),
        (Project(3, 5, 2, pool=True), "Project(3, 5, stride=2, pool=True)"),
        (Pad(3, 5, 2), "Pad(3, 5, stride=2)"),
    ],
)
def test_a_shortcut_prints_as_the_code_that_makes_it(shortcut, text):
    assert repr(shortcut) == text and repr(eval(text)) == text


def test_an_unknown_shortcut_is_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"unknown shortcut 'projekt' \(did you mean project\?\): expected None"):
        make_shortcut("projekt", 3, 5)
    with pytest.raises(InputError, match=r"unknown shortcut 'projekt' \(did you mean project\?\): expected None"):
        Skip(nn.Linear(3, 3), "projekt")


@pytest.mark.parametrize("kept, branch", [((2, 3), (2, 3, 4)), ((2,), (2,)), ((2, 3, 4, 4, 4, 4), (2, 3, 4, 4, 4, 4))])
def test_other_numbers_of_axes_are_refused(kept, branch):
    with pytest.raises(ShapeError, match=r'shortcut "auto": expected two shapes .* further axes, up to 3, got'):
        fitted_shortcut("auto", kept, branch)


@pytest.mark.parametrize(
    "kept, branch",
    [((2, 3, 7), (2, 3, 5)), ((2, 3, 8, 8), (2, 3, 4, 8)), ((2, 3, 4), (2, 3, 8)), ((2, 3, 4), (2, 3, 0))],
)
def test_a_size_that_no_stride_gives_is_refused_with_the_skip_s_path(kept, branch):
    with pytest.raises(ShapeError, match=r'shortcut "auto": expected a stride that maps the axes of .*, found none'):
        fitted_shortcut("auto", kept, branch)
    unpadded = nn.Sequential(Skip(nn.Conv2d(3, 3, 3), "auto"))
    with pytest.raises(
        ShapeError,
        match=r'Skip at 0: shortcut "auto": expected a stride that maps the axes of \(2, 3, 9, 9\) to',
    ):
        output_shape(unpadded, (2, 3, 9, 9))


def test_an_unfitted_shortcut_says_how_to_fit_it():
    network = nn.Sequential(nn.Linear(4, 4), Skip(nn.Linear(4, 2), "auto"))
    with pytest.raises(ShapeError, match='Skip: the sizes of its shortcut "auto" are uninferred. Call skipway.output'):
        network(torch.ones(2, 4))


def test_a_norm_that_there_is_not_is_refused_with_the_near_ones():
    with pytest.raises(InputError, match=r"unknown norm 'bach' \(did you mean batch\?\): expected batch"):
        make_norm("bach", 4)
