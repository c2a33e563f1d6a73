"""Errors in eager mode name the path of the layer, what it expects and what it got."""

import pytest
import torch
from torch import nn

from skipway.errors import ShapeError
from skipway.nn.chain import Chain
from skipway.nn.dense import Dense
from skipway.nn.layer_misfit import find_misfit
from skipway.nn.shape_inference import output_shape
from skipway.nn.skip import Skip


class Broken(nn.Module):
    def forward(self, tensor):
        return tensor @ torch.ones(7, 7)


@pytest.mark.parametrize(
    "layer, x, text",
    [
        (nn.Linear(5, 2), torch.ones(2, 4), r"Linear at {}: expected \(\*, 5\), got \(2, 4\)\. Set in_features"),
        (nn.Conv2d(3, 4, 3), torch.ones(2, 1, 8, 8), r"Conv2d at {}: expected \(B, 3, H, W\) .*, got \(2, 1, 8, 8\)"),
        (nn.Conv2d(3, 4, 3), torch.ones(2, 8), r"Conv2d at {}: expected \(B, 3, H, W\) .*, got \(2, 8\)"),
        (nn.Conv2d(3, 4, 9), torch.ones(2, 3, 8, 8), r"Conv2d at {}: .* at least the size of the kernel"),
        (nn.Conv2d(3, 4, 3), torch.ones(2, 3, 8, 8).double(), "Conv2d at {}: expected an input of torch.float32, got"),
        (
            nn.Conv2d(3, 4, 3),
            torch.ones(2, 3, 8, 8).long(),
            "Conv2d at {}: .* got torch.int64. Convert the input",
        ),
        (nn.BatchNorm2d(3), torch.ones(2, 4, 8, 8), r"BatchNorm2d at {}: expected 3 channels on axis 1, got"),
        (nn.BatchNorm2d(3), torch.ones(3, 8, 8), r"BatchNorm2d at {}: expected \(B, 3, \*\).* Add the batch axis"),
        (
            nn.BatchNorm2d(3),
            torch.ones(3, 8),
            r"BatchNorm2d at {}: expected 3 channels on axis 1 of 4 axes, got",
        ),
        (nn.GroupNorm(2, 4), torch.ones(2, 6, 5), r"GroupNorm at {}: expected 4 channels on axis 1, got \(2, 6, 5\)"),
        (
            nn.LayerNorm(5),
            torch.ones(2, 4),
            r"LayerNorm at {}: expected \(\*, 5\), got \(2, 4\)\. Set norm",
        ),
        (nn.LSTM(5, 3, batch_first=True), torch.ones(2, 6, 4), r"LSTM at {}: expected \(B, T, 5\), got \(2, 6, 4\)"),
        (nn.Embedding(9, 4), torch.ones(2, 3), r"Embedding at {}: expected indices of torch.int64, got torch.float32"),
        (nn.Embedding(9, 4), torch.tensor([3, 12]), r"Embedding at {}: expected indices from 0 to 8, got 3 to 12"),
        (nn.Linear(5, 2), torch.ones(2, 5, device="meta"), r"Linear at {}: expected an input on cpu, got meta\. Move"),
        (nn.Linear(5, 2), (torch.ones(2, 5), 3), r"Linear at {}: expected a tensor, got \(\(2, 5\), int\)\. Select it"),
        (nn.BatchNorm1d(5), torch.ones(1, 5), r"BatchNorm1d at {}: cannot normalize \(1, 5\): expected more than one"),
    ],
)
def test_an_error_of_a_layer_of_torch_names_its_path_and_the_fix(layer, x, text):
    for network, path in (
        (Chain(stage=nn.Sequential(nn.Identity(), layer)), "stage.1"),
        (Chain(Chain(nn.Identity(), inner=layer)), "0.inner"),
    ):
        with pytest.raises(ShapeError, match=text.format(path)) as refused:
            network(x)
        assert len(str(refused.value).splitlines()) == 1 and refused.value.__cause__ is not None


def test_the_body_of_a_skip_and_a_dense_layer_are_named():
    with pytest.raises(ShapeError, match=r"Linear at blocks\.1\.body\.0: expected \(\*, 3\), got \(2, 4\)"):
        Chain(blocks=nn.Sequential(nn.ReLU(), Skip([nn.Linear(3, 4), nn.ReLU()])))(torch.ones(2, 4))
    with pytest.raises(ShapeError, match=r"Linear at 1\.linear: expected \(\*, 3\), got \(2, 4\)"):
        Chain(nn.ReLU(), Dense(3, 4))(torch.ones(2, 4))


def test_the_error_of_another_layer_keeps_its_type_and_text_and_notes_the_path():
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied") as error:
        Chain(a=Chain(b=Skip(Broken())))(torch.ones(2, 5))
    assert error.value.__notes__ == ["raised by the layer at a.b.body of this Chain: Broken"]
    with pytest.raises(IndexError) as error:
        Chain(a=Chain(b=nn.AvgPool2d(3)))(torch.ones(5))
    assert error.value.__notes__ == ["raised by the layer at a.b of this Chain: AvgPool2d"]


