"""Past capacity the answer is 429 at once; who was admitted is served."""

from __future__ import annotations

from collections import Counter

from harness import SERVICES, deployed
from load import crowd

CAPACITY = 4


def test_what_exceeds_capacity_is_429_with_retry_after() -> None:
    with deployed(SERVICES / "chain.toml", "--capacity", str(CAPACITY)) as running:
        bodies = [{"id": n, "acts": {"second": {"do": "sleep", "s": 0.5}}} for n in range(40)]
        answers = crowd(f"{running.url}/both", bodies)
        statuses = Counter(answer.status_code for answer in answers)
        assert set(statuses) == {200, 429}, statuses
        assert CAPACITY <= statuses[200] < 40
        for answer in answers:
            if answer.status_code == 429:
                assert int(answer.headers["retry-after"]) >= 1
                assert answer.text.startswith("too many requests")
                assert answer.took_s < 2.0
        with running.client() as client:
            assert client.post("/both", json={"id": 1}).status_code == 200  # it is over
