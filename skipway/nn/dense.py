"""Dense: a linear layer with an activation, and with an input size that may be inferred.

Shapes: (*, in_features) -> (*, out_features).
"""

from torch import Tensor, nn

from skipway.errors import ShapeError
from skipway.nn.chain import Layer, as_module
from skipway.nn.named_errors import NamedErrors, named_errors
from skipway.nn.shape_inference import filling

__all__ = ["Dense"]


class Dense(NamedErrors):
    """A linear layer with an optional activation: `activation(x W^T + b)`.

    Args:
        in_features: size of the last axis of the input; None infers it by `output_shape`.
        out_features: size of the last axis of the output.
        activation: module or function applied to the output.
        bias: add a learned bias.

    Shapes:
        (*, in_features) -> (*, out_features).

    >>> import torch
    >>> Dense(4, 2, torch.relu)(torch.ones(3, 4)).shape
    torch.Size([3, 2])
    """

    channel_axis = -1

    def __init__(self, in_features: int | None, out_features: int, activation: Layer | None = None, bias: bool = True):
        super().__init__()
        if in_features is None:
            self.linear: nn.Linear = nn.LazyLinear(out_features, bias)
        else:
            self.linear = nn.Linear(in_features, out_features, bias)
        self.activation = None if activation is None else as_module(activation)

    @named_errors
    def forward(self, x: Tensor) -> Tensor:
        """Map (*, in_features) to (*, out_features)."""
        if self._is_uninferred() and not filling():
            raise ShapeError(
                "its in_features are uninferred. Call skipway.output_shape(network, input_shape) once before use."
            )
        y = self.linear(x)
        return y if self.activation is None else self.activation(y)

    def _is_uninferred(self) -> bool:
        # A state that was loaded has the sizes too.
        return isinstance(self.linear, nn.LazyLinear) and self.linear.has_uninitialized_params()

    def __repr__(self) -> str:
        in_features = None if self._is_uninferred() else self.linear.weight.shape[1]
        parts = [str(in_features), str(self.linear.out_features)]
        parts += [] if self.activation is None else [repr(self.activation)]
        parts += [] if self.linear.bias is not None else ["bias=False"]
        return f"Dense({', '.join(parts)})"
