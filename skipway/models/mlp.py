"""Feed-forward networks with shortcuts, for tables and other vectors of numbers.

Shapes: (B, in_features), or (B, *) with in_features numbers on the further axes -> (B, num_classes). With K
`categories`, the last K inputs are category indices, stored as whole numbers.
Sources: residual, He et al. 2015, arXiv:1512.03385; norm first, as suits tables, Gorishniy et al. 2021,
arXiv:2106.11959; highway, Srivastava et al. 2015, arXiv:1505.00387; dense, Huang et al. 2016, arXiv:1608.06993; ReZero,
Bachlechner et al. 2020, arXiv:2003.04887; SkipInit, De and Smith 2020, arXiv:2002.10444; LayerScale, Touvron et al.
2021, arXiv:2103.17239; Fixup, Zhang et al. 2019, arXiv:1901.09321.
Pieces and members: see `table_layers`.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from skipway.errors import InputError
from skipway.kernels.layer_dispatch import FUSED_STEPS
from skipway.models.architecture_plan import Plan
from skipway.models.head import classifier
from skipway.models.table_layers import Embed, Members, MergeMembers, Pieces
from skipway.models.table_stem import run_stem
from skipway.nn.blocks import Shift, init_fixup, join_of, linear_rates, zero_last
from skipway.nn.chain import Chain
from skipway.nn.dropout import Dropout
from skipway.nn.joins import Gate, Scale
from skipway.nn.skip import Skip, named_skips
from skipway.nn.stochastic_depth import DROP_MODES

__all__ = ["JOINS", "NETWORKS", "NORMS", "ResMLPPlan", "residual_block", "resmlp"]

JOINS = ("add", "concat", "gate", "scale", "layerscale", "none")
NORMS = ("batch", "layer", "none", "fixup")
_MAX_PIECES, _MAX_MEMBERS = 1_000_000, 1024
_MAX_BLOCKS = 3000  # a malicious plan must not fill the memory
FUSED_STEPS[Pieces] = run_stem


@dataclass(frozen=True, kw_only=True)
class ResMLPPlan(Plan):
    """Values that define one feed-forward network.

    Args:
        layers: blocks, each a Skip around norm, linear layer, ReLU, dropout and linear layer.
        width: features of the blocks. With the join "concat", those of the first block; each block adds `growth`.
        hidden: features inside a block, as a multiple of its input features.
        growth: features that each block adds, with the join "concat".
        join: "add", "concat" (dense), "gate" (highway), "scale" (ReZero and SkipInit), "layerscale", or "none" (the
            plain network of the same layers).
        norm: "batch", "layer", "none", or "fixup" (Fixup's initialization, shifts and scales; requires the join "add").
        dropout: dropout rate inside a block.
        drop_path: stochastic-depth rate of the last block; it rises linearly from 0 over the depth.
        drop_mode: "row" or "batch": see `Skip`.
        in_features: number of inputs, categories included.
        num_classes: number of outputs; 0 for no classifier, so that the outputs are the features before it.
        categories: number of indices of each categorical column. These columns are last in the input.
        embedding: maximum size of the embedding of a category; smaller for columns with few categories.
        pieces: number of pieces of each numeric column, which come first in the input, see `Pieces`; () for none.
        members: members of the ensemble, which share all weights of the blocks; see `Members`.
        drop_rate: dropout rate before the head.

    >>> ResMLPPlan(in_features=30, num_classes=2).width
    128
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
    pieces: tuple[int, ...] = ()
    members: int = 1
    drop_rate: float = 0.0

    def __post_init__(self) -> None:
        self._check_head()
        self._check_choices(join=JOINS, norm=NORMS, drop_mode=DROP_MODES)
        self._check_whole_numbers("layers", "width", "growth", "in_features", "categories", "embedding", "members")
        self._check_shares("dropout", "drop_path")
        if not 0 < self._number("hidden") <= 64:
            raise InputError(f"resmlp: expected hidden above 0 and up to 64, got {self.hidden}. Change hidden.")
        object.__setattr__(self, "hidden", float(self.hidden))
        if self.layers > _MAX_BLOCKS:
            raise InputError(f"resmlp: expected at most {_MAX_BLOCKS} layers, got {self.layers}. Reduce layers.")
        if self.join in ("none", "concat", "gate") and self.drop_path:
            raise InputError(
                f'resmlp: expected drop_path=0 for join "{self.join}", got {self.drop_path}. Remove '
                'drop_path, or use join "add".'
            )
        if self.norm == "fixup" and self.join != "add":
            raise InputError(f'resmlp with norm "fixup": expected join "add", got "{self.join}". Remove join.')
        if len(self.categories) > self.in_features:
            raise InputError(
                f"resmlp: expected at least {len(self.categories)} in_features, one for each of the "
                f"categories, got {self.in_features}. Increase in_features."
            )
        self._check_table_inputs()

    def _check_table_inputs(self) -> None:
        self._check_whole_numbers("pieces", minimum=0)
        numbers = self.in_features - len(self.categories)
        if self.pieces and len(self.pieces) != numbers:
            raise InputError(
                f"resmlp: expected pieces for each of the {numbers} numbers, got {len(self.pieces)}. Change pieces."
            )
        if sum(self.pieces) > _MAX_PIECES or self.members > _MAX_MEMBERS:
            raise InputError(
                f"resmlp: expected at most {_MAX_PIECES:,} pieces and {_MAX_MEMBERS} members, got "
                f"{sum(self.pieces):,} and {self.members}. Reduce them."
            )


def resmlp(plan: ResMLPPlan) -> Chain:
    """Build the feed-forward network of `plan` with random initial weights."""
    width = plan.width
    blocks: list[nn.Module] = []
    for rate in linear_rates(plan.drop_path, plan.layers):
        blocks.append(_block(plan, width, rate))
        width += plan.growth if plan.join == "concat" else 0
    numbers = plan.in_features - len(plan.categories) + sum(plan.pieces)
    embedding, members = Embed(numbers, plan.categories, plan.embedding), plan.members
    merge = MergeMembers(members, has_heads=bool(plan.num_classes))
    network = Chain(
        flatten=nn.Flatten(),
        **({"pieces": Pieces(plan.pieces)} if any(plan.pieces) else {}),
        **({"embed": embedding} if plan.categories else {}),
        **({"members": Members(members, embedding.out_features)} if members > 1 else {}),
        stem=nn.Linear(embedding.out_features, plan.width),
        stage1=Chain(*blocks),
        **_norm(plan, width),
        act=nn.ReLU(),
        **classifier(width, plan.num_classes * members, drop_rate=plan.drop_rate),
        **({"merge": merge} if members > 1 else {}),
    )
    _initialize(network, plan)
    return network


def residual_block(plan: ResMLPPlan, width: int) -> nn.Module:
    """Return one initialized block of `plan` for `width` features: (B, width) -> (B, width)."""
    block = _block(plan, width, 0.0)
    _initialize(Chain(block), plan)
    return block


def _block(plan: ResMLPPlan, width: int, drop_path: float) -> nn.Module:
    inner = max(1, round(width * plan.hidden))
    out = plan.growth if plan.join == "concat" else width
    fixup = plan.norm == "fixup"
    body = Chain(
        **_norm(plan, width),
        linear1=nn.Linear(width, inner, bias=not fixup),
        **({"shift1": Shift()} if fixup else {}),
        act=nn.ReLU(),
        **({"dropout": Dropout(plan.dropout)} if plan.dropout else {}),
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


def _initialize(network: Chain, plan: ResMLPPlan) -> None:
    gates = {id(join.transform) for join in network.modules() if isinstance(join, Gate)}  # gates start nearly closed
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
