"""The same deployment from Python instead of stages.toml: `python server.py [--port 8000 ...]`."""

from service import CountWords

from engine import Server

if __name__ == "__main__":
    server = Server()
    server.append_worker(CountWords, num=2, max_batch_size=8, name="count")
    server.run()
