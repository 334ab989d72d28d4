"""Finds the speech in a recording: `python client.py [URL [FILE.wav ...]]`.

Without a file: in the one beside this script, and in many cuts of it at once, whose answers must agree with the whole.
"""

from __future__ import annotations

import io
import json
import sys
import wave
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

SPEECH = Path(__file__).with_name("speech.wav")
CUTS = 48
NEAR_S = 0.1


def cut(recording: bytes, start: float) -> bytes:
    """The recording from ``start`` seconds on."""
    file = io.BytesIO()
    with wave.open(io.BytesIO(recording)) as whole, wave.open(file, "wb") as out:
        out.setparams(whole.getparams())
        whole.setpos(int(start * whole.getframerate()))
        out.writeframes(whole.readframes(whole.getnframes()))
    return file.getvalue()


def main() -> None:
    url = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8000"

    def detect(recording: bytes) -> dict[str, Any]:
        with urlopen(Request(f"{url}/inference", recording, {"content-type": "audio/wav"})) as response:
            answer: dict[str, Any] = json.load(response)
        return answer

    for name in sys.argv[2:] or [str(SPEECH)]:
        answer = detect(Path(name).read_bytes())
        print(f"{Path(name).name}: {answer['seconds']:.1f} s")
        for span in answer["speech"]:
            print(f"  somebody speaks from {span['start']:.2f} to {span['end']:.2f} s")
    if sys.argv[2:]:
        return
    recording = SPEECH.read_bytes()
    begins = answer["speech"][-1]["start"]
    starts = [begins * number / (CUTS + 8) for number in range(CUTS)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda start: detect(cut(recording, start)), starts))
    near = [
        abs(found["speech"][-1]["start"] + start - begins) < NEAR_S
        for found, start in zip(answers, starts, strict=True)
        if found["speech"]
    ]
    print(f"{sum(near)} of {CUTS} cuts end with the same words at the same time")


if __name__ == "__main__":
    main()
