"""A JAX network under `jit`: every shape compiles once, so batches have few sizes, all compiled at start.

`batch_sizes` in `stages.toml` says which: batches between two of them are padded, and every one of them is computed
before the worker says that it is ready. So no request ever waits for the compiler.
"""

from __future__ import annotations

from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from engine import ValidationError, Worker

WIDTH: Final = 28 * 28
CLASSES: Final = 10

Image = np.ndarray[Any, np.dtype[np.float32]]
Parameters = list[tuple[jax.Array, jax.Array]]


def parameters(seed: int = 0) -> Parameters:
    """Random weights of 784 -> 256 -> 64 -> 10, scaled as He et al. (2015) propose for ReLU."""
    widths = (WIDTH, 256, 64, CLASSES)
    keys = jax.random.split(jax.random.key(seed), len(widths) - 1)
    return [
        (jax.random.normal(key, (fan_in, fan_out)) * jnp.sqrt(2 / fan_in), jnp.zeros(fan_out))
        for key, fan_in, fan_out in zip(keys, widths[:-1], widths[1:], strict=True)
    ]


class Predict(Worker):
    example = [np.full(WIDTH, 0.5, np.float32)]

    def __init__(self) -> None:
        self.weights = parameters()
        self.compiled = 0  # how often jit has traced the function: once per shape
        self.predict = jax.jit(self._predict)

    def _predict(self, weights: Parameters, pixels: jax.Array) -> jax.Array:
        self.compiled += 1  # Python runs while tracing only, never when the compiled code runs
        for matrix, bias in weights[:-1]:
            pixels = jax.nn.relu(pixels @ matrix + bias)
        matrix, bias = weights[-1]
        return jax.nn.softmax(pixels @ matrix + bias)

    def deserialize(self, data: bytes) -> Image:
        """The pixels of a request; one that has others fails alone, before it is in any batch."""
        body = super().deserialize(data)
        try:
            row = np.asarray(body["pixels"], np.float32)
        except (TypeError, KeyError, ValueError):
            row = np.zeros(0, np.float32)
        if row.shape != (WIDTH,):
            raise ValidationError(f'expected {{"pixels": [...]}} with {WIDTH} numbers')
        return row

    def forward(self, data: list[Image]) -> list[dict[str, Any]]:
        shares = np.asarray(self.predict(self.weights, np.stack(data)))
        return [
            {
                "digit": int(row.argmax()),
                "probabilities": [round(float(share), 5) for share in row],
                "padded_to": len(data),
                "compiled": self.compiled,
            }
            for row in shares
        ]
