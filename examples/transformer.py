"""A pre-norm transformer encoder of Skips, which learns to tell if a sequence is a palindrome.

    python examples/transformer.py [--steps 600]

Sequences are (B, T, C), so the channels are on the last axis: `dim=-1`. The padding mask is an extra input of the
Chain: it goes to each self-attention, and to no other layer. Source: Vaswani et al. 2017, arXiv:1706.03762, with the
norms first as in Xiong et al. 2020, arXiv:2002.04745.
"""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

import skipway as sw

TOKENS, LENGTH = 4, 8


class SelfAttention(nn.Module):
    """Self-attention over (B, T, C); `padding` (B, T) is True for positions to ignore."""

    channel_axis = -1

    def __init__(self, channels, heads):
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)

    def forward(self, x, padding=None):
        return self.attention(x, x, x, key_padding_mask=padding, need_weights=False)[0]


def block(channels, heads, hidden):
    """Build one layer of the encoder: self-attention and two linear layers, each with a norm first and a shortcut."""
    return sw.Chain(
        attention=sw.Skip([nn.LayerNorm(channels), SelfAttention(channels, heads)]),
        feedforward=sw.Skip(
            [nn.LayerNorm(channels), nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels)]
        ),
    )


def encoder(depth, channels, heads, hidden):
    """Build an encoder of `depth` layers and a last norm."""
    return sw.Chain(*(block(channels, heads, hidden) for _ in range(depth)), norm=nn.LayerNorm(channels), dim=-1)


class Classifier(nn.Module):
    """Token and position embeddings, an encoder, and a head on the mean of all positions that are no padding."""

    def __init__(self, depth=2, channels=32, heads=4):
        super().__init__()
        self.tokens = nn.Embedding(TOKENS, channels)
        self.positions = nn.Parameter(torch.randn(LENGTH, channels) * 0.02)
        self.encoder = encoder(depth, channels, heads, 2 * channels)
        self.head = nn.Linear(channels, 2)

    def forward(self, tokens, padding):
        x = self.encoder(self.tokens(tokens) + self.positions, padding=padding)
        kept = (~padding).unsqueeze(-1)
        return self.head((x * kept).sum(1) / kept.sum(1))


def batch(size, generator):
    """Return tokens (B, T), their padding and a label: 1 for a palindrome, of which half of the batch is one."""
    tokens = torch.randint(TOKENS, (size, LENGTH), generator=generator)
    length = LENGTH - 2 * torch.randint(2, (size, 1), generator=generator)
    places = torch.arange(LENGTH).expand(size, -1)
    mirrored = tokens.gather(1, (length - 1 - places).clamp(min=0))
    is_palindrome = torch.rand(size, 1, generator=generator) < 0.5
    tokens = torch.where(is_palindrome & (places >= length // 2), mirrored, tokens)
    padding = places >= length
    labels = ((tokens == tokens.gather(1, (length - 1 - places).clamp(min=0))) | padding).all(1).long()
    return tokens, padding, labels


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600)
    steps = parser.parse_args(words).steps
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    network = Classifier()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        tokens, padding, labels = batch(256, generator)
        loss = F.cross_entropy(network(tokens, padding), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    tokens, padding, labels = batch(2000, generator)
    with torch.no_grad():
        accuracy = (network.eval()(tokens, padding).argmax(1) == labels).float().mean().item()
    print(f"{accuracy:.1%} of 2,000 new sequences after {steps} steps")
    return accuracy


if __name__ == "__main__":
    main()
