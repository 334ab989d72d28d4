"""The same deployment from Python instead of stages.toml: `python server.py [--port 8000 ...]`."""

from service import SIZES, Predict

from engine import Server

if __name__ == "__main__":
    server = Server()
    server.append_worker(Predict, max_batch_size=SIZES[-1], max_wait_time=5)
    server.run()
