"""The same deployment from Python instead of stages.toml: `python server.py [--port 8000 --timeout 60000 ...]`."""

from service import Score, Tokenize

from engine import Server

ROUTES = ["/v1/rerank", "/v2/rerank"]

if __name__ == "__main__":
    server = Server()
    server.append_worker(Tokenize, num=2, device="cpu", env={"TOKENIZERS_PARALLELISM": "false"}, route=ROUTES)
    server.append_worker(Score, max_batch_size=32, max_batch_cost=16384, max_wait_time=10, route=ROUTES)
    server.run()
