"""A run of every family: trained, resumed, loaded without the user's code, predicting."""

import numpy as np
import pytest
from small_runs import image_folder, numbers, quick

from skipway.errors import InputError
from skipway.models.load_model import load
from skipway.models.registry import FAMILIES
from skipway.runs.train_run import train

SMALLEST = {
    "resnet": "resnet20",
    "resnet9": "resnet9",
    "densenet": "densenet40_12",
    "convnext": "convnext_atto",
    "inverted_residual": "mobilenetv2_050",
    "resmlp": "resmlp",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_resumes_and_predicts(family, tmp_path):
    name = SMALLEST[family]
    data = image_folder(tmp_path / "data", count=6)
    quick(str(data), str(tmp_path / "runs"), model=name, epochs=1)
    resumed = train(resume=str(tmp_path / "runs" / "last"), epochs=2)
    network = load(resumed.path)
    assert network.plan["name"] == name and network.plan["family"] == family and numbers(resumed.path)["epochs"] == 2
    assert network.predict_proba([np.zeros((8, 8), np.uint8)]).sum() == pytest.approx(1, abs=1e-5)


def test_an_option_that_the_family_does_not_have_is_refused(tmp_path):
    data = image_folder(tmp_path / "data", count=6)
    with pytest.raises(InputError, match="densenet40_12: unknown option 'drop_path'"):
        quick(str(data), str(tmp_path / "runs"), model="densenet40_12", drop_path=0.2)
