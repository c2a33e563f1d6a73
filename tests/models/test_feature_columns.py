import json
from dataclasses import replace

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from image_folders import decoded_noise
from torch import nn

import skipway as sw
from skipway.data.image_spec import Spec
from skipway.data.images.image_rows import ImageRows, encode_columns, fit_feature_columns
from skipway.data.images.loader import ImageBatches
from skipway.data.sources.read_table import frame_table
from skipway.data.tables.columns import Column
from skipway.errors import InputError
from skipway.export.openvino import engine
from skipway.models.feature_columns import FeatureColumns, add_feature_columns
from skipway.models.network import with_feature_columns
from skipway.models.network_outputs import pixel_outputs
from skipway.models.registry import plan_of, rebuild
from skipway.nn.chain import Chain

pytestmark = pytest.mark.usefixtures("one_thread")
COLUMNS = (Column("age", "number", center=40.0, scale=10.0), Column("sex", "category", categories=("f", "m")))
SPEC = Spec(3, 8, 8, (0.5,) * 3, (0.25,) * 3, ("no", "yes"), feature_columns=COLUMNS)


def images_with_columns(count=12):
    images = decoded_noise(np.arange(count) % 2, names=("no", "yes"))
    frame = pd.DataFrame({"age": np.arange(count) + 30.0, "sex": ["f", "m", "x"] * (count // 3)})
    images.columns = frame_table(frame)
    return images


def network():
    torch.manual_seed(0)
    return with_feature_columns(sw.create_model("resnet20", 2, stem="small"), SPEC)


def test_dates_next_to_images_have_all_their_inputs():
    images = images_with_columns()
    days = pd.date_range("2024-01-25", periods=12).strftime("%d.%m.%Y")
    images.columns = frame_table(pd.DataFrame({"age": np.arange(12) + 30.0, "taken": days}))
    columns = fit_feature_columns(images)
    spec = replace(SPEC, feature_columns=columns)
    assert [c.kind for c in columns] == ["number", "date"] and columns[1].dates.date_format == "dmy"
    assert encode_columns(images, spec).x.shape == (12, 2 + columns[1].dates.num_inputs)
    assert Spec.from_dict(json.loads(json.dumps(spec.as_dict()))) == spec


def test_features_are_followed_by_numbers_and_embeddings():
    join = FeatureColumns(3, (4, 5))
    x, rows = torch.randn(2, 6), torch.tensor([[0.5, 1.0, 4.0], [-1.0, 3.0, 9.0]])
    out = join(x, rows)
    tables = [table.weight for table in join.embed.tables]
    expected = [torch.cat([x[0], rows[0, :1], tables[0][1], tables[1][4]]), torch.cat([x[1], rows[1, :1]])]
    assert torch.equal(out[0], expected[0]) and torch.equal(out[1, :7], expected[1])
    assert torch.equal(out[1, -3:], tables[1][0])  # index 9 is unseen
    with pytest.raises(InputError, match="expected images with their feature columns, got images alone. Pass both"):
        join(x)


def test_at_first_the_outputs_are_linear_in_the_columns():
    model = network().eval()
    x, rows = torch.randn(3, 3, 8, 8), torch.tensor([[0.0, 1.0], [1.0, 2.0], [2.0, 1.0]])
    features = model["stem":"columns"](x)
    joined = torch.cat([features, rows[:, :1], model.columns.embed.tables[0](rows[:, 1].long())], 1)
    expected = model.head(joined)
    torch.testing.assert_close(model(ImageRows(x, rows)), expected)
    torch.testing.assert_close(model(x, rows=rows), expected)
    with pytest.raises(InputError, match="got images alone"):
        model(x)


def test_a_network_with_columns_is_saved_and_keeps_the_weights_of_its_trunk(tmp_path):
    plain = sw.create_model("resnet20", 2, stem="small")
    model = with_feature_columns(plain, SPEC)
    assert torch.equal(model.stem.state_dict()["conv.weight"], plain.stem.state_dict()["conv.weight"])
    model.spec = SPEC
    model.save(tmp_path / "model.safetensors")
    again = sw.load(tmp_path / "model.safetensors")
    assert again.spec == SPEC and again.plan["columns"] == {"in_features": 2, "categories": [4]}
    inputs = ImageRows(torch.randn(2, 3, 8, 8), torch.tensor([[0.0, 1.0], [1.0, 3.0]]))
    assert torch.equal(again.eval()(inputs), model.eval()(inputs))


def test_a_spec_with_columns_comes_back_equal():
    assert Spec.from_dict(json.loads(json.dumps(SPEC.as_dict()))) == SPEC
    assert SPEC.row_spec.input_shape == (2,) and SPEC.row_spec.class_names == ("no", "yes")
    with pytest.raises(InputError, match="a TableSpec: expected columns of the kinds number, .* got 'text'"):
        replace(SPEC, feature_columns=(Column("a", "text"),))
    with pytest.raises(InputError, match="cannot read a Spec: expected numbers for sizes, mean and std, got 'name'"):
        Spec.from_dict({**SPEC.as_dict(), "feature_columns": [{}]})


def test_batches_hold_the_columns_of_their_images():
    images = images_with_columns()
    spec = replace(SPEC, feature_columns=fit_feature_columns(images))
    batches = ImageBatches(images, np.arange(12), 5, spec=spec)
    rows = spec.row_spec.encode_strict(images.columns).x
    for x, y, ids in batches.epoch():
        assert isinstance(x, ImageRows) and len(x) == len(y) and x.device == y.device
        assert np.array_equal(x.rows.numpy(), rows[ids]) and torch.equal(x.images, batches.inputs(ids))
        assert torch.equal(x[1:3].rows, x.rows[1:3])
        assert x.to(torch.float64).images.dtype == torch.float64 and x.to(torch.bfloat16).rows.dtype == torch.float32
    assert torch.equal(batches.some(3)[0].rows, torch.from_numpy(rows[[0, 4, 8]]))


def test_columns_are_fitted_to_the_training_images():
    images = images_with_columns()
    images.splits = {"train": np.arange(6), "val": np.arange(6, 12)}
    images.columns.columns["same"] = np.ones(12)
    columns = {column.name: column for column in fit_feature_columns(images)}
    assert list(columns) == ["age", "sex"] and columns["age"].center == pytest.approx(32.5)
    assert images.warnings == ["feature column 'same': constant, left out"]
    images.columns = frame_table(pd.DataFrame({"same": np.ones(12)}))
    with pytest.raises(InputError, match="cannot use the features same: expected columns whose values vary, got none"):
        fit_feature_columns(images)
    images.columns = None
    assert fit_feature_columns(images) == ()
    with pytest.raises(InputError, match="cannot use noise: expected the columns age, sex next to the images, got non"):
        encode_columns(images, SPEC)


def test_probabilities_need_the_columns_and_are_averaged_over_views():
    model, pixels = network(), list(decoded_noise([0, 1, 0]).pixels)
    model.spec = SPEC
    rows = np.array([[0.0, 1.0], [1.0, 2.0], [2.0, 1.0]], np.float32)
    plain = pixel_outputs(model, SPEC, pixels, rows=rows)
    assert plain.shape == (3, 2) and np.allclose(plain.sum(1), 1)
    mirrored = replace(SPEC, mirrored=True)
    flipped = pixel_outputs(model, SPEC, [p[:, ::-1] for p in pixels], rows=rows)
    averaged = pixel_outputs(model, mirrored, pixels, rows=rows, tta=True)
    assert not np.allclose(averaged, plain) and np.isfinite(averaged).all() and flipped.shape == plain.shape
    with pytest.raises(InputError, match="got images alone"):
        pixel_outputs(model, SPEC, pixels)


@pytest.mark.parametrize("columns", [{"in_features": 0}, {"in_features": 1, "categories": [2, 2]}, {"a": 1}, 3])
def test_a_plan_with_other_columns_is_refused(columns):
    with pytest.raises(InputError, match="cannot read the plan: expected columns with in_features and categories as"):
        rebuild({**plan_of("resnet20"), "columns": columns})


def test_a_network_without_a_linear_head_takes_no_columns():
    with pytest.raises(InputError, match="cannot add feature columns: expected a network of images with a linear head"):
        add_feature_columns(Chain(head=nn.Identity()), {"in_features": 1})


def test_predict_refuses_images_alone_in_one_line():
    model = network().eval()
    with pytest.raises(InputError, match="with the columns age, sex, got images alone. Pass a .csv file"):
        sw.predict(model, np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(InputError, match="got images alone. Pass both, .* or a table that names the images to skipway"):
        model.predict([np.zeros((8, 8, 3), np.uint8)])


def mixing_network():
    """A network whose residual block and columns change the outputs."""
    model = network().eval()
    torch.manual_seed(1)
    for parameter in model["columns":].parameters():
        nn.init.normal_(parameter, std=0.15)
    return model


def example(count=5):
    pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    rows = np.array([[0.5, 1.0], [-1.0, 2.0], [0.0, 3.0], [2.0, 0.0], [0.1, 9.0]], np.float32)
    return pixels, rows[:count]


@pytest.mark.parametrize("kind", ["onnx", "program"])
def test_an_exported_file_takes_images_and_rows(kind, tmp_path):
    model, (pixels, rows) = mixing_network(), example()
    expected = pixel_outputs(model, SPEC, list(pixels), rows=rows)
    done = getattr(sw.export, kind)(model, tmp_path / "model")
    assert done.difference < 1e-5
    if kind == "onnx":
        session = onnxruntime.InferenceSession(done.path)
        assert [i.name for i in session.get_inputs()] == ["images", "rows"]
        (found,) = session.run(["probabilities"], {"images": pixels, "rows": rows})
    else:
        found = torch.export.load(done.path).module()(torch.from_numpy(pixels), torch.from_numpy(rows)).detach().numpy()
    assert np.abs(found - expected).max() < 1e-5
    assert np.ptp(pixel_outputs(model, SPEC, [pixels[0]] * 5, rows=rows)[:, 0]) > 0.05  # the columns change the outputs


def test_a_raw_export_takes_normalized_images_and_rows(tmp_path):
    model, (_, rows) = mixing_network(), example()
    done = sw.export.onnx(model, tmp_path / "raw.onnx", raw=True)
    x = torch.randn(5, 3, 8, 8)
    (found,) = onnxruntime.InferenceSession(done.path).run(["outputs"], {"inputs": x.numpy(), "rows": rows})
    torch.testing.assert_close(torch.from_numpy(found), model(x, rows=torch.from_numpy(rows)).detach())


@pytest.mark.parametrize("make", [sw.export.fuse, engine], ids=["torch", "openvino"])
@pytest.mark.parametrize("precision, near", [("fp32", 1e-5), ("bf16", 0.05), ("int8", 0.1)])
def test_engines_convert_the_layers_before_the_columns(make, precision, near):
    model, (pixels, rows) = mixing_network(), example()
    inputs = torch.from_numpy((pixels.transpose(0, 3, 1, 2) / 255 - 0.5) / 0.25).float()
    fast = make(model, precision, inputs)
    assert (
        np.abs(
            pixel_outputs(fast, SPEC, list(pixels), rows=rows) - pixel_outputs(model, SPEC, list(pixels), rows=rows)
        ).max()
        < near
    )
    assert all(p.requires_grad for p in model.parameters()) and not fast.training


def test_a_deeper_network_has_the_same_outputs_and_columns():
    model, (_, rows) = mixing_network(), example()
    inputs = ImageRows(torch.randn(5, 3, 8, 8), torch.from_numpy(rows))
    for deeper in (sw.grow.deepen(model, "resnet32"), sw.grow.deepen(model, blocks={"stage2": 1}, probe=inputs)):
        assert torch.equal(deeper(inputs), model(inputs)) and deeper.plan["columns"] == model.plan["columns"]
    with pytest.raises(InputError, match="got one with feature columns, which its features join. Deepen it"):
        sw.grow.widen(model, 2)
    dense = with_feature_columns(sw.create_model("densenet121", 2, layers=[2, 2], growth=4, stem="small"), SPEC)
    with pytest.raises(
        InputError, match="got one with feature columns, which the channels that new blocks append would join"
    ):
        sw.grow.deepen(dense.eval(), blocks={"stage1": 1})


def test_a_network_with_columns_is_measured_and_drawn():
    model, (_, rows) = mixing_network(), example()
    inputs = ImageRows(torch.randn(5, 3, 8, 8), torch.from_numpy(rows))
    assert "head" in {layer.path for layer in sw.probe.flow(model, inputs, torch.arange(5) % 2).layers}
    score = sw.probe.batches_accuracy(inputs, torch.arange(5) % 2)
    assert 0 <= score(model) <= 1
    assert "columns" in sw.probe.diagram(model) and "columns" in sw.probe.diagram(model.plan)


@pytest.mark.parametrize("every", ["auto", "stages", 2])
def test_gradients_are_those_without_activation_checkpointing(every):
    inputs = ImageRows(torch.randn(5, 3, 8, 8), torch.from_numpy(example()[1]))
    gradients = []
    for model in (mixing_network(), sw.recompute(mixing_network(), every)):
        model.train()(inputs).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert [n for n, m in model.named_modules() if isinstance(m, Chain) and m.forward_impl] == [
        "stage1",
        "stage2",
        "stage3",
    ]
