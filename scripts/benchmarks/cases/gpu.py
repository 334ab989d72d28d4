"""A real model on a GPU, beside its plain loop: what is left of the device's time when it is served."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

from benchmarks.offline import OFFLINE
from benchmarks.result import Case, Picture, Target, at, worst
from benchmarks.saturation import BATCH, METRICS, Load, beside_the_loop
from benchmarks.work import TOKENS


def missing() -> str | None:
    """Why the case cannot be measured here, or None."""
    for package in ("torch", "transformers"):
        if find_spec(package) is None:
            return f"{package} is not installed (scripts/bench installs it where nvidia-smi finds a GPU)"
    import torch

    if not torch.cuda.is_available():
        return (
            "no CUDA device: torch.cuda.is_available() is false; needs an NVIDIA GPU, its driver, and a torch "
            f"built for it (here: {torch.__version__})"
        )
    return None


CASE: Final = Case(
    name="gpu",
    group="gpu",
    title="A real model on a GPU",
    about=(
        f"BERT-base with random weights, fp16, {TOKENS} tokens, batches of {BATCH}; the stage before makes the arrays "
        "of tokens on a CPU, alone or in batches. All workers on the first GPU; closed loop (wrk). *offline* is the "
        "plain loop, one process, also beside two workers."
    ),
    by=("workers", "batch before"),
    metrics=METRICS,
    run=beside_the_loop(Load("Encode", connections=8 * BATCH, workers=(1, 2))),
    seconds=3,
    pictures=(Picture("rate", "batch before", "A real model on a GPU: items per second"),),
    targets=(
        Target(
            "items/s of one worker, of the plain loop's",
            0.97, worst(["rate"], at(workers=1), to=OFFLINE, highest=False), at_least=True,
        ),
    ),
    missing=missing,
)  # fmt: skip
