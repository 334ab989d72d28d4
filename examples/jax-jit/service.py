"""A JAX network under `jit`: every shape compiles once, so batches are padded to few sizes, all compiled at start.

`multi_examples` holds one batch of every size. They run before the worker says it is ready, so no request ever waits
for the compiler.
"""

from __future__ import annotations

from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from engine import ValidationError, Worker

WIDTH: Final = 28 * 28
CLASSES: Final = 10
SIZES: Final = (1, 2, 4, 8, 16, 32)  # the last one is the stage's max_batch_size

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
    multi_examples = [[{"pixels": [0.5] * WIDTH}] * size for size in SIZES]

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

    def forward(self, data: list[Any]) -> list[dict[str, Any] | ValidationError]:
        results: list[Any] = [self._pixels(item) for item in data]
        good = [index for index, row in enumerate(results) if not isinstance(row, ValidationError)]
        if not good:
            return results
        size = next(size for size in SIZES if size >= len(good))
        batch = np.zeros((size, WIDTH), np.float32)
        batch[: len(good)] = [results[index] for index in good]
        shares = np.asarray(self.predict(self.weights, batch))
        for index, row in zip(good, shares, strict=False):  # the rows beyond are padding
            results[index] = {
                "digit": int(row.argmax()),
                "probabilities": [round(float(share), 5) for share in row],
                "padded_to": size,
                "compiled": self.compiled,
            }
        return results

    @staticmethod
    def _pixels(item: Any) -> np.ndarray[Any, np.dtype[np.float32]] | ValidationError:
        try:
            row = np.asarray(item["pixels"], np.float32)
        except (TypeError, KeyError, ValueError):
            row = np.zeros(0, np.float32)
        if row.shape != (WIDTH,):
            return ValidationError(f'expected {{"pixels": [...]}} with {WIDTH} numbers')
        return row
