"""The same deployment from Python instead of stages.toml: `python server.py [--port 8000 --timeout 120000 ...]`."""

from service import Draw, Read, Write

from engine import Server

MODEL = "stable-diffusion-v1-5/stable-diffusion-v1-5"

if __name__ == "__main__":
    server = Server()
    server.append_worker(Read, device="cpu")
    server.append_worker(Draw, max_batch_size=4, max_wait_time=50, args={"model": MODEL})
    server.append_worker(Write, num=2, device="cpu")
    server.run()
