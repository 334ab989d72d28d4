"""API keys of a deployment that runs: made and taken away by the command, one limit for all processes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import httpx
import pytest
from harness import ENGINE, deployed, wait_for, write_service
from openai import AuthenticationError, OpenAI, RateLimitError

pytestmark = pytest.mark.unmeasured

SERVICE = """
from engine import Worker

class Embed(Worker):
    def forward(self, data):
        assert "authorization" not in self.context().headers
        vector = {"object": "embedding", "index": 0, "embedding": [1.0]}
        return {"object": "list", "data": [vector], "model": "m", "usage": {"prompt_tokens": 1, "total_tokens": 1}}
"""
TOML = """
[frontend]
workers = 2
api_keys = "api.keys"

[[stage]]
name = "embed"
worker = "service:Embed"

[[route]]
path = "/v1/embeddings"
stages = ["embed"]
protocol = "openai"
"""


def test_keys_of_a_deployment_that_runs(tmp_path: Path) -> None:
    file = write_service(tmp_path, TOML, SERVICE)

    def keys(*words: str) -> str:
        done = subprocess.run(
            [ENGINE, "api-keys", *words, "--file", str(file.parent / "api.keys")],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return done.stdout.strip()

    alice = keys("new", "alice", "--rate", "0.001", "--burst", "10")
    with deployed(file) as running:

        def ask(token: str) -> int:
            with running.client(headers={"authorization": f"Bearer {token}"}) as client:  # a connection each
                return client.post("/v1/embeddings", json={"input": "a"}).status_code

        assert sorted(ask(alice) for _ in range(15)) == [200] * 10 + [429] * 5
        wait_for(
            "what both processes have counted",
            lambda: running.metrics().get('engine_api_key_requests_total{key="alice",outcome="admitted"}') == 10,
        )
        with (
            OpenAI(base_url=f"{running.url}/v1", api_key=alice, max_retries=0) as client,
            pytest.raises(RateLimitError, match="more than the rate of this API key"),
        ):
            client.embeddings.create(model="m", input="a", encoding_format="float")
        bob = keys("new", "bob")
        wait_for("the new key", lambda: [ask(bob) for _ in range(6)] == [200] * 6)
        with OpenAI(base_url=f"{running.url}/v1", api_key=bob, max_retries=0) as client:

            def told() -> object:
                """By the process that this client is connected with, which may be the last to read the file."""
                try:
                    return client.embeddings.create(model="m", input="a", encoding_format="float").data[0].embedding
                except AuthenticationError as error:
                    return "this API key is not known" in str(error)

            wait_for("the client's own answer", lambda: told() == [1.0])
            keys("remove", "bob")
            wait_for("its end", lambda: [ask(bob) for _ in range(6)] == [401] * 6)
            wait_for("its end for the client", lambda: told() is True)
        assert httpx.get(f"{running.url}/readyz", trust_env=False).status_code == 200
        for said in (running.log, running.out, str(running.status())):
            assert alice not in said
            assert bob not in said
