"""The same deployment from Python instead of stages.toml: `python server.py --compression [--timeout 60000 ...]`."""

from service import Assemble, Detect, Recognise

from engine import Runtime, Server

if __name__ == "__main__":
    detect, assemble = Runtime(Detect, device="auto"), Runtime(Assemble)
    recognise = Runtime(Recognise, max_batch_size=32, max_batch_cost=8192, max_wait_time=10, device="auto")
    way = [detect, {"each": "crops", "through": recognise, "most": 500}, assemble]
    server = Server()
    server.register_runtime({"/inference": way})
    server.register_runtime({"/v2/models/ocr/infer": way}, protocol="oip")
    server.run()
