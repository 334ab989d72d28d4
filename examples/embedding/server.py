"""The same deployment from Python instead of stages.toml: `python server.py [--port 8000 --timeout 30000 ...]`."""

from service import Encode, Tokenize

from engine import Server

ROUTE = "/v1/embeddings"
TENSORS = "/v2/models/all-MiniLM-L6-v2/infer"

if __name__ == "__main__":
    server = Server()
    env = {"TOKENIZERS_PARALLELISM": "false"}
    server.append_worker(Tokenize, num=2, max_batch_size=32, device="cpu", env=env, route=[ROUTE, TENSORS])
    server.append_worker(Encode, max_batch_size=64, max_batch_cost=8192, max_wait_time=10, route=[ROUTE, TENSORS])
    server.register_runtime({ROUTE: []}, protocol="openai", model="all-MiniLM-L6-v2")
    server.register_runtime({TENSORS: []}, protocol="oip")
    server.run()
