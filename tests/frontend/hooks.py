"""What services write beside their stages, for the tests of hooks and endpoints."""

from __future__ import annotations

from typing import Any


def body(status: int, problem: dict[str, Any], route: str) -> tuple[Any, str] | None:
    if status == 413:
        raise RuntimeError("no words for it")
    if status == 404:
        return None
    return {"oops": problem["detail"], "why": problem["reason"], "at": route, "status": status}, "application/x+json"
