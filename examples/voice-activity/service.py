"""Where somebody speaks in a recording: `Decode` (a WAV file to samples) and `Detect` (samples to times).

The model is Silero's voice activity detector, found in the package `silero-vad` without importing that. It looks at
32 ms of sound after the other and remembers what was before, so recordings of a batch are computed side by side, chunk
by chunk; by `cost`, the seconds of each, those that share a batch are about equally long.
"""

from __future__ import annotations

import importlib.util
import io
import wave
from pathlib import Path
from typing import Any, Final

import numpy as np

from engine import ValidationError, Worker

RATE: Final = 16_000  # samples/s, of the model
CHUNK_S: Final = 0.032
MAX_S: Final = 600.0
MAX_CHANNELS: Final = 8

# Above the first somebody begins to speak, below the second he has stopped: between them he does what he did.
SPEAKS, STOPS = 0.5, 0.35
LEAST_SPEECH_S: Final = 0.25  # shorter ones are clicks
LEAST_SILENCE_S: Final = 0.1  # shorter ones are between two words
PAD_S: Final = 0.03

Samples = np.ndarray[Any, np.dtype[np.float32]]


def model_file() -> Path:
    spec = importlib.util.find_spec("silero_vad")
    if spec is None or spec.origin is None:
        raise RuntimeError("the model is missing: pip install silero-vad")
    return Path(spec.origin).parent / "data" / "silero_vad.jit"


def silence(seconds: float) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes(bytes(2 * int(RATE * seconds)))
    return file.getvalue()


class Decode(Worker):
    """The bytes of a WAV file, 16-bit PCM, any rate, to float32 [samples] at 16 kHz, channels mixed."""

    req_mime_type = "audio/wav"
    example = silence(0.1)

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: bytes) -> Samples:
        try:
            with wave.open(io.BytesIO(data)) as file:
                channels, width, rate, frames = file.getparams()[:4]
                if width != 2 or not 1 <= channels <= MAX_CHANNELS:
                    raise ValidationError(f"expected 16-bit samples, got {8 * width}-bit of {channels} channels")
                if not 1000 <= rate <= 384_000:
                    raise ValidationError(f"a rate of {rate} samples/s")
                if not 0 < frames <= MAX_S * rate:
                    raise ValidationError(
                        f"{frames / rate:.0f} s of sound; expected more than 0 and at most {MAX_S:.0f}"
                    )
                heard = np.frombuffer(file.readframes(frames), "<i2").reshape(-1, channels)
        except (wave.Error, EOFError, ValueError) as error:
            raise ValidationError(f"not a WAV file that can be read: {str(error) or 'it ends too soon'}") from error
        mixed = heard.mean(1, dtype=np.float32) / 32768
        return mixed if rate == RATE else _resampled(mixed, rate)


def _resampled(sound: Samples, rate: int) -> Samples:
    """At RATE samples/s, by straight lines: what voices are made of lies far below half of it."""
    count = int(len(sound) * RATE / rate)
    return np.interp(np.arange(count) * (rate / RATE), np.arange(len(sound)), sound).astype(np.float32)


class Detect(Worker):
    example = [np.zeros(RATE, np.float32)]

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)  # small products: two threads only wait for each other
        self.torch = torch
        self.model = torch.jit.load(str(model_file())).eval()

    def cost(self, value: Samples) -> float:
        """Seconds of sound."""
        return len(value) / RATE

    def forward(self, data: list[Samples]) -> list[dict[str, Any]]:
        torch = self.torch
        longest = max(len(sound) for sound in data)
        batch = np.zeros((len(data), longest), np.float32)
        for row, sound in zip(batch, data, strict=True):
            row[: len(sound)] = sound
        with torch.inference_mode():
            self.model.reset_states()
            chances = self.model.audio_forward(torch.from_numpy(batch), RATE).numpy()  # [recordings, chunks]
        return [answer(row, len(sound) / RATE) for row, sound in zip(chances, data, strict=True)]


def answer(chances: Samples, seconds: float) -> dict[str, Any]:
    """`{"speech": [{"start", "end"}], "seconds"}` out of the chance of speech in each chunk: [chunks]."""
    spans: list[list[float]] = []
    began: float | None = None
    for index, chance in enumerate(chances.tolist()):
        at = index * CHUNK_S
        if at >= seconds:
            break
        if began is None and chance >= SPEAKS:
            began = at
        elif began is not None and chance < STOPS:
            _add(spans, began, at)
            began = None
    if began is not None:
        _add(spans, began, seconds)
    speech = [
        {"start": round(max(0.0, start - PAD_S), 3), "end": round(min(seconds, end + PAD_S), 3)}
        for start, end in spans
        if end - start >= LEAST_SPEECH_S
    ]
    return {"speech": speech, "seconds": round(seconds, 3)}


def _add(spans: list[list[float]], start: float, end: float) -> None:
    if spans and start - spans[-1][1] < LEAST_SILENCE_S:
        spans[-1][1] = end
    else:
        spans.append([start, end])
