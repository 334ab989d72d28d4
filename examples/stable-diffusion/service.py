"""Text to image in three stages: `Read` (JSON), `Draw` (the diffusers pipeline, on a GPU) and `Write` (PNG).

A batch of the pipeline is many prompts with one number of steps and one size, so `Draw` groups the requests it gets by
these. Every request has its own generator: its picture depends on its seed, not on its neighbours.
"""

from __future__ import annotations

import io
import os
from typing import Annotated, Any, Final, TypeAlias

import msgspec
import numpy as np

from engine import Worker
from engine.mixin import TypedJSONMixin

MODEL_VARIABLE: Final = "STABLE_DIFFUSION_MODEL"  # overrides the argument: another model without editing the file

Pixels: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]
Side = Annotated[int, msgspec.Meta(ge=64, le=1024, multiple_of=8)]


class Request(msgspec.Struct, frozen=True):
    """The body of POST /inference."""

    prompt: Annotated[str, msgspec.Meta(min_length=1)]
    negative_prompt: str = ""
    steps: Annotated[int, msgspec.Meta(ge=1, le=100)] = 30
    width: Side = 512
    height: Side = 512
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 0
    guidance: Annotated[float, msgspec.Meta(ge=0, le=30)] = 7.5

    @property
    def group(self) -> tuple[int, int, int, float]:
        """What requests must have in common to be drawn together."""
        return (self.steps, self.width, self.height, self.guidance)


class Read(TypedJSONMixin, Worker):
    """Checks the request against its type: what does not fit is answered here."""

    example = Request("warm up")

    def forward(self, data: Request) -> Request:
        return data


class Draw(Worker):
    """``model``: a folder with a Stable Diffusion pipeline, or its name on the Hugging Face hub."""

    example = [Request("warm up", steps=2, width=64, height=64)]

    def __init__(self, model: str) -> None:
        import torch
        from diffusers import StableDiffusionPipeline
        from diffusers.utils import logging

        logging.disable_progress_bar()
        self.torch = torch
        half = self.device.startswith("cuda")  # a CPU computes half precision slower than single
        # low_cpu_mem_usage would want the library accelerate, to save memory for the seconds of loading.
        self.pipeline = StableDiffusionPipeline.from_pretrained(
            os.environ.get(MODEL_VARIABLE) or model, low_cpu_mem_usage=False
        ).to(self.device, torch.float16 if half else torch.float32)
        self.pipeline.set_progress_bar_config(disable=True)

    def forward(self, data: list[Request]) -> list[Pixels]:
        groups: dict[tuple[int, int, int, float], list[int]] = {}
        for index, request in enumerate(data):
            groups.setdefault(request.group, []).append(index)
        pictures: dict[int, Pixels] = {}
        for indexes in groups.values():
            pictures.update(zip(indexes, self._draw(data, indexes), strict=True))
        return [pictures[index] for index in range(len(data))]

    def _draw(self, data: list[Request], indexes: list[int]) -> list[Pixels]:
        requests = [data[index] for index in indexes]
        contexts = [self.context(index) for index in indexes]

        def stop_if_alone(pipeline: Any, _step: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            """After each step: when every client has gone, the rest of the steps is for nobody."""
            pipeline._interrupt = all(context.cancelled for context in contexts)  # diffusers' documented way to stop
            return tensors

        with self.torch.inference_mode():
            images = self.pipeline(
                prompt=[request.prompt for request in requests],
                negative_prompt=[request.negative_prompt for request in requests],
                num_inference_steps=requests[0].steps,
                width=requests[0].width,
                height=requests[0].height,
                guidance_scale=requests[0].guidance,
                # On the CPU on purpose: a seed gives the same noise on every kind of GPU.
                generator=[self.torch.Generator("cpu").manual_seed(request.seed) for request in requests],
                callback_on_step_end=stop_if_alone,
                output_type="np",
            ).images
        pictures: list[Pixels] = list((images * 255).round().astype(np.uint8))
        return pictures


class Write(Worker):
    """The answer is the image itself."""

    resp_mime_type = "image/png"

    def forward(self, data: Pixels) -> bytes:
        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(data).save(file, "PNG")
        return file.getvalue()

    def serialize(self, data: bytes) -> bytes:
        return data
