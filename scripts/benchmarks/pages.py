"""The worker code of the cases about branches: pages of few lines and of many, in three steps. Plain classes, as in
:mod:`benchmarks.work`, the same for every system.

A request names a page. The steps are those of ``examples/ocr`` with its networks, or the same by a device that is only
pretended. As stages they are Find, Read and Join; Whole does all of them for a batch of pages, whose lines it reads
together; and Loop one page after the other, which is the plain loop.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Protocol

from benchmarks.work import Made, Recorded, use_site

LINES: Final = (3, 60, 1, 8, 20, 2, 12, 1, 35, 5)  # of the pages, which come in turns
CROPS: Final = 32  # that are read at once
HEIGHT: Final = 48  # pixels of a line's picture
EXAMPLE: Final = Path(__file__).parents[2] / "examples" / "ocr"


class Steps(Protocol):
    """``find``: the page of a number to a dict with the pictures of its lines, uint8 [HEIGHT, width, 3], as ``crops``;
    ``read``: pictures to what stands in them; ``join``: the dict, with that in their place, to the answer."""

    def find(self, page: int) -> dict[str, Any]: ...
    def read(self, crops: Sequence[Any]) -> list[Any]: ...
    def join(self, found: dict[str, Any]) -> dict[str, Any]: ...


class Ocr:
    """The networks, each made where it is first asked, with so many threads."""

    def __init__(self, threads: int) -> None:
        use_site()
        os.environ["OMP_NUM_THREADS"] = str(threads)
        sys.path.insert(0, str(EXAMPLE))
        service = import_module("service")
        self._pages = [drawn(lines) for lines in LINES]
        self._service = service
        self._made: dict[str, Any] = {}

    def find(self, page: int) -> dict[str, Any]:
        return dict(vars(self._stage("Detect").forward(self._pages[page])))

    def read(self, crops: Sequence[Any]) -> list[Any]:
        return [tuple(one) for one in self._stage("Recognise").forward(list(crops))]

    def join(self, found: dict[str, Any]) -> dict[str, Any]:
        read = [self._service.Read(*one) for one in found["crops"]]
        answer: dict[str, Any] = self._stage("Assemble").forward(self._service.Page(**{**found, "crops": read}))
        return answer

    def _stage(self, name: str) -> Any:
        if name not in self._made:
            self._made[name] = getattr(self._service, name)()
        return self._made[name]


def drawn(lines: int) -> bytes:
    """A page of so many short lines, three beside each other, as a PNG."""
    import io

    from PIL import Image, ImageDraw

    page, file = Image.new("L", (480, 32 * -(-lines // 3) + 32), 255), io.BytesIO()
    for line in range(lines):
        ImageDraw.Draw(page).text((16 + 160 * (line % 3), 16 + 32 * (line // 3)), f"Line {line + 1}", 0, font_size=20)
    page.save(file, "PNG")
    return file.getvalue()


class Device:
    """Two milliseconds of a CPU find the lines, and a device that leaves the CPUs free reads them: a fixed time for a
    batch, and a little for each."""

    find_s, fixed_s, line_s = 0.002, 0.005, 0.00025

    def __init__(self, threads: int) -> None:
        use_site()
        import numpy as np

        self._picture = np.zeros((HEIGHT, 200, 3), np.uint8)  # 29 kB

    def find(self, page: int) -> dict[str, Any]:
        until = time.thread_time() + self.find_s
        while time.thread_time() < until:
            pass
        return {"page": page, "crops": [self._picture] * LINES[page]}

    def read(self, crops: Sequence[Any]) -> list[Any]:
        time.sleep(self.fixed_s + self.line_s * len(crops))
        return [("word", 1.0)] * len(crops)

    def join(self, found: dict[str, Any]) -> dict[str, Any]:
        return {"lines": [text for text, _ in found["crops"]]}


class OfOcr:
    """Made of the networks; each process has one thread for them."""

    steps: type[Ocr | Device] = Ocr
    threads = 1


class OfDevice(OfOcr):
    """Made of the device."""

    steps = Device


class Find(OfOcr, Made):
    """``{"page": 3}`` -> where its lines are, and their pictures."""

    def __init__(self) -> None:
        self.made_of: Steps = self.steps(self.threads)
        self.made_of.find(0)
        super().__init__()

    def forward(self, data: dict[str, int]) -> dict[str, Any]:
        return self.made_of.find(data["page"])


class Read(OfOcr, Recorded):
    """Pictures of lines -> what stands in them."""

    def __init__(self) -> None:
        self.made_of: Steps = self.steps(self.threads)
        self.made_of.read(self.made_of.find(0)["crops"])
        super().__init__()

    def forward(self, data: list[Any]) -> list[Any]:
        begin = time.monotonic_ns()
        result = self.made_of.read(data)
        self.record(begin, len(data))
        return result


class Join(OfOcr, Made):
    """What was found, with what was read in the place of the pictures -> the answer."""

    def __init__(self) -> None:
        self.made_of: Steps = self.steps(self.threads)
        super().__init__()

    def forward(self, data: dict[str, Any]) -> dict[str, Any]:
        return self.made_of.join(data)


class Whole(Read):
    """Pages -> answers: all steps, the lines of all pages of a batch together."""

    def forward(self, data: list[Any]) -> list[Any]:
        pages = [self.made_of.find(value["page"]) for value in data]
        crops = [crop for page in pages for crop in page["crops"]]
        read: list[Any] = []
        for at in range(0, len(crops), CROPS):
            read += super().forward(crops[at : at + CROPS])
        rest = iter(read)
        return [self.made_of.join({**page, "crops": [next(rest) for _ in page["crops"]]}) for page in pages]


class Loop(OfOcr, Recorded):
    """One page after the other, with the threads of all the others together."""

    threads = 2

    def __init__(self) -> None:
        self.made_of: Steps = self.steps(self.threads)
        super().__init__()
        self.forward([{"page": 0}])

    @staticmethod
    def batch(_size: int) -> list[Any]:
        """All pages, once."""
        return [{"page": page} for page in range(len(LINES))]

    def forward(self, data: list[Any]) -> list[Any]:
        answers = []
        for value in data:
            begin = time.monotonic_ns()
            found = self.made_of.find(value["page"])
            read: list[Any] = []
            for at in range(0, len(found["crops"]), CROPS):
                read += self.made_of.read(found["crops"][at : at + CROPS])
            answers.append(self.made_of.join({**found, "crops": read}))
            self.record(begin, 1)
        return answers


class DeviceFind(OfDevice, Find):
    """See Find."""


class DeviceRead(OfDevice, Read):
    """See Read."""


class DeviceJoin(OfDevice, Join):
    """See Join."""


class DeviceWhole(OfDevice, Whole):
    """See Whole."""


class DeviceLoop(OfDevice, Loop):
    """See Loop."""
