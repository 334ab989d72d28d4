"""A control group of a test's own, where the machine lets it have one: as root, below the test's own group."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from engine import cgroups

SETTLE_S = 5.0  # for the last killed process to leave the group


@contextlib.contextmanager
def control_group(controller: str, *bounds: Mapping[str, str]) -> Iterator[Path]:
    """A group with the first of ``bounds`` (files and what they say) that this kernel knows; skips the test where
    there can be none. Whoever is in it must have ended by the end."""
    reasons = []
    for around in cgroups.folders(controller):
        folder = around / f"stageline-test-{uuid.uuid4().hex[:8]}"
        for files in bounds:
            try:
                folder.mkdir()
            except OSError as error:
                reasons.append(str(error))
                continue
            try:
                for name, text in files.items():
                    if not (folder / name).exists():
                        raise OSError(f"{around} has no {name}")
                    (folder / name).write_text(text)
            except OSError as error:
                reasons.append(str(error))
                folder.rmdir()
                continue
            try:
                yield folder
            finally:
                _remove(folder)
            return
    pytest.skip(f"no control group of one's own can be made here: {reasons[:1] or 'there are none'}")


def _remove(folder: Path) -> None:
    end = time.monotonic() + SETTLE_S
    while True:
        try:
            os.rmdir(folder)
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)
