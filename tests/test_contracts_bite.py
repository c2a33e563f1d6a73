"""Every contract refuses a network that breaks it, and for that reason."""

import ast
import copy
import re
import traceback
from pathlib import Path

import contracts
import pytest
import torch
from shrunken import random_images, settled, shrunken
from torch import nn
from torch.nn import functional as F

from skipway.models import registry
from skipway.nn.chain import Chain, Function
from skipway.nn.skip import Skip
from skipway.nn.stochastic_depth import stochastic_depth

NAME = "resnet18"
BITES = []


def bite(check, text):
    """The function below gives arguments that `check` must refuse with `text`."""

    def noted(make):
        BITES.append(pytest.param(check, text, make, id=make.__name__))
        return make

    return noted


def network(**layers):
    """A good network, with these layers more at its end or instead of its own."""
    made = copy.deepcopy(settled(NAME))
    for name, layer in layers.items():
        made._modules[name] = layer if isinstance(layer, nn.Module) else Function(layer)
    return made


def first_skip(made):
    return made.stage1[0]


class Numbers(nn.Module):
    """Adds numbers to a row; each kind of them is wrong in its own way."""

    def __init__(self, kind):
        super().__init__()
        self.kind, numbers = kind, torch.full((3,), 0.5)
        if kind == "buffer":
            self.register_buffer("numbers", numbers, persistent=False)
        elif kind == "list":
            self.kept = {"numbers": [numbers]}
        else:
            self.numbers = nn.Parameter(numbers)

    def forward(self, x):
        numbers = self.kept["numbers"][0] if self.kind == "list" else self.numbers
        return x + (numbers * 0 if self.kind == "unheard" else numbers)

    def _apply(self, fn, recurse=True):
        return self if self.kind == "immovable" else super()._apply(fn, recurse)

    def __deepcopy__(self, memo):
        if self.kind in ("one", "forgetful"):
            return self if self.kind == "one" else Numbers("parameter")
        made = Numbers(self.kind)
        made.load_state_dict(self.state_dict())
        return made


