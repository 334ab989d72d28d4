"""A small residual network in plain torch, and the shapes it tells apart.

There is nothing to download: the convolutions keep their random weights (seeded, so every worker has the same), and
only the last layer is fitted, in closed form, to shapes drawn for the purpose. That takes a second or two and is enough
to tell a circle from a cross. For a trained network replace :func:`build` by a ``load_state_dict``.
"""

from __future__ import annotations

import random
from typing import Any, Final

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import nn

LABELS: Final = ("circle", "square", "triangle", "cross")
SIDE: Final = 64  # pixels
SAMPLES: Final = 800  # drawn to fit the last layer
RIDGE: Final = 1e-2  # keeps the fit from following the noise; relative to the features' mean square


def draw(label: str, seed: int) -> Image.Image:
    """One shape somewhere on a plain background, in two random colours."""
    dice = random.Random(f"{label} {seed}")
    ground = dice.randrange(256)
    ink = (ground + dice.randrange(96, 160)) % 256
    image = Image.new("RGB", (SIDE, SIDE), (ground,) * 3)
    pen = ImageDraw.Draw(image)
    half = dice.randrange(14, 24)
    x, y = (dice.randrange(half + 2, SIDE - half - 2) for _ in range(2))
    box = (x - half, y - half, x + half, y + half)
    fill = (ink,) * 3
    if label == "circle":
        pen.ellipse(box, fill)
    elif label == "square":
        pen.rectangle(box, fill)
    elif label == "triangle":
        pen.polygon([(x, y - half), (x - half, y + half), (x + half, y + half)], fill)
    else:
        arm = half // 3
        pen.rectangle((x - half, y - arm, x + half, y + arm), fill)
        pen.rectangle((x - arm, y - half, x + arm, y + half), fill)
    return image


def pixels(image: Image.Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """What the network reads: uint8 [64, 64, 3]."""
    return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al., 2016)."""

    def __init__(self, wide_in: int, wide_out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(wide_in, wide_out, 3, stride, 1, bias=False)
        self.norm = nn.GroupNorm(8, wide_out)
        self.second = nn.Conv2d(wide_out, wide_out, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(wide_in, wide_out, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.second(torch.relu(self.norm(self.first(x))))
        return torch.relu(inner + self.shortcut(x))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 5, 2, 2, bias=False)
        self.blocks = nn.Sequential(Block(32, 64, 2), Block(64, 128, 2))
        self.head = nn.Linear(256, len(LABELS))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [batch, 64, 64, 3] to float [batch, 256]. What counts is the contrast to the ground, not the colour."""
        x = images.float().mean(3).unsqueeze(1)
        x = (x - x[:, :, :1].mean((2, 3), keepdim=True)).abs()  # the topmost row is ground
        x = x / (x.amax((2, 3), keepdim=True) + 1)
        x = self.blocks(torch.relu(self.stem(x)))
        return torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [batch, labels]."""
        logits: torch.Tensor = self.head(self.features(images))
        return logits


@torch.inference_mode()
def build(seed: int = 0) -> Network:
    """The network with its last layer fitted by ridge regression."""
    torch.manual_seed(seed)
    network = Network().eval()
    drawn = [(draw(LABELS[number % len(LABELS)], number), number % len(LABELS)) for number in range(SAMPLES)]
    inputs = torch.from_numpy(np.stack([pixels(image) for image, _label in drawn]))
    features = network.features(inputs).double()
    targets = nn.functional.one_hot(torch.tensor([label for _image, label in drawn]), len(LABELS)).double()
    mean = features.mean(0)
    centred = features - mean
    gram = centred.T @ centred
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram))
    weights = torch.linalg.solve(gram, centred.T @ (targets - targets.mean(0)))
    sharpness = 10  # regression gives 0 to 1; a softmax wants them further apart
    network.head.weight.copy_(sharpness * weights.T)
    network.head.bias.copy_(sharpness * (targets.mean(0) - mean @ weights))
    return network
