"""The same deployment from Python instead of stages.toml: `python server.py [--port 8000 ...]`."""

from service import Listen, Play

from engine import Server

if __name__ == "__main__":
    server = Server()
    server.append_worker(Play, num=2)
    server.append_worker(Listen, max_batch_size=16, max_wait_time=5)
    server.run()
