"""The same deployment from Python instead of stages.toml: `python server.py [--port 8000 ...]`."""

from service import Multiply

from engine import Server

CPU = {"without_gpu": "cpu"}
LISTED = ["cuda:0", "cuda:1", "cuda:0"]
HIDDEN = [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]

if __name__ == "__main__":
    server = Server()
    server.append_worker(Multiply, name="auto", num=2, args=CPU, route="/auto")
    server.append_worker(Multiply, name="listed", num=3, device=LISTED, args=CPU, route="/listed")
    server.append_worker(Multiply, name="hidden", num=2, device="cuda:0", env=HIDDEN, args=CPU, route="/hidden")
    server.run()
