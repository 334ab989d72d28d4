"""The same deployment from Python: `python server.py --compression --max-request-size 1048576 [--port 8000 ...]`."""

from service import Statistics

from engine import Server

if __name__ == "__main__":
    server = Server()
    server.append_worker(Statistics)
    server.run()
