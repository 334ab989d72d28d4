"""The same deployment from Python instead of stages.toml: `python server.py [--port 8000 ...]`."""

from service import Look, Make

from engine import Server

if __name__ == "__main__":
    server = Server()
    server.append_worker(Make)
    server.append_worker(Look)
    server.run()
