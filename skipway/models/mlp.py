"""Feed-forward networks with shortcuts, for tables and anything else that is a row of numbers.

Shapes: (B, in_features), or (B, *) whose further axes hold in_features numbers -> (B, num_classes).
Sources: residual, He et al. 2015, arXiv:1512.03385; norm first, as tables like it, Gorishniy et al. 2021,
arXiv:2106.11959; highway, Srivastava et al. 2015, arXiv:1505.00387; dense, Huang et al. 2016, arXiv:1608.06993; ReZero,
Bachlechner et al. 2020, arXiv:2003.04887; SkipInit, De and Smith 2020, arXiv:2002.10444; LayerScale, Touvron et al.
2021, arXiv:2103.17239; Fixup, Zhang et al. 2019, arXiv:1901.09321.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from skipway.blocks import Shift, initialise_fixup, join_of, rising, zero_last
from skipway.drop_path import DROP_MODES
from skipway.errors import InputError
from skipway.joins import Gate, Scale
from skipway.models.plan import Plan
from skipway.skip import Chain, Skip, walk

__all__ = ["JOINS", "NETWORKS", "NORMS", "ResMLPPlan", "resmlp"]

JOINS = ("add", "concat", "gate", "scale", "layerscale", "none")
NORMS = ("batch", "layer", "none", "fixup")
_MOST_BLOCKS = 3000  # a file's plan must not be able to fill the memory


@dataclass(frozen=True, kw_only=True)
class ResMLPPlan(Plan):
    """What one feed-forward network is made of.

    layers: blocks, each a Skip around norm, linear layer, ReLU, dropout, linear layer.
    width: numbers that travel around the blocks; with join "concat" those of the first, each block adds `growth`.
    hidden: numbers inside a block, as a multiple of what it is given.
    growth: numbers that each block adds with join "concat".
    join: "add", "concat" (dense), "gate" (highway), "scale" (ReZero and SkipInit), "layerscale", or "none": the plain
        network of the same layers.
    norm: "batch", "layer", "none", or "fixup" (Fixup's initialisation, shifts and scales; join "add").
    dropout: chance to drop a number inside a block.
    drop_path: chance to leave a block out while training, rising evenly from 0 to this over the depth.
    drop_mode: "row" or "batch": see `Skip`.
    in_features, num_classes: numbers in, outputs.
    """

    FAMILY: ClassVar[str] = "resmlp"

    layers: int = 4
    width: int = 128
    hidden: float = 2.0
    growth: int = 32
    join: str = "add"
    norm: str = "batch"
    dropout: float = 0.0
    drop_path: float = 0.0
    drop_mode: str = "row"
    in_features: int = 64
    num_classes: int = 10

    def __post_init__(self) -> None:
        self._one_of(join=JOINS, norm=NORMS, drop_mode=DROP_MODES)
        self._whole("layers", "width", "growth", "in_features", "num_classes")
        self._share("dropout", "drop_path")
        if not isinstance(self.hidden, int | float) or not 0 < self.hidden <= 64:
            raise InputError(f"resmlp: hidden is a multiple above 0 and up to 64, not {self.hidden}")
        object.__setattr__(self, "hidden", float(self.hidden))
        if self.layers > _MOST_BLOCKS:
            raise InputError(f"resmlp has at most {_MOST_BLOCKS} layers, not {self.layers}; give fewer")
        if self.join in ("none", "concat", "gate") and self.drop_path:
            raise InputError(f'resmlp cannot leave a block out at join "{self.join}"; use no drop_path, or join "add"')
        if self.norm == "fixup" and self.join != "add":
            raise InputError(f'resmlp with norm "fixup" joins by "add", not "{self.join}"; leave join out')


def resmlp(plan: ResMLPPlan) -> Chain:
    """The feed-forward network of `plan`, with fresh weights."""
    width = plan.width
    blocks: list[nn.Module] = []
    for rate in rising(plan.drop_path, plan.layers):
        blocks.append(_block(plan, width, rate))
        width += plan.growth if plan.join == "concat" else 0
    network = Chain(
        flatten=nn.Flatten(),
        stem=nn.Linear(plan.in_features, plan.width),
        stage1=Chain(*blocks),
        **_norm(plan, width),
        act=nn.ReLU(),
        head=nn.Linear(width, plan.num_classes),
    )
    _begin(network, plan)
    return network


def _block(plan: ResMLPPlan, width: int, drop_path: float) -> nn.Module:
    inner = max(1, round(width * plan.hidden))
    out = plan.growth if plan.join == "concat" else width
    fixup = plan.norm == "fixup"
    body = Chain(
        **_norm(plan, width),
        linear1=nn.Linear(width, inner, bias=not fixup),
        **({"shift1": Shift()} if fixup else {}),
        act=nn.ReLU(),
        **({"dropout": nn.Dropout(plan.dropout)} if plan.dropout else {}),
        **({"shift2": Shift()} if fixup else {}),
        linear2=nn.Linear(inner, out, bias=not fixup),
        **({"shift3": Shift()} if fixup else {}),
    )
    if plan.join == "none":
        return Chain(body=body, act=nn.ReLU())
    join = Scale(init=1.0) if fixup else join_of(plan.join, width, plan.layers)
    return Skip(body, join=join, drop_path=drop_path, drop_mode=plan.drop_mode)


def _norm(plan: ResMLPPlan, width: int) -> dict[str, nn.Module]:
    if plan.norm == "fixup":
        return {"shift": Shift()}
    if plan.norm == "none":
        return {}
    return {"norm": nn.BatchNorm1d(width) if plan.norm == "batch" else nn.LayerNorm(width)}


def _begin(network: Chain, plan: ResMLPPlan) -> None:
    own = {id(join.transform) for join in network.modules() if isinstance(join, Gate)}  # gates begin nearly closed
    for module in network.modules():
        if isinstance(module, nn.Linear) and id(module) not in own:
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if plan.norm == "fixup":
        initialise_fixup(network)
    elif plan.join == "add":
        for _, skip in walk(network):
            assert isinstance(skip.body, Chain)
            zero_last(skip.body)


NETWORKS: dict[str, dict[str, Any]] = {"resmlp": {}}
