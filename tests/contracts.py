"""The contracts that every registered network keeps, one checker each: it raises AssertionError or says nothing.

`test_contracts.py` runs the checkers over all names; `test_contracts_bite.py` feeds each of them networks that are
broken in just that respect. A checker leaves the network that it is given as it was.
"""

import copy
import hashlib
import json

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import skipway as sw
from skipway.data.image_spec import Spec
from skipway.models.network import build_network
from skipway.models.registry import FAMILIES
from skipway.nn.joins import Scale, add, append, concat
from skipway.nn.shape_inference import output_shape
from skipway.nn.skip import named_skips
from skipway.training.checkpoint import save_weights

NEAR = {"rtol": 1e-9, "atol": 1e-12}  # in float64, where sums are taken in another order
CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # in float32, where layers are computed in another way


def evaluated(network):
    """A copy in evaluation mode."""
    return copy.deepcopy(network).eval()


# Shapes and states


def check_output_shape(network, x):
    """The output has the plan's shape: computed, told without data, and on the meta device."""
    network, meant = evaluated(network), (len(x), network.plan["num_classes"])
    found = {"forward": tuple(network(x).shape), "output_shape": output_shape(network, x.shape)}
    found["meta"] = tuple(network.to("meta")(x.to("meta")).shape)
    wrong = {way: shape for way, shape in found.items() if shape != meant}
    assert not wrong, f"the plan means {meant}, but there came {wrong}"


def fingerprint(network):
    """[parameters, tensors of parameters, buffers, 16 digits of the SHA-256 of every key with its shape]."""
    fixed = {name for name, p in network.named_parameters() if not p.requires_grad}
    lines = [f"{k} {tuple(v.shape)}{' fixed' * (k in fixed)}" for k, v in sorted(network.state_dict().items())]
    parameters = list(network.parameters())
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    return [sum(p.numel() for p in parameters), len(parameters), len(list(network.buffers())), digest]


def check_fingerprint(network, golden):
    """Keys, shapes, counts and what is fixed are those of the golden file."""
    found = fingerprint(network)
    assert found == golden, f"the golden file has {golden}, this network {json.dumps(found)}"


def check_registration(network, x):
    """All numbers are registered, once: the state holds them, and every one follows `.to(float64)`."""
    network = evaluated(network)
    keys = set(network.state_dict())
    unsaved = [name for name, _ in [*network.named_parameters(), *network.named_buffers()] if name not in keys]
    assert not unsaved, f"the state does not hold {unsaved}"
    twice = len(list(network.named_parameters(remove_duplicate=False))) - len(list(network.parameters()))
    assert not twice, f"{twice} parameters stand in two places"
    for path, module in network.named_modules():
        own = {k: v for k, v in vars(module).items() if k not in vars(nn.Module())}
        hidden = [name for name, value in own.items() if any(isinstance(v, Tensor | nn.Module) for v in leaves(value))]
        assert not hidden, f"{path or 'the network'} keeps {hidden} where torch does not see it"
    network.to(torch.float64)
    slow = [k for k, v in network.state_dict().items() if v.is_floating_point() and v.dtype != torch.float64]
    assert not slow, f"these did not become float64: {slow}"
    try:
        kind = network(x.double()).dtype
    except RuntimeError as error:
        raise AssertionError(f"numbers stayed behind in float32: {error}") from error
    assert kind == torch.float64, f"float64 goes in, {kind} comes out"


def leaves(value):
    """Everything inside lists, tuples, sets and dictionaries."""
    if isinstance(value, dict):
        value = list(value.values())
    return [leaf for v in value for leaf in leaves(v)] if isinstance(value, list | tuple | set) else [value]


# Plans


def check_plan(network):
    """`repr` and JSON give an equal plan, and the plan an equal network."""
    plan = network.plan
    told = json.loads(json.dumps(plan))
    assert told == plan, "JSON changes the plan"
    kind = FAMILIES[plan["family"]].plan
    values = kind.of({k: v for k, v in told.items() if k not in ("name", "family")})
    printed = [eval(repr(plan)), eval(repr(values), {kind.__name__: kind})]
    assert printed == [plan, values], "the plan's repr is another plan"
    assert {"name": plan["name"], "family": kind.FAMILY, **values.as_dict()} == plan, "the plan is not complete"
    again = build_network(told)
    assert shapes(again) == shapes(network) and repr(again) == repr(network), "the plan rebuilds another network"


