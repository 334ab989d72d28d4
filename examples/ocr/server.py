"""The same deployment from Python instead of stages.toml: `python server.py [--port 8000 --timeout 60000 ...]`."""

from service import Assemble, Detect, Recognise

from engine import Server

if __name__ == "__main__":
    server = Server()
    server.append_worker(Detect, device="auto")
    server.append_worker(Recognise, max_batch_size=16, max_batch_cost=16384, max_wait_time=10, device="auto")
    server.append_worker(Assemble)
    server.run()
