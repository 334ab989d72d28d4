"""A small network that marks, pixel by pixel, what belongs to the thing that was pointed at. Made on the spot.

As large ones do that are asked by points (Kirillov et al., "Segment Anything", 2023) it reads the image and the points
as two planes more, one of those inside and one of those outside. It is taught on drawn shapes, which takes some ten
seconds on one CPU, and knows nothing else. For a trained network replace :func:`trained` by a ``load_state_dict``.
"""

from __future__ import annotations

import random
from typing import Any, Final

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import nn

SIDE: Final = 64  # pixels of what the network reads
SPREAD: Final = 3.0  # pixels: how far a point is seen around it
STEPS: Final = 160
BATCH: Final = 8

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Points = list[tuple[float, float, bool]]  # x and y from 0 to 1, and whether it lies inside


def scene(seed: int, side: int = SIDE) -> tuple[Image.Image, list[Pixels]]:
    """Some shapes on a plain ground, and the mask of each as far as it is seen: uint8 [side, side], 0 or 1."""
    dice = random.Random(seed)
    inks = [tuple(dice.randrange(256) for _ in range(3)) for _ in range(4)]
    image, owner = Image.new("RGB", (side, side), inks[3]), Image.new("L", (side, side), 0)
    for number, ink in enumerate(inks[:3], 1):
        half_x, half_y = (dice.randrange(side // 8, side // 4) for _ in range(2))
        x, y = (dice.randrange(side // 6, side - side // 6) for _ in range(2))
        box = (x - half_x, y - half_y, x + half_x, y + half_y)
        for canvas, fill in ((image, ink), (owner, number)):
            pen = ImageDraw.Draw(canvas)
            (pen.ellipse if number % 2 else pen.rectangle)(box, fill)
    owners = np.asarray(owner)
    return image, [(owners == number).astype(np.uint8) for number in (1, 2, 3)]


def point_in(mask: Pixels, dice: random.Random) -> tuple[float, float]:
    """Some point of a mask that is not empty, from 0 to 1."""
    rows, columns = np.nonzero(mask)
    at = dice.randrange(len(rows))
    return (columns[at] + 0.5) / mask.shape[1], (rows[at] + 0.5) / mask.shape[0]


def planes(image: Image.Image, points: Points) -> np.ndarray[Any, np.dtype[np.float32]]:
    """What the network reads: float32 [5 + 3, SIDE, SIDE], the colours, the points, and how unlike the colour of the
    points inside each pixel's is."""
    pixels = np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.float32) / 255
    grid = (np.arange(SIDE, dtype=np.float32) + 0.5) / SIDE
    seen = np.zeros((2, SIDE, SIDE), np.float32)
    unlike = np.ones((3, SIDE, SIDE), np.float32)
    for x, y, inside in points:
        far = ((grid[None, :] - x) ** 2 + (grid[:, None] - y) ** 2) * (SIDE / SPREAD) ** 2
        seen[0 if inside else 1] = np.maximum(seen[0 if inside else 1], np.exp(-far))
        if inside:
            own = pixels[min(SIDE - 1, int(y * SIDE)), min(SIDE - 1, int(x * SIDE))]
            unlike = np.minimum(unlike, np.abs(pixels - own).transpose(2, 0, 1))
    return np.concatenate([pixels.transpose(2, 0, 1), seen, unlike])


class Network(nn.Module):
    """Down twice, up twice, with what was seen on the way down beside it (Ronneberger et al., 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = _block(8, 8, 1), _block(8, 16, 2), _block(16, 32, 2)
        self.up = _block(32 + 16, 16, 1)
        self.last = _block(16 + 8, 8, 1)
        self.head = nn.Conv2d(8, 1, 1)

    def forward(self, read: torch.Tensor) -> torch.Tensor:
        """[batch, 8, SIDE, SIDE] to logits [batch, SIDE, SIDE]."""
        fine = self.first(read)
        middle = self.second(fine)
        coarse = self.third(middle)
        middle = self.up(torch.cat([nn.functional.interpolate(coarse, scale_factor=2.0), middle], 1))
        fine = self.last(torch.cat([nn.functional.interpolate(middle, scale_factor=2.0), fine], 1))
        logits: torch.Tensor = self.head(fine)[:, 0]
        return logits


def _block(wide_in: int, wide_out: int, stride: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(wide_in, wide_out, 3, stride, 1), nn.GroupNorm(4, wide_out), nn.ReLU(),
        nn.Conv2d(wide_out, wide_out, 3, 1, 1), nn.ReLU(),
    )  # fmt: skip


def trained() -> Network:
    """Always the same, from one seed."""
    torch.manual_seed(0)
    dice = random.Random(0)
    network = Network()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for step in range(STEPS):
        read, wanted = [], []
        for number in range(BATCH):
            image, masks = scene(1_000_000 + step * BATCH + number)
            mask = dice.choice([mask for mask in masks if mask.any()])
            points: Points = [(*point_in(mask, dice), True) for _ in range(dice.choice((1, 1, 2)))]
            if dice.random() < 0.5:
                points.append((*point_in(1 - mask, dice), False))
            read.append(planes(image, points))
            wanted.append(mask)
        logits = network(torch.from_numpy(np.stack(read)))
        loss = nn.functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(np.stack(wanted)).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()