def shapes(network):
    """Every key with its shape, in order."""
    return [(k, tuple(v.shape)) for k, v in network.state_dict().items()]


def check_option(build, name, needed, option, values):
    """Each of `values` makes a plan that differs in `option` alone, and a network that differs from all the others."""
    _, first = build(name, **needed, **{option: values[0]})
    seen = {}
    for value in values:
        network, plan = build(name, **needed, **{option: value})
        changed = {k: v for k, v in plan.items() if v != first[k]}
        assert plan[option] == value and set(changed) <= {option}, f"{option}={value!r} changes the plan's {changed}"
        looks = str([repr(network), shapes(network)])
        assert looks not in seen, f"{option}={value!r} makes the network of {option}={seen[looks]!r}"
        seen[looks] = value


# Outputs


def check_determinism(network, x):
    """Evaluation gives the same twice, bit for bit, and changes nothing that is kept."""
    network = evaluated(network)
    before = copy.deepcopy(network.state_dict())
    assert torch.equal(network(x), network(x)), "evaluation is not deterministic"
    changed = [k for k, v in network.state_dict().items() if not torch.equal(v, before[k])]
    assert not changed, f"evaluation changes {changed}"


def check_rows(network, x):
    """A batch of one gives the row of a batch."""
    network, x = evaluated(network).double(), x.double()
    rows = torch.cat([network(row[None]) for row in x])
    assert torch.allclose(rows, network(x), **NEAR), "a row depends on its batch"


