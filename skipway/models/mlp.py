"""Feed-forward networks with shortcuts, for tables and anything else that is a row of numbers.

Shapes: (B, in_features), or (B, *) whose further axes hold in_features numbers -> (B, num_classes). With K `categories`
the last K of the in_features are slots of categories: whole numbers that are looked up.
Sources: residual, He et al. 2015, arXiv:1512.03385; norm first, as tables like it, Gorishniy et al. 2021,
arXiv:2106.11959; highway, Srivastava et al. 2015, arXiv:1505.00387; dense, Huang et al. 2016, arXiv:1608.06993; ReZero,
Bachlechner et al. 2020, arXiv:2003.04887; SkipInit, De and Smith 2020, arXiv:2002.10444; LayerScale, Touvron et al.
2021, arXiv:2103.17239; Fixup, Zhang et al. 2019, arXiv:1901.09321.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from skipway.errors import InputError
from skipway.models.architecture_plan import Plan
from skipway.nn.blocks import Shift, init_fixup, join_of, linear_rates, zero_last
from skipway.nn.chain import Chain
from skipway.nn.joins import Gate, Scale
from skipway.nn.skip import Skip, named_skips
from skipway.nn.stochastic_depth import DROP_MODES

__all__ = ["JOINS", "NETWORKS", "NORMS", "Embed", "ResMLPPlan", "resmlp"]

JOINS = ("add", "concat", "gate", "scale", "layerscale", "none")
NORMS = ("batch", "layer", "none", "fixup")
_MAX_BLOCKS = 3000  # a file's plan must not be able to fill the memory


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
    categories: slots of each category column; these columns stand last in the input.
    embedding: numbers that stand for a category, or fewer where a column has few slots.
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
    categories: tuple[int, ...] = ()
    embedding: int = 16

    def __post_init__(self) -> None:
        self._check_choices(join=JOINS, norm=NORMS, drop_mode=DROP_MODES)
        self._check_whole_numbers("layers", "width", "growth", "in_features", "num_classes", "categories", "embedding")
        self._check_shares("dropout", "drop_path")
        if not isinstance(self.hidden, int | float) or not 0 < self.hidden <= 64:
            raise InputError(f"resmlp: hidden is a multiple above 0 and up to 64, not {self.hidden}")
        object.__setattr__(self, "hidden", float(self.hidden))
        if self.layers > _MAX_BLOCKS:
            raise InputError(f"resmlp has at most {_MAX_BLOCKS} layers, not {self.layers}; give fewer")
        if self.join in ("none", "concat", "gate") and self.drop_path:
            raise InputError(f'resmlp cannot leave a block out at join "{self.join}"; use no drop_path, or join "add"')
        if self.norm == "fixup" and self.join != "add":
            raise InputError(f'resmlp with norm "fixup" joins by "add", not "{self.join}"; leave join out')
        if len(self.categories) > self.in_features:
            raise InputError(
                f"resmlp has {len(self.categories)} categories among {self.in_features} in_features; "
                "each is one of them: give as many more"
            )


class Embed(nn.Module):
    """(B, F + K) -> (B, F + numbers that stand for the K categories); a slot outside a table is its slot 0.

    Slots 0 and 1, of what was never seen and of what is missing, begin as zeros: as no category at all.
    """

    def __init__(self, numbers: int, categories: tuple[int, ...], max_width: int):
        super().__init__()
        self.numbers, self.categories, self.max_width = numbers, tuple(categories), max_width
        widths = [min(max_width, (slots + 1) // 2) for slots in self.categories]
        self.tables = nn.ModuleList(nn.Embedding(*size) for size in zip(self.categories, widths, strict=True))
        self.out_features = numbers + sum(widths)
        for table in self.tables:
            assert isinstance(table, nn.Embedding)
            nn.init.normal_(table.weight, std=table.embedding_dim**-0.5)
            with torch.no_grad():
                table.weight[:2] = 0

    def forward(self, x: Tensor) -> Tensor:
        """Numbers as they are, then what stands for each category."""
        slots = x[:, self.numbers :].long()
        parts = [x[:, : self.numbers]]
        for i, (table, count) in enumerate(zip(self.tables, self.categories, strict=True)):
            slot = slots[:, i]
            parts.append(table(torch.where((slot >= 0) & (slot < count), slot, 0)))
        return torch.cat(parts, dim=1)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.numbers}, {self.categories}, {self.max_width}"


def resmlp(plan: ResMLPPlan) -> Chain:
    """The feed-forward network of `plan`, with fresh weights."""
    width = plan.width
    blocks: list[nn.Module] = []
    for rate in linear_rates(plan.drop_path, plan.layers):
        blocks.append(_block(plan, width, rate))
        width += plan.growth if plan.join == "concat" else 0
    embedding = Embed(plan.in_features - len(plan.categories), plan.categories, plan.embedding)
    network = Chain(
        flatten=nn.Flatten(),
        **({"embed": embedding} if plan.categories else {}),
        stem=nn.Linear(embedding.out_features, plan.width),
        stage1=Chain(*blocks),
        **_norm(plan, width),
        act=nn.ReLU(),
        head=nn.Linear(width, plan.num_classes),
    )
    _initialise(network, plan)
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


def _initialise(network: Chain, plan: ResMLPPlan) -> None:
    gates = {id(join.transform) for join in network.modules() if isinstance(join, Gate)}  # gates begin nearly closed
    for module in network.modules():
        if isinstance(module, nn.Linear) and id(module) not in gates:
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if plan.norm == "fixup":
        init_fixup(network)
    elif plan.join == "add":
        for _, skip in named_skips(network):
            assert isinstance(skip.body, Chain)
            zero_last(skip.body)


NETWORKS: dict[str, dict[str, Any]] = {"resmlp": {}}
