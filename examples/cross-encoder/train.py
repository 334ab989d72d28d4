"""Makes the weights, in a minute or two on a CPU, and says how good they are: `python train.py`. Downloads nothing.

It learns from docstrings of Python's library and of torch, which are read and not imported: the first paragraph asks,
the rest of the same docstring is the right answer, and what else BM25 finds for it is wrong. It is measured on
docstrings of numpy, of which it has seen none.
"""

from __future__ import annotations

import argparse
import ast
import fcntl
import importlib.util
import math
import os
import random
import re
import sys
import sysconfig
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Final

import torch
from model import VOCABULARY, CrossEncoder, Text
from safetensors.torch import load_file, save_file
from texts import DOCUMENT_TOKENS, QUERY_TOKENS, Ids, tokenizer
from torch.nn import functional

LIBRARIES: Final = ("", "torch")  # "" is Python's
STEPS: Final = 60
QUERIES: Final = 10  # of a step
LISTED: Final = 8  # documents for each of them, of which one is right
TEXTS: Final = 800  # of a library
LEARNT_TOKENS: Final = 96  # of a document, while it learns
RATE: Final = 1e-4  # of the layer; what the parts of the score are worth and the like learn faster
FASTER: Final = 50
CANDIDATES: Final = 20  # that BM25 finds for a query
VERSION: Final = 1  # of the weights; raised where older files do not fit

_NOT_READ: Final = re.compile(
    r"(^|/)(tests?|testing|_?vendor|idlelib|lib2to3|turtledemo|site-packages|dist-packages)(/|$)"
)

Say = Callable[[str], None]


# --- what it learns from ---------------------------------------------------------------------------------------------


def docstrings(package: str, most: int = sys.maxsize) -> list[tuple[str, str]]:
    """(first paragraph, the rest) of a package's docstrings; each first paragraph once, files in a mixed order."""
    if package:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise RuntimeError(f"{package} is missing: pip install {package}")
        folder = Path(spec.origin).parent
    else:
        folder = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(file for file in folder.rglob("*.py") if not _NOT_READ.search(str(file.relative_to(folder))))
    random.Random(0).shuffle(files)
    found: dict[str, str] = {}
    for file in files:
        if len(found) >= most:
            break
        for text in _docstrings_of(file):
            first, _, rest = text.partition("\n\n")
            first, rest = " ".join(first.split()), " ".join(re.sub(r"[-=~^]{3,}", " ", rest.split(">>>")[0]).split())
            if 20 < len(first) < 160 and len(rest) > 80:
                found.setdefault(first, rest[:700])
    return list(found.items())[:most]


def _docstrings_of(file: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in others' strings
            tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)):
            yield ast.get_docstring(node) or ""


class BM25:
    """The first stage of a search: counts shared words, rare ones for more, in long texts for less."""

    def __init__(self, documents: Sequence[str]) -> None:
        counts = [Counter(self._words(document)) for document in documents]
        mean = sum(count.total() for count in counts) / len(counts)
        texts_with = Counter(word for count in counts for word in count)
        self.worth: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
        for at, count in enumerate(counts):
            norm = 1.2 * (0.25 + 0.75 * count.total() / mean)
            for word, times in count.items():
                self.worth[word].append((at, _rarity(texts_with[word], len(counts)) * times * 2.2 / (times + norm)))

    def best(self, query: str) -> list[int]:
        scores: dict[int, float] = defaultdict(float)
        for word in self._words(query):
            for document, worth in self.worth.get(word, ()):
                scores[document] += worth
        return sorted(scores, key=lambda document: -scores[document])[:CANDIDATES]

    @staticmethod
    def _words(text: str) -> list[str]:
        return re.findall(r"[a-z0-9]+", text.lower())


def _rarity(texts_with: int, texts: int) -> float:
    return math.log(1 + (texts - texts_with + 0.5) / (texts_with + 0.5))


class Library:
    """A package's docstrings, and those of its queries whose right document is among the 20 that BM25 finds.

    Others teach nothing of use: the service is never asked to find what the search before it has not found.
    """

    def __init__(self, package: str, most: int = sys.maxsize, tokens: int = DOCUMENT_TOKENS) -> None:
        texts = docstrings(package, most)
        encode = tokenizer().encode_batch
        self.queries: list[Ids] = [
            one.ids[:QUERY_TOKENS] for one in encode([first for first, _ in texts], add_special_tokens=False)
        ]
        self.documents: list[Ids] = [
            one.ids[:tokens] for one in encode([rest for _, rest in texts], add_special_tokens=False)
        ]
        search = BM25([rest for _, rest in texts])
        found = {query: search.best(first) for query, (first, _) in enumerate(texts)}
        self.found = {query: best for query, best in found.items() if query in best}


def read(model: CrossEncoder, texts: Sequence[Ids]) -> list[Text]:
    """In groups of like length, in the order given."""
    order = sorted(range(len(texts)), key=lambda one: len(texts[one]))
    made: dict[int, Text] = {}
    for start in range(0, len(order), 32):
        group = order[start : start + 32]
        made.update(zip(group, model.read([texts[one] for one in group]), strict=True))
    return [made[one] for one in range(len(texts))]


# --- learning --------------------------------------------------------------------------------------------------------


