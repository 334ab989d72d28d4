"""The same deployment from Python instead of stages.toml: `python server.py [--port 8000 ...]`."""

from service import ReadJson, ReadMsgpack, Search, WriteJson, WriteMsgpack

from engine import Runtime, Server

if __name__ == "__main__":
    search = Runtime(Search, max_batch_size=64, max_wait_time=5)  # one Runtime on two routes is one pool
    server = Server()
    server.register_runtime(
        {
            "/search": [Runtime(ReadJson, name="read-json"), search, Runtime(WriteJson, name="write-json")],
            "/search.msgpack": [
                Runtime(ReadMsgpack, name="read-msgpack"),
                search,
                Runtime(WriteMsgpack, name="write-msgpack"),
            ],
        }
    )
    server.run()
