"""The same deployment from Python instead of stages.toml: `python server.py [--port 8000 ...]`."""

from service import Decode, Format, Work

from engine import Server

if __name__ == "__main__":
    server = Server()
    server.append_worker(Decode)
    server.append_worker(Work, num=2, max_batch_size=16, max_wait_time=5)
    server.append_worker(Format)
    server.run()
