"""The same deployment from Python instead of stages.toml: `python server.py [--port 8000 ...]`."""

from service import Classify, Decode, Label

from engine import Server

if __name__ == "__main__":
    server = Server()
    server.append_worker(Decode, num=2, device="cpu")
    server.append_worker(Classify, max_batch_size=32, max_wait_time=5)
    server.append_worker(Label, device="cpu")
    server.run()
