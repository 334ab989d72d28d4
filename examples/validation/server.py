"""The same deployment from Python instead of stages.toml: `python server.py [--port 8000 ...]`."""

from service import Locate, Quote

from engine import Server

if __name__ == "__main__":
    server = Server()
    server.append_worker(Quote, route="/quote")
    server.append_worker(Locate, max_batch_size=16, route="/locate")
    server.run()
