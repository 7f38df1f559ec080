#!/usr/bin/env python3
"""Moondream 2 with random weights of its published shapes, written for this measurement: transformers has no class for it,
and its own code comes with the checkpoint.

usage: rival_moondream.py PIXELS PRECISION THREADS PROMPT_TOKENS NEW_TOKENS RUNS

The same work as upstream's, as PyTorch does it best: fused attention, keys and values in place, one prefill for picture and
prompt (upstream makes two), only the last row's logits, attention over what is there rather than the whole context. A
square picture of 378 pixels is one crop besides the whole (the same values, which upstream encodes twice), a larger one is
nine: 729 tokens of all."""
import sys
import time
from math import isqrt

import numpy
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, gelu, scaled_dot_product_attention

from random_weights import build
from shared import answers, ids, picture, report

SIDE, PATCH, GRID = 378, 14, 27
# Patches of a crop that it shares with the next one, on either side.
MARGIN = 4
WIDTH, INNER, DEPTH, HEADS = 1152, 4304, 27, 16
HIDDEN, TEXT_INNER, LAYERS, TEXT_HEADS, VOCABULARY, PROJECTOR = 2048, 8192, 24, 32, 51_200, 8192
CONTEXT, HEAD = 2048, HIDDEN // TEXT_HEADS
# The first token and a picture's see each other.
PREFIX = 1 + GRID * GRID


class Mlp(nn.Module):
    def __init__(self, inputs, inner, outputs):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(inputs, inner), nn.Linear(inner, outputs)

    def forward(self, x):
        return self.fc2(gelu(self.fc1(x), approximate="tanh"))


def split(x, heads):
    """[N, T, 3 x width] -> queries, keys and values [N, heads, T, size]."""
    return [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in x.chunk(3, -1)]


def merge(x):
    return x.transpose(1, 2).flatten(2)


class EncoderLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj, self.mlp = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), Mlp(WIDTH, INNER, WIDTH)

    def forward(self, x):
        x = x + self.proj(merge(scaled_dot_product_attention(*split(self.qkv(self.ln1(x)), HEADS))))
        return x + self.mlp(self.ln2(x))


class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch, self.positions = nn.Linear(3 * PATCH * PATCH, WIDTH), nn.Parameter(torch.empty(1, GRID * GRID, WIDTH))
        self.layers, self.norm = nn.ModuleList(EncoderLayer() for _ in range(DEPTH)), nn.LayerNorm(WIDTH)
        self.projector = Mlp(2 * WIDTH, PROJECTOR, HIDDEN)

    def forward(self, crops):
        """[1 + N x N, 3, SIDE, SIDE] -> [1, 729, HIDDEN]."""
        patches = crops.unflatten(2, (GRID, PATCH)).unflatten(4, (GRID, PATCH)).permute(0, 2, 4, 1, 3, 5)
        x = self.patch(patches.reshape(len(crops), GRID * GRID, -1)) + self.positions
        for layer in self.layers:
            x = layer(x)
        whole, *local = self.norm(x)
        stitched = adaptive_avg_pool2d(stitch(local), (GRID, GRID)).flatten(1).T
        return self.projector(torch.cat([whole, stitched], -1))[None]


def stitch(crops):
    """[729, WIDTH] each, row by row -> [WIDTH, rows, columns], without the margins where another crop begins."""
    n = isqrt(len(crops))
    grids = [crop.T.unflatten(1, (GRID, GRID)) for crop in crops]
    kept = [slice(MARGIN * (i > 0), GRID - MARGIN * (i < n - 1)) for i in range(n)]
    return torch.cat([torch.cat([grids[y * n + x][:, kept[y], kept[x]] for x in range(n)], 2) for y in range(n)], 1)


class DecoderLayer(nn.Module):
    """Attention and feed-forward part side by side; half of a head turns."""

    def __init__(self, dtype):
        super().__init__()
        self.ln, self.qkv, self.proj = nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, 3 * HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.mlp = Mlp(HIDDEN, TEXT_INNER, HIDDEN)
        self.keys, self.values = (torch.zeros(1, TEXT_HEADS, CONTEXT, HEAD, dtype=dtype) for _ in range(2))

    def forward(self, x, begin, turns, mask):
        normed, end = self.ln(x), begin + x.shape[1]
        queries, keys, values = split(self.qkv(normed), TEXT_HEADS)
        self.keys[:, :, begin:end], self.values[:, :, begin:end] = turn(keys, turns), values
        attended = scaled_dot_product_attention(turn(queries, turns), self.keys[:, :, :end], self.values[:, :, :end], mask)
        return x + self.proj(merge(attended)) + self.mlp(normed)


def turn(x, turns):
    cosines, sines = turns
    first, second, rest = x.split([HEAD // 4, HEAD // 4, HEAD // 2], -1)
    return torch.cat([first * cosines - second * sines, first * sines + second * cosines, rest], -1)


class Moondream(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.tower, self.embeddings = Tower(), nn.Embedding(VOCABULARY, HIDDEN)
        self.layers = nn.ModuleList(DecoderLayer(dtype) for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, VOCABULARY)
        angles = torch.arange(CONTEXT).double()[:, None] / 1e4 ** (torch.arange(HEAD // 4).double() / (HEAD // 4))
        self.turns = angles.cos().to(dtype), angles.sin().to(dtype)

    def forward(self, x, begin):
        """Embeddings [1, T, HIDDEN] of the positions from `begin` on -> the last one's logits."""
        end, mask = begin + x.shape[1], None
        if begin == 0:
            mask = torch.ones(end, end, dtype=torch.bool).tril()
            mask[:PREFIX, :PREFIX] = True
        for layer in self.layers:
            x = layer(x, begin, [part[begin:end] for part in self.turns], mask)
        return self.head(self.norm(x[:, -1]))


precision, (pixels, threads, tokens, new, runs) = sys.argv[2], map(int, [sys.argv[1], *sys.argv[3:7]])
dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
torch.set_num_threads(threads)
start = time.perf_counter()
model = build(lambda: Moondream(dtype), dtype)
load = time.perf_counter() - start


def inputs(seed):
    """A picture, and the first token besides those of the prompt."""
    return picture(seed, pixels), torch.tensor(ids(seed, 1 + tokens, VOCABULARY))[None]


def prepared(image):
    """The whole picture and its crops."""
    n, step = 1 if pixels <= SIDE else 3, SIDE - 2 * MARGIN * PATCH
    whole, large = (image.resize((side, side), Image.Resampling.LANCZOS) for side in (SIDE, n * step + SIDE - step))
    corners = [(x * step, y * step) for y in range(n) for x in range(n)]
    views = [numpy.asarray(view) for view in [whole, *(large.crop((x, y, x + SIDE, y + SIDE)) for x, y in corners)]]
    return (torch.from_numpy(numpy.stack(views)).permute(0, 3, 1, 2).to(dtype) / 255 - 0.5) / 0.5


def generate(given, stamps):
    image, text = given
    with torch.inference_mode():
        words = model.embeddings(text)
        x, begin = torch.cat([words[:, :1], model.tower(prepared(image)), words[:, 1:]], 1), 0
        for _ in range(new + 1):
            logits = stamps(None, model(x, begin))
            begin, x = begin + x.shape[1], model.embeddings(logits.argmax(-1))[None]


report(f"PyTorch {torch.__version__.split('+')[0]}", precision, load, answers(inputs, generate, new, PREFIX + tokens, runs))
