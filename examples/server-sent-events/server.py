"""The same deployment from Python instead of stages.toml: `python server.py [--port 8000 --timeout 30000 ...]`."""

from service import Read, Write

from engine import Server

if __name__ == "__main__":
    server = Server()
    server.append_worker(Read)
    server.append_worker(Write, max_batch_size=8)
    server.run()
