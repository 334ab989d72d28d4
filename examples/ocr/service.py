"""Pages to text in three stages: `Detect` (where lines are, and their pictures), `Recognise` (what stands in them) and
`Assemble` (in which order they are read).

The two networks are PP-OCR's, from the package `rapidocr`, which is found without being imported: what comes before and
after the networks is small, and stands here. A page brings no line or five hundred: the route takes each of `crops` by
itself through `Recognise`, so that stage sees lines and not pages, and its batches have those of whichever pages are
under way.
"""

from __future__ import annotations

import importlib.util
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, NamedTuple, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from engine import ClientError, Tensor, ValidationError, Worker

MAX_PIXELS: Final = 6000 * 6000  # of a page, refused before it is decoded: a small file can be a very large picture
MAX_SIDE: Final = 1536  # of what lines are looked for in; the pictures of the lines are cut out of the page itself
MIN_SIDE: Final = 64
MAX_PATCHES: Final = 3000  # of a page, before it is known which of them are lines; how many of those is the route's
MULTIPLE: Final = 32  # of the sides of what the detector takes

INK, LINE = 0.3, 0.5  # the chance to be text from which on a pixel is, and the mean of it from which on a line is one
GROW: Final = 1.6  # the detector marks the core of a line: how much of area / circumference belongs to it around that
LEAST_SIDE: Final = 3  # pixels; what is smaller is dirt

HEIGHT: Final = 48  # of a line, for the recogniser
MAX_WIDTH: Final = 2400  # a longer one is squeezed
COLUMNS: Final = 4096  # of one call of the recogniser, padding included: each of them takes some 50 KB in it
SURE: Final = 0.5  # what is read with less is no text

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Floats = np.ndarray[Any, np.dtype[np.float32]]
Corners = np.ndarray[Any, np.dtype[np.float32]]  # [4, 2]: x and y, clockwise from the one where reading begins


class Read(NamedTuple):
    text: str
    score: float


Crop = TypeVar("Crop")


@dataclass(frozen=True)
class Page(Generic[Crop]):
    """What `Detect` found: of each line a picture of HEIGHT pixels, in whose place the route puts what was read, and
    its corners."""

    width: int
    height: int
    crops: list[Crop]
    boxes: list[Corners]


def session(kind: str, device: str) -> Any:
    """PP-OCR's network for "det" or "rec" in onnxruntime, on the stage's device and with the stage's share of CPUs."""
    import onnxruntime

    spec = importlib.util.find_spec("rapidocr")
    found = sorted(Path(spec.origin).parent.glob(f"models/*_{kind}_*.onnx")) if spec and spec.origin else []
    if not found:
        raise RuntimeError("the networks are missing: pip install rapidocr")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "0"))  # the engine says how many; 0: all
    providers: list[Any] = ["CPUExecutionProvider"]
    name, _, number = device.partition(":")
    if name == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():  # of onnxruntime-gpu
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": int(number or 0)}))
    return onnxruntime.InferenceSession(str(found[-1]), options, providers=providers)


# --- detect ----------------------------------------------------------------------------------------------------------


def drawn_page(text: str = "a page") -> bytes:
    from PIL import ImageDraw

    page, file = Image.new("L", (320, 96), 255), io.BytesIO()
    ImageDraw.Draw(page).text((20, 20), text, 0, font_size=32)
    page.save(file, "PNG")
    return file.getvalue()


class Detect(Worker):
    """The bytes of a PNG or JPEG to the pictures of its lines."""

    req_mime_type = "image/png"
    example = drawn_page()
    input_tensors = {"page": Tensor("UINT8", [-1])}  # the file, for clients of the Open Inference Protocol

    def __init__(self) -> None:
        self.session = session("det", self.device)

    def deserialize(self, data: bytes) -> bytes:
        return data

    def deserialize_tensors(self, tensors: dict[str, Any]) -> bytes:
        page: bytes = tensors["page"].tobytes()
        return page

    def forward(self, data: bytes) -> Page[Pixels]:
        page = decoded(data)
        scale = min(1.0, MAX_SIDE / max(page.size))
        size = [max(MIN_SIDE, round(side * scale / MULTIPLE) * MULTIPLE) for side in page.size]
        small = np.asarray(page.resize((size[0], size[1]), Image.Resampling.BILINEAR))
        image = normalised(small[None])
        (chances,) = self.session.run(None, {"x": image})
        boxes = boxes_of(chances[0, 0])
        boxes = [np.clip(box * (np.array(page.size) / size), 0, page.size).astype(np.float32) for box in boxes]
        return Page(*page.size, [crop(page, box) for box in boxes], boxes)


def decoded(data: bytes) -> Image.Image:
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValidationError(f"a page of {image.width} x {image.height}, at most {MAX_PIXELS} pixels")
            if min(image.size) * MAX_SIDE < max(image.size) * 8:
                raise ValidationError(f"a page of {image.width} x {image.height}: too narrow")
            return image.convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise ClientError("not a PNG or JPEG that can be read") from error