def check_gradients(network, x, steps=3):
    """Every parameter that is not fixed has a finite gradient in every step, and one other than zero in some step."""
    network = copy.deepcopy(network).train()
    learning = {name: p for name, p in network.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(learning.values(), 0.05)
    target = torch.arange(len(x)) % network.plan["num_classes"]
    silent = set(learning)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(network(x), target).backward()
        missing = [name for name, p in learning.items() if p.grad is None]
        assert not missing, f"no gradient reaches {missing}"
        wild = [name for name, p in learning.items() if not p.grad.isfinite().all()]
        assert not wild, f"the gradient is not finite at {wild}"
        silent -= {name for name, p in learning.items() if p.grad.any()}
        optimizer.step()
    assert not silent, f"the gradient stays zero at {sorted(silent)}"


# Copies


def check_deepcopy(network, x):
    """A copy gives equal outputs and shares no memory."""
    network = network.eval()
    twin = copy.deepcopy(network)
    assert torch.equal(twin(x), network(x)), "the copy gives other outputs"
    both = [{v.data_ptr() for v in n.state_dict(keep_vars=True).values() if v.numel()} for n in (network, twin)]
    assert not both[0] & both[1], "the copy shares memory with the network"


def check_saving(network, x, folder):
    """A file without code or pickle brings back the same plan, Spec, state and outputs."""
    network = evaluated(network)
    grey = [0.5] * x.shape[1]
    names = [f"class {i}" for i in range(network.plan["num_classes"])]
    spec = Spec(x.shape[1], x.shape[2], x.shape[2], tuple(grey), tuple(grey), tuple(names))
    path = folder / "network.safetensors"
    save_weights(path, network.state_dict(), {"plan": network.plan, "spec": spec.as_dict()})
    loaded = sw.load(path)
    assert (loaded.plan, loaded.spec) == (network.plan, spec), "the file brings back another plan or Spec"
    before, after = network.state_dict(), loaded.state_dict()
    assert list(before) == list(after) and all(torch.equal(v, after[k]) for k, v in before.items()), (
        "the file brings back another state"
    )
    assert torch.equal(loaded(x), network(x)), "the loaded network gives other outputs"


def check_export(network, x):
    """torch.export gives a program with equal outputs, for a batch of another size too."""
    network = evaluated(network)
    program = torch.export.export(network, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    for part in (x, x[:-1]):
        assert torch.allclose(program(part), network(part), **CLOSE), "the exported program gives other outputs"


def check_compile(network, x):
    """torch.compile takes the whole network as one graph, with equal outputs."""
    network = evaluated(network)
    torch._dynamo.reset()
    try:
        compiled = torch.compile(network, backend="eager", fullgraph=True)(x)
    except torch._dynamo.exc.Unsupported as error:
        raise AssertionError(f"the network is more than one graph: {str(error).splitlines()[0]}") from error
    finally:
        torch._dynamo.reset()
    assert torch.allclose(compiled, network(x), **CLOSE), "the compiled network gives other outputs"


# The laws of Skip


def check_drop_path(network, x):
    """At evaluation a network with drop path equals one without."""
    plain, dropping = evaluated(network), evaluated(network)
    for _, skip in named_skips(dropping):
        if skip.join is add or isinstance(skip.join, Scale):
            skip.drop_path = 0.5
    assert torch.equal(dropping(x), plain(x)), "drop path drops at evaluation"


@torch.no_grad()
def inputs_of(network, x):
    """[(path, Skip, its input)] of every call, while x passes through."""
    found, handles = [], []
    for path, skip in named_skips(network):
        note = lambda module, args, path=path: found.append((path, module, args[0].clone()))  # noqa: E731
        handles.append(skip.register_forward_pre_hook(note))
    network(x)
    for handle in handles:
        handle.remove()
    return found


@torch.no_grad()
def check_zero_bodies(network, x):
    """With a zero body every Skip computes its shortcut and what follows the join, nothing else."""
    network = evaluated(network)
    for path, skip, kept in inputs_of(network, x):
        handle = skip.body.register_forward_hook(lambda module, args, out: torch.zeros_like(out))
        found = skip(kept)
        handle.remove()
        expected = kept if skip.shortcut is None else skip.shortcut(kept)
        if skip.join in (append, concat):
            new = expected.new_zeros(len(kept), found.shape[1] - expected.shape[1], *expected.shape[2:])
            expected = torch.cat([expected, new] if skip.join is append else [new, expected], 1)
        expected = expected if skip.after is None else skip.after(expected.clone())
        assert torch.equal(found, expected), f"{path} is not its shortcut where its body gives zeros"


def check_zero_beginnings(network, x):
    """What begins at zero learns from the first step on: nothing after it stops its gradient. For fresh networks."""
    network = copy.deepcopy(network).train()
    zero = {
        name: p
        for name, p in network.named_parameters()
        if p.requires_grad and name.endswith(("weight", "scale")) and not p.any()
    }
    (network(x) * torch.randn(len(x), network.plan["num_classes"])).sum().backward()
    dead = [name for name, p in zero.items() if p.grad is None or not p.grad.any()]
    assert not dead, f"these begin at zero and get no gradient: {dead}"


@torch.no_grad()
def check_in_place(network, x):
    """No Skip changes its input, and the network leaves x as it was."""
    network, x = evaluated(network), x.clone()
    given = []

    def enter(module, args):
        given.append((args[0], args[0]._version))

    def leave(module, args, out, path):
        kept, version = given.pop()
        assert kept._version == version, f"{path} changes its input in place"

    for path, skip in named_skips(network):
        skip.register_forward_pre_hook(enter)
        skip.register_forward_hook(lambda module, args, out, path=path: leave(module, args, out, path))
    version = x._version
    network(x)
    assert x._version == version, "the network changes its input in place"


@torch.no_grad()
def check_shortcuts(network, x):
    """A shortcut has parameters only where it projects to another shape, or the plan says everywhere.

    But for a norm over the groups of a sample it is affine.
    """
    network = evaluated(network).double()
    for path, skip, kept in inputs_of(network, x.double()):
        if skip.shortcut is None:
            continue
        size = sum(p.numel() for p in skip.shortcut.parameters())
        same = skip.shortcut(kept).shape == kept.shape
        assert not (size and same) or network.plan["shortcut"] == "project", f"{path}: {size} parameters too many"
        for name, module in list(skip.shortcut.named_modules()):
            if isinstance(module, nn.GroupNorm):
                sw.set_submodule(skip.shortcut, name, nn.Identity())
        other = torch.randn_like(kept)
        middle, ends = skip.shortcut((kept + other) / 2), (skip.shortcut(kept) + skip.shortcut(other)) / 2
        assert torch.allclose(middle, ends, **NEAR), f"{path}: something in the shortcut is not affine"


CHECKERS = {name: check for name, check in list(globals().items()) if name.startswith("check_")}