class Counting(nn.Module):
    """Counts its calls, at evaluation too."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x


# Shapes and states


@bite("check_output_shape", r"the plan means \(4, 3\), but there came \{'forward': \(4, 5\)")
def a_head_of_other_classes():
    return network(head=nn.Linear(16, 5)), random_images()


@bite("check_output_shape", r"there came \{('output_shape': \(4, 2\), )?'meta': \(4, 2\)\}")
def another_shape_where_there_is_no_data():
    return network(more=lambda x: x[:, :2] if x.device.type == "meta" else x), random_images()


@bite("check_fingerprint", "the golden file has")
def a_bias_that_is_missing():
    return network(head=nn.Linear(16, 3, bias=False)), contracts.fingerprint(network())


@bite("check_fingerprint", "the golden file has")
def a_parameter_that_is_fixed():
    made = network()
    made.head.bias.requires_grad_(False)
    return made, contracts.fingerprint(network())


@bite("check_fingerprint", "the golden file has")
def another_name():
    made = network()
    made._modules["fc"] = made._modules.pop("head")
    return made, contracts.fingerprint(network())


@bite("check_registration", r"the state does not hold \['more.numbers'\]")
def a_buffer_that_is_not_saved():
    return network(more=Numbers("buffer")), random_images()


@bite("check_registration", "parameters stand in two places")
def a_block_used_twice():
    made = network()
    made.stage1[1] = made.stage1[0]
    return made, random_images()


@bite("check_registration", r"more keeps \['kept'\] where torch does not see it")
def numbers_in_a_plain_list():
    return network(more=Numbers("list")), random_images()


@bite("check_registration", r"these did not become float64: \['more.numbers'\]")
def numbers_that_do_not_move():
    return network(more=Numbers("immovable")), random_images()


@bite("check_registration", "numbers stayed behind in float32")
def numbers_in_a_closure():
    weight = torch.eye(3)
    return network(more=lambda x: x @ weight), random_images()


@bite("check_registration", "float64 goes in, torch.float32 comes out")
def an_output_of_one_kind():
    return network(more=lambda x: x.float()), random_images()


# Plans


class Loud(str):
    def __repr__(self):
        return repr(self.upper())


def planned(**values):
    made = network()
    made.plan = {**made.plan, **values}
    return made


@bite("check_plan", "the plan's repr is another plan")
def a_plan_that_prints_otherwise():
    return (planned(stem=Loud("large")),)


@bite("check_plan", "JSON changes the plan")
def a_plan_that_json_changes():
    return (planned(layers=(2, 1)),)


@bite("check_plan", "the plan is not complete")
def a_plan_that_lacks_a_value():
    made = network()
    made.plan = {k: v for k, v in made.plan.items() if k != "drop_path"}
    return (made,)


@bite("check_plan", "the plan rebuilds another network")
def a_plan_of_another_shape():
    return (planned(stem="small"),)


@bite("check_plan", "the plan rebuilds another network")
def a_plan_of_another_computation():
    return (planned(padding="same"),)


SMALL = {"layers": [1, 1], "widths": [4, 4]}


@bite("check_option", "stem='small' changes the plan's {}")
def an_option_that_is_not_in_the_plan():
    return lambda name, stem, **o: registry.build(name, **o), NAME, SMALL, "stem", ["large", "small"]


@bite("check_option", "stem='small' changes the plan's {'stem': 'small', 'num_classes': 7}")
def an_option_that_changes_another():
    def build(name, stem, **o):
        return registry.build(name, stem=stem, num_classes=7 if stem == "small" else 3, **o)

    return build, NAME, SMALL, "stem", ["large", "small"]


@bite("check_option", "stem='small' makes the network of stem='large'")
def an_option_that_the_network_does_not_heed():
    def build(name, stem, **o):
        made, plan = registry.build(name, **o)
        return made, {**plan, "stem": stem}

    return build, NAME, SMALL, "stem", ["large", "small"]


# Outputs


@bite("check_determinism", "evaluation is not deterministic")
def dropout_that_never_ends():
    return network(more=lambda x: F.dropout(x, 0.5, training=True)), random_images()


@bite("check_determinism", r"evaluation changes \['more.calls'\]")
def a_count_that_goes_on():
    return network(more=Counting()), random_images()


@bite("check_rows", "a row depends on its batch")
def a_mean_over_the_batch():
    return network(more=lambda x: x - x.mean(0)), random_images()


def fresh(**layers):
    made = copy.deepcopy(shrunken(NAME))
    for name, layer in layers.items():
        made._modules[name] = layer if isinstance(layer, nn.Module) else Function(layer)
    return made


@bite("check_gradients", r"no gradient reaches \['stem")
def a_gradient_that_is_cut():
    made = fresh()
    made.stem = Chain(made.stem, lambda x: x.detach())
    return made, random_images(6)


@bite("check_gradients", r"the gradient is not finite at \['stem")
def a_root_of_zero():
    return fresh(pool=lambda x: (x.mean((2, 3)) * 0).sqrt() + x.mean((2, 3))), random_images(6)


@bite("check_gradients", r"the gradient stays zero at \['more.numbers'\]")
def numbers_that_nothing_heeds():
    return fresh(more=Numbers("unheard")), random_images(6)


# Copies


@bite("check_deepcopy", "the copy shares memory with the network")
def a_layer_that_is_not_copied():
    return network(more=Numbers("one")), random_images()


@bite("check_deepcopy", "the copy gives other outputs")
def a_layer_that_forgets():
    more = Numbers("forgetful")
    nn.init.ones_(more.numbers)
    return network(more=more), random_images()


@bite("check_saving", "the file brings back another plan or Spec")
def a_plan_that_a_file_changes():
    return planned(layers=(2, 1)), random_images()


@bite("check_saving", "the file brings back another state")
def keys_in_another_order():
    made = network()
    inner = made.stage2[0]._modules
    inner["body"] = inner.pop("body")
    return made, random_images()


@bite("check_saving", "the loaded network gives other outputs")
def a_layer_that_the_plan_does_not_know():
    return network(more=torch.sin), random_images()


@bite("check_export", "the exported program gives other outputs")
def another_computation_where_it_is_exported():
    return network(more=lambda x: 2 * x if torch.compiler.is_exporting() else x), random_images()


@bite("check_compile", "the compiled network gives other outputs")
def another_computation_where_it_is_compiled():
    return network(more=lambda x: 2 * x if torch.compiler.is_compiling() else x), random_images()


@bite("check_compile", "the network is more than one graph")
def a_break_in_the_graph():
    return network(more=lambda x: (torch._dynamo.graph_break(), x)[1]), random_images()


# The laws of Skip


def with_first_skip(kind=Skip, made=None, body=None, shortcut=None):
    made = made or network()
    old = first_skip(made)
    made.stage1[0] = kind(old.body, shortcut or old.shortcut, after=old.after)
    if body is not None:
        made.stage1[0].body = body(old.body)
    return made.eval()


class Dropping(Skip):
    """Leaves its body out at evaluation too."""

    def forward(self, x):
        branch = stochastic_depth(self.body, x, x, self.drop_path, "row") if self.drop_path else self.body(x)
        return self.after(self.join(branch, x))


class Halving(Skip):
    """Keeps half of its input."""

    def forward(self, x):
        return self.after(self.join(self.body(x), x / 2))


@bite("check_drop_path", "drop path drops at evaluation")
def drop_path_at_evaluation():
    return with_first_skip(Dropping), random_images()


@bite("check_zero_bodies", "stage1.0 is not its shortcut where its body gives zeros")
def a_shortcut_that_is_halved():
    return with_first_skip(Halving), random_images()


@bite("check_zero_beginnings", r"these begin at zero and get no gradient: \['stage1.0.body.0.norm2.weight'\]")
def an_activation_after_a_zeroed_norm():
    return with_first_skip(made=fresh(), body=lambda body: Chain(body, nn.ReLU())), random_images(6)


def change_in_place(x):
    x.mul_(2)


@bite("check_in_place", "stage1.0 changes its input in place")
def a_hook_that_changes_the_input_of_a_skip():  # a Skip itself refuses layers that do
    made = network()
    first_skip(made).register_forward_hook(lambda skip, inputs, out: change_in_place(inputs[0]))
    return made, random_images()


@bite("check_in_place", "the network changes its input in place")
def a_stem_that_changes_the_images():
    made = network()
    made.stem = Chain(lambda x: x.mul_(2), made.stem)
    return made, random_images()


@bite("check_shortcuts", "stage1.0: 64 parameters too many")
def a_projection_between_equal_shapes():
    return with_first_skip(shortcut=nn.Conv2d(8, 8, 1, bias=False)), random_images()


@bite("check_shortcuts", "stage1.0: something in the shortcut is not affine")
def a_shortcut_with_an_activation():
    return with_first_skip(shortcut=nn.Tanh()), random_images()


def refusal(check, make, folder):
    """The error of `check`, or None."""
    try:
        contracts.CHECKERS[check](*make(), *([folder] if check == "check_saving" else []))
    except AssertionError as error:
        return error
    return None


@pytest.mark.filterwarnings("ignore:layers of this")
@pytest.mark.parametrize("check, text, make", BITES)
def test_a_contract_refuses_what_breaks_it(check, text, make, tmp_path):
    assert re.search(text, str(refusal(check, make, tmp_path)))


def test_every_contract_has_something_that_it_refuses():
    assert {case.values[0] for case in BITES} == set(contracts.CHECKERS)


@pytest.mark.filterwarnings("ignore:layers of this")
def test_every_line_that_may_refuse_does(tmp_path):
    file = Path(contracts.__file__)
    may = {
        node.lineno
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Assert) or (isinstance(node, ast.Raise) and "AssertionError" in ast.unparse(node))
    }
    did = set()
    for case in BITES:
        check, _, make = case.values
        calls = traceback.extract_tb(refusal(check, make, tmp_path).__traceback__)
        did.add(next(call.lineno for call in reversed(calls) if call.filename == str(file)))
    assert may == did