def normalised(pixels: Pixels) -> Floats:
    """uint8 [n, height, width, RGB] to -1..1 [n, BGR, height, width], as both networks were trained."""
    return np.ascontiguousarray(pixels[..., ::-1].transpose(0, 3, 1, 2), np.float32) / 127.5 - 1


def boxes_of(chances: Floats) -> list[Corners]:
    """Of each connected patch of text in [height, width] the smallest rectangle, turned as it may be, and grown."""
    found, boxes = patches(chances > INK), []
    if len(found) > MAX_PATCHES:
        raise ValidationError(f"{len(found)} patches of text on a page, at most {MAX_PATCHES}")
    for outline in found:
        center, along, across, size = smallest_rectangle(outline)
        if size.min() < LEAST_SIDE or mean_within(chances, corners(center, along, across, size)) < LINE:
            continue
        boxes.append(corners(center, along, across, size + GROW * size.prod() / size.sum()))
    return boxes


def patches(ink: np.ndarray[Any, np.dtype[np.bool_]]) -> list[Floats]:
    """The outline of each connected patch: its first and last pixel in each row, as points (x, y)."""
    edges = np.diff(np.pad(ink, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    where, starts = np.nonzero(edges == 1)  # of all horizontal runs, row by row
    ends = np.nonzero(edges == -1)[1] - 1
    rows, first, last = where.tolist(), starts.tolist(), ends.tolist()
    parent = list(range(len(rows)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = run = parent[parent[run]]
        return run

    above = 0  # the first run of the row above that may still touch one of this row
    for run, row in enumerate(rows):
        while rows[above] < row - 1 or (rows[above] == row - 1 and last[above] < first[run] - 1):
            above += 1
        other = above
        while rows[other] == row - 1 and first[other] <= last[run] + 1:
            parent[root(other)] = root(run)
            other += 1
    members: dict[int, list[int]] = {}
    for run in range(len(rows)):
        members.setdefault(root(run), []).append(run)
    outlines = []
    for group in members.values():
        of = where[group]
        if of[-1] - of[0] < LEAST_SIDE - 1:
            continue
        begins = np.flatnonzero(np.diff(of, prepend=-1))  # in each row
        stops = np.append(begins[1:], len(group)) - 1
        own = np.array(group)
        left = np.stack([starts[own[begins]], of[begins]], 1)
        right = np.stack([ends[own[stops]], of[begins]], 1)
        outlines.append(np.concatenate([left, right]).astype(np.float32))
    return outlines


ANGLES: Final = np.deg2rad(np.arange(-45, 45, 0.5))


def smallest_rectangle(points: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Of all turned by one of ANGLES: its center, the directions of its width and height, and both: [2] each."""
    along = np.stack([np.cos(ANGLES), np.sin(ANGLES)], 1).astype(np.float32)
    across = np.stack([-along[:, 1], along[:, 0]], 1)
    x, y = points @ along.T, points @ across.T
    low, high = np.stack([x.min(0), y.min(0)], 1), np.stack([x.max(0), y.max(0)], 1)
    best = int(np.argmin((high - low + 1).prod(1)))
    middle = (low[best] + high[best]) / 2
    return middle[0] * along[best] + middle[1] * across[best], along[best], across[best], high[best] - low[best]


def corners(center: Floats, along: Floats, across: Floats, size: Floats) -> Corners:
    width, height = along * (size[0] / 2), across * (size[1] / 2)
    return np.stack(
        [center - width - height, center + width - height, center + width + height, center - width + height]
    )


def mean_within(chances: Floats, box: Corners) -> float:
    """The mean over a grid of at most 256 x 64 points of the rectangle."""
    start, width, height = box[0], box[1] - box[0], box[3] - box[0]
    across = np.linspace(0, 1, min(256, int(np.hypot(*width)) + 1), dtype=np.float32)
    down = np.linspace(0, 1, min(64, int(np.hypot(*height)) + 1), dtype=np.float32)
    points = start + across[:, None, None] * width + down[None, :, None] * height
    x, y = np.rint(points).astype(int).reshape(-1, 2).T
    rows, columns = chances.shape
    return float(chances[y.clip(0, rows - 1), x.clip(0, columns - 1)].mean())


def stands(box: Corners) -> bool:
    """A line that is much higher than wide."""
    return bool(np.hypot(*(box[3] - box[0])) >= 1.5 * np.hypot(*(box[1] - box[0])))


def crop(page: Image.Image, box: Corners) -> Pixels:
    """The picture of a line, uint8 [HEIGHT, width, 3]; one that stands is read from its top down."""
    if stands(box):
        box = np.roll(box, -1, axis=0)
    width, height = max(1.0, float(np.hypot(*(box[1] - box[0])))), max(1.0, float(np.hypot(*(box[3] - box[0]))))
    around = box[[0, 3, 2, 1]].ravel().tolist()  # in the order of PIL: counterclockwise
    line = page.transform((round(width), round(height)), Image.Transform.QUAD, around, Image.Resampling.BILINEAR)
    wide = min(MAX_WIDTH, max(HEIGHT // 4, round(HEIGHT * width / height)))
    return np.asarray(line.resize((wide, HEIGHT), Image.Resampling.BILINEAR))


# --- recognise -------------------------------------------------------------------------------------------------------


class Recognise(Worker):
    """Pictures of lines, of whatever pages, to what stands in them."""

    example = [np.full((HEIGHT, 200, 3), 255, np.uint8)]

    def __init__(self) -> None:
        self.session = session("rec", self.device)
        known = self.session.get_modelmeta().custom_metadata_map["character"]
        self.characters = np.array(["", *known.splitlines(), " "])  # the first is the mark between two letters

    def cost(self, value: Pixels) -> int:
        """Columns of pixels: lines are short or long."""
        return int(value.shape[1])

    def forward(self, data: list[Pixels]) -> list[Read]:
        """In their order; those of about one width are computed together, so that little of it is padding."""
        order = sorted(range(len(data)), key=lambda index: data[index].shape[1], reverse=True)
        answers = [Read("", 0.0)] * len(data)
        while order:
            count = max(1, COLUMNS // data[order[0]].shape[1])
            together, order = order[:count], order[count:]
            for index, answer in zip(together, self._read([data[index] for index in together]), strict=True):
                answers[index] = answer
        return answers

    def _read(self, crops: Sequence[Pixels]) -> list[Read]:
        widest = max(picture.shape[1] for picture in crops)
        batch = np.zeros((len(crops), 3, HEIGHT, widest), np.float32)
        for row, picture in zip(batch, crops, strict=True):
            row[:, :, : picture.shape[1]] = normalised(picture[None])[0]
        (chances,) = self.session.run(None, {"x": batch})  # [lines, steps, characters]
        best, sure = chances.argmax(2), chances.max(2)
        # A letter that is seen in several steps is one, unless a mark stands between them (CTC).
        new = (best != 0) & (np.diff(best, axis=1, prepend=0) != 0)
        return [
            Read("".join(self.characters[row[kept]]), float(score[kept].mean()) if kept.any() else 0.0)
            for row, score, kept in zip(best, sure, new, strict=True)
        ]


# --- assemble --------------------------------------------------------------------------------------------------------


class Assemble(Worker):
    """`{"text", "lines": [{"text", "score", "box": [[x, y] * 4]}], "width", "height"}`, in the order of reading."""

    example = Page(200, HEIGHT, [Read("a", 1.0)], [np.zeros((4, 2), np.float32)])
    output_tensors = {
        "text": Tensor("BYTES", [1]),
        "line": Tensor("BYTES", [-1]),
        "score": Tensor("FP32", [-1]),
        "box": Tensor("FP32", [-1, 4, 2]),
    }

    def forward(self, data: Page[Read]) -> dict[str, Any]:
        kept = [
            (box, read) for box, read in zip(data.boxes, data.crops, strict=True) if read.text and read.score >= SURE
        ]
        rows = in_rows([box for box, _ in kept])
        lines = [
            {"text": read.text, "score": round(read.score, 4), "box": box.round(1).tolist()}
            for row in rows
            for box, read in (kept[index] for index in row)
        ]
        text = "\n".join(" ".join(kept[index][1].text for index in row) for row in rows)
        return {"text": text, "lines": lines, "width": data.width, "height": data.height}

    def serialize_tensors(self, data: dict[str, Any]) -> dict[str, Any]:
        lines = data["lines"]
        return {
            "text": [data["text"]],
            "line": [line["text"] for line in lines],
            "score": np.array([line["score"] for line in lines], np.float32),
            "box": np.array([line["box"] for line in lines], np.float32).reshape(-1, 4, 2),
        }


def in_rows(boxes: Sequence[Corners]) -> list[list[int]]:
    """Indexes of the boxes from top to bottom; those at one height are one row, but for lines that stand."""
    rows: list[list[int]] = []
    for index in sorted(range(len(boxes)), key=lambda index: float(boxes[index][:, 1].mean())):
        middle = float(boxes[index][:, 1].mean())
        last = boxes[rows[-1][0]] if rows else None
        if (
            last is not None
            and not (stands(last) or stands(boxes[index]))
            and (abs(middle - last[:, 1].mean()) < np.ptp(last[:, 1]) / 2)
        ):
            rows[-1].append(index)
        else:
            rows.append([index])
    return [sorted(row, key=lambda index: float(boxes[index][:, 0].min())) for row in rows]
