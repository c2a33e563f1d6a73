"""Weights of a run of one task for a model of another one."""

import copy

import numpy as np
import pytest
from task_networks import NAMES, TASKS, arrays, image_network

import skipway as sw
from skipway.errors import InputError
from skipway.weights.pretrained import refit


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
@pytest.mark.parametrize("name", ["classes", "labels", "numbers"])
def test_rows_of_a_head_are_kept_only_for_the_same_task(name, task):
    network = image_network(name)
    names = ("yak", *(TASKS[name].get("class_names") or TASKS[name]["target_names"])[::-1])
    made = refit(copy.deepcopy(network), len(names), None, names, {}, task)
    rows = network.head.weight.detach().numpy()[::-1]
    is_kept = np.array_equal(made.head.weight.detach().numpy()[1:], rows)
    assert is_kept == (network.spec.task == task)
    count = len(rows) if is_kept else 0
    assert f"{count} of {len(names)} classes kept by their names" in made.origin
    with_trunk = {key: value for key, value in network.state_dict().items() if not key.startswith("head.")}
    assert all(value.equal(made.state_dict()[key]) for key, value in with_trunk.items())


def test_an_unknown_task_is_refused():
    with pytest.raises(InputError, match="create_model: expected the task classification or .*, got 'labels'"):
        sw.create_model("resnet18", task="labels")


@pytest.mark.parametrize("name", TASKS)
def test_another_number_of_outputs_keeps_what_the_spec_can_describe(name):
    network = image_network(name)
    spec = network.spec
    network.reset_classifier(spec.num_outputs)
    assert network.spec == spec
    network.reset_classifier(5)
    if name.startswith("number"):
        assert network.spec is None
        return
    assert (network.spec.task, network.spec.class_names) == (spec.task, ("0", "1", "2", "3", "4"))
    assert len(network.predict(arrays())) == 5 and network.predict_proba(arrays()).shape == (5, 5)


def test_timms_configuration_names_labels_and_no_numbers():
    assert image_network("labels").pretrained_cfg["label_names"] == NAMES
    assert image_network("numbers").pretrained_cfg["label_names"] == ()
