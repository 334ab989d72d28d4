"""Whether a worker that fails everything does so by chance. Pure.

A device in a bad state, a file that one process lost, a library half imported: one worker fails whatever it is given
while its neighbours succeed. Being quick at failing it would also be given the most. But requests fail for reasons of
their own, and a few bad ones in a row may come to one worker: so the question is how likely that is, going by how its
neighbours fared in the same while, who got their requests from the same queue.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

SUSPECT_CHANCE: Final = 1e-2  # of being as good as its neighbours: from here on it gets no more than its share
BROKEN_CHANCE: Final = 1e-9  # from here on it is replaced: one mistake in a thousand million batches
LEAST: Final = 2  # batches in a row before anything is concluded


class Verdict(Enum):
    SOUND = "sound"
    SUSPECT = "suspect"
    BROKEN = "broken"


def judge(in_a_row: int, *, others_good: int, others_failed: int) -> Verdict:
    """Of a worker whose last ``in_a_row`` batches failed wholly, while its neighbours had so many good ones and so many
    that failed. What is not known of the neighbours counts for the worker (rule of succession)."""
    if in_a_row < LEAST or not others_good:
        return Verdict.SOUND
    chance = (others_failed + 1) / (others_good + others_failed + 2)
    chance **= in_a_row
    if chance < BROKEN_CHANCE:
        return Verdict.BROKEN
    return Verdict.SUSPECT if chance < SUSPECT_CHANCE else Verdict.SOUND
