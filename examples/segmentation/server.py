"""The same deployment from Python instead of stages.toml: `python server.py [--port 8000 --compression ...]`."""

from service import Decode, Paint, Segment

from engine import Server

if __name__ == "__main__":
    server = Server()
    server.append_worker(Decode, device="cpu")
    server.append_worker(Segment, max_batch_size=16, max_wait_time=5, device="auto")
    server.append_worker(Paint, device="cpu")
    server.run()
