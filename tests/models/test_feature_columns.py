import json
from dataclasses import replace

import numpy as np
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


def test_predict_and_export_refuse_a_network_with_columns_in_one_line(tmp_path):
    model = network().eval()
    with pytest.raises(InputError, match="with the columns age, sex, got images alone. Pass a .csv file"):
        sw.predict(model, np.zeros((8, 8, 3), np.uint8))
    for export in (sw.export.program, sw.export.onnx):
        with pytest.raises(InputError, match="a model of images alone, got one with the feature columns age, sex"):
            export(model, tmp_path / "model")
