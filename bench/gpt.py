"""A GPT-like decoder: small enough to train on two cores, large enough to be worth measuring."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

VOCABULARY = 8192
WIDTH = 512
HEADS = 8
LAYERS = 7
CONTEXT = 128


class Block(nn.Module):
    """Attention and a feed-forward layer, each preceded by a layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(WIDTH)
        self.query_key_value = nn.Linear(WIDTH, 3 * WIDTH)
        self.project = nn.Linear(WIDTH, WIDTH)
        self.norm_2 = nn.LayerNorm(WIDTH)
        self.expand = nn.Linear(WIDTH, 4 * WIDTH)
        self.contract = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, WIDTH) to the same shape."""
        batch, length, _ = x.shape
        split = self.query_key_value(self.norm_1(x)).view(batch, length, 3, HEADS, WIDTH // HEADS)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.project(attended.transpose(1, 2).reshape(batch, length, WIDTH))
        added: Tensor = self.contract(functional.gelu(self.expand(self.norm_2(x))))
        return x + added


class Decoder(nn.Module):
    """A decoder of 26.3 million parameters whose output layer is the transposed embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Token numbers (batch, length) to logits (batch, length, VOCABULARY)."""
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return functional.linear(self.norm(x), self.tokens.weight)

    def loss(self, tokens: Tensor) -> Tensor:
        """The mean cross entropy of each next token."""
        logits = self(tokens[:, :-1])
        return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def adamw(model: nn.Module) -> torch.optim.AdamW:
    """The optimizer whose moments are two thirds of the state."""
    return torch.optim.AdamW(model.parameters(), lr=3e-4)


def train_step(model: Decoder, optimizer: torch.optim.Optimizer, tokens: Tensor) -> None:
    """One step of training on a batch."""
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(model.loss(tokens))
    optimizer.step()