def trained(steps: int = STEPS, say: Say = print) -> CrossEncoder:
    """By one thread and with seeds for all dice: the same for the same Python and packages."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _trained(steps, say)
    finally:
        torch.set_num_threads(threads)


def _trained(steps: int, say: Say) -> CrossEncoder:
    began = time.monotonic()
    dice = random.Random(0)
    torch.manual_seed(0)
    most = min(TEXTS, steps * QUERIES)
    libraries = [Library(package, most, LEARNT_TOKENS) for package in LIBRARIES]
    model = CrossEncoder().eval()  # no dropout: each query is seen about once
    documents = [document for library in libraries for document in library.documents]
    texts_with = Counter(word for document in documents for word in set(document))
    model.rarity = torch.tensor([_rarity(texts_with[word], len(documents)) for word in range(VOCABULARY)])
    model.length = torch.tensor(sum(map(len, documents)) / len(documents))
    texts = [(read(model, library.queries), read(model, library.documents)) for library in libraries]
    say(f"{len(documents)} docstrings to learn from, {time.monotonic() - began:.0f} s")

    groups = [
        {"params": list(model.last.parameters()), "lr": RATE},
        {"params": [model.apart, model.worth], "lr": RATE * FASTER, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups)
    rates = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=max(steps, 2), pct_start=0.15)
    asked = [(at, query) for at, library in enumerate(libraries) for query in library.found]
    left: list[tuple[int, int]] = []
    mean = 0.0
    for step in range(1, steps + 1):
        lists = []
        for _ in range(QUERIES):
            left = left or dice.sample(asked, len(asked))
            at, query = left.pop()
            queries, answers = texts[at]
            wrong = [one for one in libraries[at].found[query] if one != query]
            wrong = dice.sample(wrong, min(LISTED - 1, len(wrong)))
            lists.append([(queries[query], answers[one]) for one in (query, *wrong)])
        loss = torch.stack([-functional.log_softmax(model(pairs), 0)[0] for pairs in lists]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        mean += (loss.item() - mean) / min(step, 20)
        if step % 10 == 0:
            say(f"step {step} of {steps}: loss {mean:.2f}, {time.monotonic() - began:.0f} s")
    return model


# --- the file --------------------------------------------------------------------------------------------------------


def model(steps: int = STEPS, say: Say = print) -> CrossEncoder:
    """From the file; made, and written there, where there is none. Of several processes one makes it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    file = cache / "stageline" / f"cross-encoder-{VERSION}-{steps}.safetensors"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = file.with_suffix(".lock").open("w")
    except OSError as error:
        say(f"the weights are made anew on each start, for they cannot be kept: {error}")
        return trained(steps, say)
    with lock:
        _wait(lock, say)
        if not file.exists():
            made = trained(steps, say)
            written = file.with_suffix(".new")  # what a process that was killed leaves of it, the next one overwrites
            save_file(made.kept(), written)
            written.replace(file)
            say(f"kept in {file}")
    model = CrossEncoder()
    model.load_state_dict(load_file(file), strict=False)  # the layers below are where they were
    return model.eval()


def _wait(lock: IO[str], say: Say) -> None:
    """For another process that makes the weights, if there is one. The lock goes with its owner, however that ends."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("another process makes the weights; waiting for it")
        fcntl.flock(lock, fcntl.LOCK_EX)


# --- how good it is --------------------------------------------------------------------------------------------------


@torch.inference_mode()
def measured(model: CrossEncoder, package: str = "numpy", queries: int = 200) -> str:
    """BM25 finds 20 documents for each query, the right one among them. Who puts it where?"""
    library = Library(package)
    asked = random.Random(1).sample(sorted(library.found), min(queries, len(library.found)))
    needed = sorted({one for query in asked for one in library.found[query]})
    documents = dict(zip(needed, read(model, [library.documents[one] for one in needed]), strict=True))
    unfitted = CrossEncoder().eval()
    unfitted.rarity, unfitted.length = model.rarity, model.length
    places: defaultdict[str, list[int]] = defaultdict(list)
    for query, text in zip(asked, read(model, [library.queries[query] for query in asked]), strict=True):
        found = library.found[query]
        right = found.index(query)
        first, *rest = [_vector(unfitted.last, one) for one in (text, *(documents[one] for one in found))]
        likeness = torch.stack(rest) @ first
        at = torch.arange(len(found))
        fused = 1 / (60.0 + at) + 1 / (60.0 + likeness.argsort(descending=True).argsort())  # Cormack et al. 2009
        scores = {
            "BM25": -at,
            "bi-encoder": likeness,
            "both (RRF)": fused,
            "not yet fitted": unfitted([(text, documents[one]) for one in found]),
            "cross-encoder": model([(text, documents[one]) for one in found]),
        }
        for name, its in scores.items():
            equal = its[:right] == its[right]  # and before it, as BM25 found them
            places[name].append(int((its > its[right]).sum() + equal.sum()))
    lines = [f"{len(asked)} queries of {package}'s docstrings, {CANDIDATES} documents each, as BM25 found them:"]
    for name, its_places in places.items():
        top = sum(place == 0 for place in its_places) / len(asked)
        mrr = sum(1 / (place + 1) for place in its_places) / len(asked)
        lines.append(f"{name:>14}: the right one first {top:.3f}, mean reciprocal rank {mrr:.3f}")
    return "\n".join(lines)


def _vector(last: torch.nn.Module, text: Text) -> torch.Tensor:
    """As examples/rerank makes it: all six layers as they came, and the mean over the words."""
    out = last(text.read[None], None)
    return functional.normalize((out[0] if isinstance(out, tuple) else out).reshape(-1, 384).mean(0), dim=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--measure", default="numpy", metavar="PACKAGE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(measured(model(options.steps, lambda text: print(text, file=sys.stderr, flush=True)), options.measure))


if __name__ == "__main__":
    main()
