"""Says how good the model is, beside what finds or ranks without it: `python measure.py [PACKAGE]`, in a minute or two.

Of a package's docstrings, which are read and not imported, the first paragraph asks, and the rest of the same docstring
is the right answer among the 20 that BM25 finds for it.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import math
import random
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import torch
from model import CrossEncoder, Text
from texts import DOCUMENT_TOKENS, QUERY_TOKENS, Ids, tokenizer
from torch.nn import functional

CANDIDATES: Final = 20  # that BM25 finds for a query
QUERIES: Final = 200

_NOT_READ: Final = re.compile(
    r"(^|/)(tests?|testing|_?vendor|idlelib|lib2to3|turtledemo|site-packages|dist-packages)(/|$)"
)


def docstrings(package: str) -> list[tuple[str, str]]:
    """(first paragraph, the rest) of a package's docstrings; each first paragraph once, files in a mixed order."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{package} is missing: pip install {package}")
    folder = Path(spec.origin).parent
    files = sorted(file for file in folder.rglob("*.py") if not _NOT_READ.search(str(file.relative_to(folder))))
    random.Random(0).shuffle(files)
    found: dict[str, str] = {}
    for file in files:
        for text in _docstrings_of(file):
            first, _, rest = text.partition("\n\n")
            first, rest = " ".join(first.split()), " ".join(re.sub(r"[-=~^]{3,}", " ", rest.split(">>>")[0]).split())
            if 20 < len(first) < 160 and len(rest) > 80:
                found.setdefault(first, rest[:700])
    return list(found.items())


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
                rarity = math.log(1 + (len(counts) - texts_with[word] + 0.5) / (texts_with[word] + 0.5))
                self.worth[word].append((at, rarity * times * 2.2 / (times + norm)))

    def best(self, query: str) -> list[int]:
        scores: dict[int, float] = defaultdict(float)
        for word in self._words(query):
            for document, worth in self.worth.get(word, ()):
                scores[document] += worth
        return sorted(scores, key=lambda document: -scores[document])[:CANDIDATES]

    @staticmethod
    def _words(text: str) -> list[str]:
        return re.findall(r"[a-z0-9]+", text.lower())


class Library:
    """A package's docstrings, and those of its queries whose right document is among the 20 that BM25 finds: who ranks
    is never asked to find what the search before it has not found."""

    def __init__(self, package: str) -> None:
        texts = docstrings(package)
        encode = tokenizer().encode_batch
        self.queries: list[Ids] = [
            one.ids[:QUERY_TOKENS] for one in encode([first for first, _ in texts], add_special_tokens=False)
        ]
        self.documents: list[Ids] = [
            one.ids[:DOCUMENT_TOKENS] for one in encode([rest for _, rest in texts], add_special_tokens=False)
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


@torch.inference_mode()
def measured(model: CrossEncoder, package: str) -> str:
    """BM25 finds 20 documents for each query, the right one among them. Who puts it where?"""
    library = Library(package)
    asked = random.Random(1).sample(sorted(library.found), min(QUERIES, len(library.found)))
    needed = sorted({one for query in asked for one in library.found[query]})
    documents = dict(zip(needed, read(model, [library.documents[one] for one in needed]), strict=True))
    places: defaultdict[str, list[int]] = defaultdict(list)
    for query, text in zip(asked, read(model, [library.queries[query] for query in asked]), strict=True):
        found = library.found[query]
        right = found.index(query)
        first, *rest = [_vector(model.last, one) for one in (text, *(documents[one] for one in found))]
        likeness = torch.stack(rest) @ first
        at = torch.arange(len(found))
        fused = 1 / (60.0 + at) + 1 / (60.0 + likeness.argsort(descending=True).argsort())  # Cormack et al. 2009
        scores = {
            "BM25": -at,
            "bi-encoder": likeness,
            "both (RRF)": fused,
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
    parser = argparse.ArgumentParser(description="Says how good the model is, on the docstrings of a package.")
    parser.add_argument("package", nargs="?", default="numpy")
    print(measured(CrossEncoder().eval(), parser.parse_args().package))


if __name__ == "__main__":
    main()
