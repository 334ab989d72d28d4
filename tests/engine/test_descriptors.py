"""Limits of descriptors, each in a process of its own."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest

from engine import descriptors

LOOK = "import resource; print(*resource.getrlimit(resource.RLIMIT_NOFILE))"


def tried(code: str, soft: int = 300, hard: int = 400) -> list[int]:
    """What a process with these limits prints."""
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard})); {code}"
    environ = {key: value for key, value in os.environ.items() if key != descriptors.VARIABLE}
    done = subprocess.run([sys.executable, "-c", limited], capture_output=True, text=True, check=True, env=environ)
    return [int(word) for word in done.stdout.split()]


def test_a_process_that_serves_has_all_that_it_may() -> None:
    assert tried("from engine import descriptors; print(descriptors.allow_many()); " + LOOK) == [400, 400, 400]


def test_one_that_runs_user_code_has_what_was_there_before() -> None:
    inner = f"from engine import descriptors; descriptors.allow_as_before(); {LOOK}"
    outer = (
        "import subprocess, sys; from engine import descriptors; descriptors.allow_many(); descriptors.allow_many(); "
        f"subprocess.run([sys.executable, '-c', {inner!r}], check=True)"
    )
    assert tried(outer) == [300, 400]


def test_where_nothing_was_raised_nothing_is_lowered() -> None:
    assert tried("from engine import descriptors; descriptors.allow_as_before(); " + LOOK, 400) == [400, 400]


def test_a_hard_limit_without_end_is_not_taken_at_its_word(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [(1024, resource.RLIM_INFINITY)]
    monkeypatch.setattr(resource, "getrlimit", lambda _which: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _which, both: limits.append(both))
    monkeypatch.setenv(descriptors.VARIABLE, "1024")
    assert descriptors.allow_many() == descriptors.MOST


def test_a_system_that_does_not_allow_what_it_says_gives_what_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [(256, resource.RLIM_INFINITY)]

    def refuse(_which: int, both: tuple[int, int]) -> None:
        if both[0] > 10_240:
            raise ValueError("not allowed")
        limits.append(both)

    monkeypatch.setattr(resource, "getrlimit", lambda _which: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", refuse)
    monkeypatch.setenv(descriptors.VARIABLE, "256")
    assert descriptors.allow_many() == 10_240


def test_what_a_broker_of_many_workers_needs_is_more_than_the_usual_limit_and_less_than_the_usual_hard_one() -> None:
    """Of 450 workers, and well above what each was counted to take."""
    needs = descriptors.broker_needs(450, 1, 1)
    assert 1024 < 7 * 450 < needs < 4096
