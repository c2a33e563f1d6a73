"""Dense networks with shortcuts: a policy network, and shortcuts around one and several layers.

    python examples/policy.py

The policy gets the raw values of a board of 14 x 16 fields with a player and a goal (224 inputs). It learns which of
four directions leads towards the goal (4 outputs).
"""

import torch
from torch import nn

import skipway as sw

HEIGHT, WIDTH = 14, 16
WAYS = ("up", "down", "left", "right")


def policy():
    """Create a network (224 -> 4) of dense layers and two residual blocks, with and without a final activation."""
    return sw.Chain(
        sw.Dense(HEIGHT * WIDTH, 128, torch.relu),
        sw.Skip(sw.Dense(128, 128), after=nn.ReLU()),
        sw.Dense(128, 32, torch.relu),
        sw.Skip(sw.Dense(32, 32)),
        sw.Dense(32, len(WAYS)),
    )


def skipping(layers):
    """Create a network with a Skip around several layers, joined by concat. Shape inference sets the sizes of None."""
    return sw.Chain(
        sw.Dense(HEIGHT * WIDTH, 64, torch.relu),
        sw.Skip([sw.Dense(None, 64, torch.relu) for _ in range(layers)], join="concat"),
        sw.Dense(None, len(WAYS)),
    )


def digits_network():
    """Create a network for 28 x 28 images of digits (-> 10) of convolutions and a residual dense layer."""
    return sw.Chain(
        nn.Conv2d(1, 32, 2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 2),
        nn.ReLU(),
        nn.Flatten(),
        sw.Dense(800, 100, torch.relu),
        sw.Skip(sw.Dense(100, 100, torch.relu)),
        sw.Dense(100, 10),
    )


def boards(count, seed):
    """Draw boards (count, 224) with player 1 and goal -1, and the direction of the longer distance between them."""
    draw = torch.Generator().manual_seed(seed)
    player, goal = torch.randint(HEIGHT * WIDTH, (2, count), generator=draw)
    keep = player != goal
    player, goal = player[keep], goal[keep]
    x = torch.zeros(len(player), HEIGHT * WIDTH)
    rows = torch.arange(len(player))
    x[rows, player], x[rows, goal] = 1.0, -1.0
    down, right = goal // WIDTH - player // WIDTH, goal % WIDTH - player % WIDTH
    vertical = down.abs() >= right.abs()
    return x, torch.where(vertical, torch.where(down < 0, 0, 1), torch.where(right < 0, 2, 3))


def train(network, epochs=5):
    """Train a network, and return its accuracy on unseen boards."""
    x, y = boards(40_000, seed=0)
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(500):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[batch]), y[batch]).backward()
            optimizer.step()
    x, y = boards(4000, seed=1)
    with torch.no_grad():
        return (network.eval()(x).argmax(1) == y).double().mean().item()


def main():
    torch.manual_seed(0)
    for name, network in (("policy", policy()), ("concat around 1", skipping(1)), ("concat around 3", skipping(3))):
        sw.output_shape(network, (1, HEIGHT * WIDTH))
        parameters = sum(p.numel() for p in network.parameters())
        print(f"{name:<16} {parameters:>7,} parameters, accuracy {train(network):.1%} on unseen boards")
    print(digits_network())


if __name__ == "__main__":
    main()
