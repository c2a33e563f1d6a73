"""Feature columns: a network of images whose features meet the columns of a table, before its head.

The encoded columns are embedded, concatenated to the features of the trunk, and mixed by one residual block, whose last
layer starts at zero: at first, the outputs are a linear function of features and columns.

Shapes: features (B, D), rows (B, F + K) with F numbers and K category indices -> (B, D + E), E embedded columns.
Sources: norm first in the residual block, as suits tables, Gorishniy et al. 2021, arXiv:2106.11959.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from skipway.errors import InputError
from skipway.models.mlp import ResMLPPlan, residual_block
from skipway.models.table_layers import Embed
from skipway.nn.chain import Chain
from skipway.nn.joins import concat

__all__ = ["COLUMNS", "MIX", "FeatureColumns", "add_feature_columns"]

COLUMNS, MIX = "columns", "mix"  # names of the layers before the head
_EMBEDDING = 16  # maximum size of the embedding of a category
_HIDDEN = 0.25  # hidden features of the block, as a share of its inputs


class FeatureColumns(nn.Module):
    """Concatenate embedded columns to the features of images: (B, D), (B, F + K) -> (B, D + E).

    Args:
        in_features: number of encoded columns F + K.
        categories: number of indices of each of the K categorical columns, which come last.
        embedding: maximum size of the embedding of a category.

    >>> import torch
    >>> FeatureColumns(3, (4,))(torch.zeros(2, 8), rows=torch.tensor([[0.5, 1.5, 3.0]] * 2)).shape
    torch.Size([2, 12])
    """

    def __init__(self, in_features: int, categories: tuple[int, ...] = (), embedding: int = _EMBEDDING):
        super().__init__()
        self.embed = Embed(in_features - len(categories), categories, embedding)

    @property
    def out_features(self) -> int:
        """Number E of embedded columns."""
        return self.embed.out_features

    def forward(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return the features, followed by the numbers and the embeddings of the categories.

        Raises:
            InputError: there are no rows.
        """
        if rows is None:
            raise InputError(
                "cannot compute the outputs: expected images with their feature columns, got images alone. Pass both, "
                "as in network(images, rows=rows), or a table that names the images to skipway.predict."
            )
        return concat(x, self.embed(rows).to(x.dtype))


@dataclass(frozen=True, kw_only=True)
class _Columns:
    """Value of the key `columns` of a plan: the encoded columns next to the images."""

    in_features: int
    categories: tuple[int, ...] = ()

    @classmethod
    def of(cls, values: Any) -> "_Columns":
        try:
            columns = cls(**{**values, "categories": tuple(values.get("categories", ()))})
            counts = (columns.in_features, *columns.categories)
            is_usable = all(type(count) is int and 1 <= count <= 100_000 for count in counts)
        except (TypeError, AttributeError):
            is_usable = False
        if not is_usable or not len(columns.categories) <= columns.in_features <= 10_000:
            raise InputError(
                "cannot read the plan: expected columns with in_features and categories as positive integers, got "
                f"{str(values)[:80]!r}. Write the file again."
            )
        return columns


def add_feature_columns(network: Chain, columns: Any) -> Chain:
    """Return a network of images with feature columns before its head.

    Args:
        network: a network whose layer `head` is linear.
        columns: mapping with `in_features` and `categories`, as the key `columns` of a plan holds it.

    Raises:
        InputError: the values cannot be used, or the network has no linear head.
    """
    values = _Columns.of(columns)
    layers = OrderedDict(network.named_children())
    head = layers.pop("head", None)
    if not isinstance(head, nn.Linear):
        raise InputError(
            "cannot add feature columns: expected a network of images with a linear head, got one without. Use another "
            "--model."
        )
    join = FeatureColumns(values.in_features, values.categories)
    width = head.in_features + join.out_features
    block = residual_block(ResMLPPlan(hidden=_HIDDEN, width=width, in_features=width), width)
    return Chain(
        **layers, **{COLUMNS: join, MIX: block}, head=nn.Linear(width, head.out_features, head.bias is not None)
    )