def test_an_error_that_is_not_about_the_input_is_not_explained_by_it():
    class Hooked(nn.Linear):
        def forward(self, x):
            raise RuntimeError("the weights were changed by another thread")

    with pytest.raises(RuntimeError, match="changed by another thread") as error:
        Chain(Hooked(4, 4))(torch.ones(2, 4))
    assert type(error.value) is RuntimeError and "at 0 of this Chain" in error.value.__notes__[0]
    full = nn.Linear(4, 4)
    full.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("CUDA out of memory")))
    with pytest.raises(RuntimeError, match="out of memory") as error:
        Chain(full)(torch.ones(2, 4))
    assert not hasattr(error.value, "__notes__")


def test_what_fits_is_no_misfit():
    for layer, x in (
        (nn.Linear(4, 2), torch.ones(4)),
        (nn.Conv2d(3, 4, 3, padding="same"), torch.ones(3, 2, 2)),
        (nn.Conv1d(3, 4, 3, padding=1, dilation=2), torch.ones(1, 3, 3)),
        (nn.BatchNorm1d(4), torch.ones(2, 4)),
        (nn.LayerNorm((2, 4)), torch.ones(3, 2, 4)),
        (nn.MultiheadAttention(4, 2), torch.ones(3, 2, 4)),
        (nn.Embedding(4, 2), torch.tensor([0, 3])),
        (nn.ReLU(), torch.ones(1)),
    ):
        assert find_misfit(layer, [x]) is None
    with torch.autocast("cpu"):
        assert find_misfit(nn.Linear(4, 2), [torch.ones(1, 4, dtype=torch.bfloat16)]) is None


# Inputs of output_shape


class Dictionary(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, batch, *, scale=1.0):
        return {"y": self.linear(batch["x"]) * scale + batch["rest"][0].sum()}


def test_inputs_may_be_examples_dictionaries_lists_and_names():
    text = Chain(nn.Embedding(9, 4), Skip([nn.LayerNorm(4), nn.Linear(4, 4)]), lambda x: x.mean(1), nn.Linear(4, 3))
    assert output_shape(text, torch.zeros(2, 5, dtype=torch.int64)) == (2, 3)
    assert output_shape(text, (2, 5), dtypes=torch.int64) == output_shape(text, (2, 5), dtypes=[torch.int32]) == (2, 3)
    batch = {"x": (3, 4), "rest": [torch.ones(7)]}
    assert output_shape(Dictionary(), batch) == output_shape(Dictionary(), batch, scale=2.0) == ((3, 2),)
    assert output_shape(Dictionary(), batch, scale=(3, 1)) == ((3, 2),)
    assert output_shape(nn.Bilinear(2, 3, 4), (5, 2), torch.ones(5, 3)) == (5, 4)
    complex_layer = nn.Linear(3, 2, dtype=torch.complex64)
    assert output_shape(complex_layer, (1, 3)) == (1, 2)


def test_wrong_dtypes_are_refused():
    with pytest.raises(
        ShapeError, match=r"Embedding at 0: expected indices of torch.int64, got torch.float32. Convert"
    ):
        output_shape(Chain(nn.Embedding(9, 4)), (2, 5))
    with pytest.raises(ValueError, match="dtypes: expected 1, one per input, got 2"):
        output_shape(nn.Linear(3, 2), (1, 3), dtypes=[None, torch.float64])


def test_a_missing_batch_axis_is_called_one():
    network = Chain(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 2))
    with pytest.raises(
        ShapeError, match=r"Chain: the batch axis is missing: expected \(1, 3, 3, 3\)\. Pass that shape"
    ):
        output_shape(network, (3, 3, 3))
    with pytest.raises(ShapeError, match=r"Conv2d at 0: expected \(B, 3, H, W\)"):
        output_shape(network, (4, 3, 3))
    assert output_shape(nn.Conv2d(3, 8, 3), (3, 5, 5)) == (8, 3, 3)  # torch takes it without a batch


@pytest.mark.parametrize(
    ("layer", "x", "message"),
    [
        (nn.ConvTranspose2d(3, 4, 3), torch.ones(2, 4, 8, 8), r"expected \(B, 3, H, W\), got \(2, 4, 8, 8\)"),
        (nn.Conv1d(3, 4, 3, padding="valid"), torch.ones(2, 3, 2), "at least the size of the kernel"),
        (nn.InstanceNorm1d(4, affine=True), torch.ones(2, 5, 3), r"expected \(B, 4, L\)"),
        (nn.MaxPool2d(5), torch.ones(2, 3, 4, 4), r"at least the window, got \(2, 3, 4, 4\)"),
        (nn.AvgPool1d(2), torch.ones(2, 3, 4, 4), r"expected \(B, C, L\)"),
        (nn.LSTMCell(4, 3), torch.ones(2, 5), r"expected \(B, 4\), got \(2, 5\)"),
        (nn.PReLU(4), torch.ones(2, 3), "expected 4 channels on axis 1"),
        (nn.Linear(4, 3), None, "expected a tensor, got NoneType. Return a tensor"),
        (nn.Linear(4, 3), {"x": torch.ones(2, 4)}, 'outputs\\["name"\\]'),
    ],
)
def test_layers_of_torch_that_do_not_fit_their_input_are_named(layer, x, message):
    with pytest.raises(ShapeError, match=rf"^{type(layer).__name__} at body.0: .*{message}"):
        Chain(body=nn.Sequential(layer))(x)


def test_a_bilinear_layer_that_does_not_fit_is_named():
    with pytest.raises(ShapeError, match=r"Bilinear at 1: expected a first input \(\*, 3\)"):
        Chain(nn.Identity(), nn.Bilinear(3, 4, 2))(torch.ones(2, 5), torch.ones(2, 4))
