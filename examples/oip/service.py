"""Two models of numpy for clients of the Open Inference Protocol: Triton's `simple`, and one that names colours.

What a model takes and gives stands in the annotation of `forward`; the first dimension of a tensor is the client's own.
Requests of many clients come as a list and are computed together.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, TypedDict

import numpy as np
from numpy.typing import NDArray

from engine import ClientError, Tensor, Worker

Numbers = Annotated[NDArray[np.int32], Tensor("INT32", [-1, 16])]


class Pair(TypedDict):
    INPUT0: Numbers
    INPUT1: Numbers


class Results(TypedDict):
    OUTPUT0: Numbers
    OUTPUT1: Numbers


class Simple(Worker):
    """Adds and subtracts, as the model of this name does that Triton's own example clients ask."""

    example = [Pair(INPUT0=np.ones((1, 16), np.int32), INPUT1=np.ones((1, 16), np.int32))]

    def forward(self, data: list[Pair]) -> list[Results | ClientError]:
        # A request's two inputs may have different numbers of rows; it fails alone.
        fits = [pair["INPUT0"].shape == pair["INPUT1"].shape for pair in data]
        pairs = [pair for pair, good in zip(data, fits, strict=True) if good]
        ends = np.cumsum([len(pair["INPUT0"]) for pair in pairs])[:-1]
        results: list[Results | ClientError] = [ClientError("INPUT0 and INPUT1 differ in shape")] * len(data)
        if pairs:
            left, right = (np.concatenate([pair[name] for pair in pairs]) for name in ("INPUT0", "INPUT1"))
            rows = zip(np.split(left + right, ends), np.split(left - right, ends), strict=True)
            for place, (total, difference) in zip(np.flatnonzero(fits), rows, strict=True):
                results[place] = Results(OUTPUT0=total, OUTPUT1=difference)
        return results


NAMES: Final = ("black", "white", "red", "green", "blue", "yellow", "cyan", "magenta")
PALETTE: Final = np.array(
    [(0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255)],
    np.float32,
)


class Image(TypedDict):
    pixels: Annotated[NDArray[np.uint8], Tensor("UINT8", [-1, -1, 3])]


class Colours(TypedDict):
    name: Annotated[list[str], Tensor("BYTES", [-1])]
    share: Annotated[NDArray[np.float32], Tensor("FP32", [-1])]


class Name(Worker):
    """Which colours an image is made of, the most frequent first."""

    example = [Image(pixels=np.zeros((32, 32, 3), np.uint8))]

    def forward(self, data: list[Image]) -> list[Colours]:
        flat = [image["pixels"].reshape(-1, 3) for image in data]
        pixels = np.concatenate(flat).astype(np.float32)
        # |p - c|^2 without |p|^2, which is the same for all colours: one product of matrices for the whole batch.
        nearest = ((PALETTE**2).sum(1) - 2 * pixels @ PALETTE.T).argmin(1)
        return [self._counted(part) for part in np.split(nearest, np.cumsum([len(one) for one in flat])[:-1])]

    def _counted(self, nearest: NDArray[Any]) -> Colours:
        counts = np.bincount(nearest, minlength=len(NAMES))
        order = [place for place in np.argsort(-counts, kind="stable") if counts[place]]
        share = counts[order].astype(np.float32) / max(len(nearest), 1)
        return Colours(name=[NAMES[place] for place in order], share=share)
