"""Past capacity the answer is 429 at once; who was admitted is served, and in time."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from harness import SERVICES, deployed, write_service
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


TOML = """
[frontend]
timeout = 0.6

[[stage]]
name = "slow"
worker = "service:Slow"
max_batch_size = 4
"""
CODE = """
import time
from engine import Worker


class Slow(Worker):
    example = [{"id": 0}]

    def forward(self, batch):
        time.sleep(0.05 + 0.005 * len(batch))
        return batch
"""
FULL_PER_S = 4 / 0.07


def test_twice_what_a_stage_can_do_leaves_it_doing_what_it_can(tmp_path: Path) -> None:
    file = write_service(tmp_path, TOML, CODE)
    with deployed(file) as running:
        asked = [{"id": n} for n in range(int(2 * FULL_PER_S * 3))]
        answers = crowd(f"{running.url}/inference", asked, every_s=0.5 / FULL_PER_S)
        settled = answers[len(answers) // 3 :]  # of what was asked in two seconds: by then the stage is known
        statuses = Counter(answer.status_code for answer in settled)
        assert set(statuses) <= {200, 408, 429}, statuses
        assert statuses[200] >= 0.8 * FULL_PER_S * 2, statuses
        refused = [answer for answer in settled if answer.status_code == 429]
        assert sorted(answer.took_s for answer in refused)[len(refused) // 2] < 0.1
        for answer in refused:
            assert answer.text.startswith("too many requests: this one")
            assert 1 <= int(answer.headers["retry-after-ms"]) <= 10_000
        with running.client() as client:
            counted = client.get("/metrics").text
        found = re.search(r'_rejections_total\{reason="predicted"\} (\d+)', counted)
        assert found is not None
        assert int(found[1]) > 0
