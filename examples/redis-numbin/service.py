"""Arrays from one stage to the next by way of Redis, as NumBin: `Play` (a chord to sound) and `Listen` (back to notes).

On one host, and over Stageline's own connections, arrays need neither. Redis serves where stages share no memory and a
deployment has it anyway; NumBin is a form of arrays that other languages read. Each mixin is one of the two, in both
stages: what is left of the other is what it passes to.
"""

from __future__ import annotations

import os
from typing import Any, Final

import numpy as np

from engine import ValidationError, Worker
from engine.mixin import NumBinIPCMixin, RedisShmIPCMixin

RATE: Final = 16_000  # samples/s
MAX_S: Final = 4.0  # NumBin counts an axis in 16 bits
MAX_NOTES: Final = 8
LOWEST, HIGHEST = 100.0, 4_000.0  # Hz

Sound = np.ndarray[Any, np.dtype[np.float32]]

RedisShmIPCMixin.set_redis_url(os.environ.get("STAGELINE_REDIS_URL", "redis://127.0.0.1:6379/0"))


class Play(RedisShmIPCMixin, NumBinIPCMixin, Worker):
    """``{"notes": [440, 660], "seconds": 2}`` to float32 [samples]; notes in Hz."""

    example = {"notes": [440.0], "seconds": 0.5}
    redis_prefix = "stageline:chords:"

    def forward(self, data: Any) -> Sound:
        notes, seconds = (data.get("notes"), data.get("seconds", 1.0)) if isinstance(data, dict) else (None, None)
        if not isinstance(notes, list) or not 1 <= len(notes) <= MAX_NOTES:
            raise ValidationError(f"notes: expected a list of 1 to {MAX_NOTES} frequencies")
        if not all(isinstance(note, int | float) and LOWEST <= note <= HIGHEST for note in notes):
            raise ValidationError(f"notes: expected frequencies from {LOWEST:.0f} to {HIGHEST:.0f} Hz")
        if not isinstance(seconds, int | float) or not 0.1 <= seconds <= MAX_S:
            raise ValidationError(f"seconds: expected 0.1 to {MAX_S:.0f}")
        at = np.arange(int(seconds * RATE)) / RATE
        return np.sum([np.sin(2 * np.pi * note * at) for note in notes], 0).astype(np.float32) / len(notes)


class Listen(RedisShmIPCMixin, NumBinIPCMixin, Worker):
    redis_prefix = "stageline:chords:"

    def forward(self, data: list[Sound]) -> list[dict[str, Any]]:
        return [{"notes": heard(sound), "seconds": len(sound) / RATE} for sound in data]


def heard(sound: Sound) -> list[float]:
    """The frequencies that stand out, in Hz, from the lowest on."""
    strength = np.abs(np.fft.rfft(sound * np.hanning(len(sound))))
    stands_out = (
        (strength[1:-1] > strength[:-2]) & (strength[1:-1] >= strength[2:]) & (strength[1:-1] > strength.max() / 4)
    )
    return [round(float(number + 1) * RATE / len(sound), 1) for number in np.nonzero(stands_out)[0]]
