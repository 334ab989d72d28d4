"""Whole routes in one process, without sockets: for tests of a service, and for ``engine check``.

The same classes, (de)serialisation and rules of failure as behind HTTP, one request at a time. What is missing is what
processes bring: isolation of environments, time limits, restarts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import NamedTuple

from engine.config import Deployment
from engine.config.schema import OIP
from engine.core import gathered, oip, sse
from engine.core.messages import Flow, Status
from engine.core.meta import asking, pack, pack_head
from engine.core.wire import Payload
from engine.log import get_logger
from stages.base import Worker
from stages.build import load_offline, most_afar, most_between
from stages.compute import Codec, Outcome, run_batch
from stages.context import ItemIn
from stages.dryrun import check
from stages.stream import Sink, SSEWorker, StreamWorker, flow_of, whole_mime_of
from stages.ways import way_of

__all__ = ["Pipeline", "Reply", "check"]


class Reply(NamedTuple):
    """What a client would get: the body, or for a status other than 200 the message as UTF-8.

    The body of a stream is all of it; a body in pieces that failed in its middle has the failure's status and message.
    """

    status: int
    body: bytes
    mime: str


class Told(Reply):
    """A reply with headers beside the usual."""

    headers: Mapping[str, str] = {}


class Pipeline:
    """One worker of every stage, in this process. Not thread-safe, like the workers.

    Making it loads every class (and raises what that raises); :meth:`close`, or leaving its ``with`` block, tears them
    down.
    """

    def __init__(self, deployment: Deployment) -> None:
        self._topology = deployment.topology
        self._routes = {route.path: number for number, route in enumerate(deployment.routes)}
        self._protocols = {route.path: route.protocol for route in deployment.routes}
        self._specs = deployment.stages
        self.workers: list[Worker] = []
        try:
            for spec in deployment.stages:
                self.workers.append(load_offline(deployment, spec))
        except BaseException:
            self.close()
            raise
        self._codecs = [
            Codec(
                worker,
                most=deployment.frontend.max_response_size,
                most_between=most_between(deployment, spec.name),
                most_afar=most_afar(deployment, spec.name),
            )
            for worker, spec in zip(self.workers, deployment.stages, strict=True)
        ]

    def call(
        self,
        path: str,
        body: bytes,
        *,
        query: str = "",
        headers: Sequence[tuple[str, str]] = (),
        request_id: str = "local",
    ) -> Reply:
        """One request through the stages of the route ``path``. KeyError when there is no such route."""
        route = self._routes[path]
        stage = self._topology.routes[route].stages[0]
        pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        head = pack_head(query.encode("latin-1"), pairs)
        model = oip.model_of(path) if self._protocols[path] == OIP else None
        if model is not None:
            length = next((value for name, value in pairs if name.lower() == oip.LENGTH.encode()), None)
            try:
                head = asking(head, oip.read(model, body, length)[0])
            except oip.Malformed as error:
                return Reply(400, oip.error(f"bad request: {error}"), "application/json")
        meta = pack(request_id, head)
        sent: list[bytes] = []
        stage, outcome, before = self._through(route, stage, body, meta, sent)
        payload = outcome.payload
        # What has failed on its way to a stream, or was answered before it, ends in the words of that.
        ends = [self.workers[end] for end in self._topology.ends(route)]
        last = self.workers[stage] if outcome.status == Status.OK or len(ends) > 1 else ends[0]
        flow, ok = flow_of(last), outcome.status == Status.OK
        if flow is Flow.EVENTS or (flow is Flow.UNKNOWN and len(sent) > before):
            end = b"" if ok else sse.error(outcome.status, _joined(payload).decode())
            return Reply(int(Status.OK), b"".join(map(sse.event, sent)) + end, last.resp_mime_type)
        if not ok:
            if model is not None:
                return Reply(outcome.status, oip.error(_joined(payload).decode()), "application/json")
            return Reply(outcome.status, _joined(payload), "text/plain")
        if model is not None:
            told = dict(outcome.headers or {})
            reply = Told(int(Status.OK), _joined(payload), told.pop("content-type"))
            reply.headers = told
            return reply
        return Reply(int(Status.OK), b"".join(sent) if flow is Flow.CHUNKS else _joined(payload), whole_mime_of(last))

    def _through(
        self, route: int, stage: int, payload: Payload, meta: bytes, sent: list[bytes]
    ) -> tuple[int, Outcome, int]:
        """From ``stage`` on as far as a route leads, or a part of a request on it: where it ended, what with, and how
        many events there were before that stage's."""
        while True:
            way = way_of(self._topology, route, stage)
            item = ItemIn(uid=0, payload=payload, first=way.first, last=way.last, meta=meta, way=way)
            worker = self.workers[stage]
            events = sent if not way.in_parts else []  # as in a deployment nobody gets those of parts
            if isinstance(worker, SSEWorker | StreamWorker):
                worker._sink = _into(events)
            before = len(events)
            self._codecs[stage].has_begun = lambda _item, events=events, before=before: len(events) > before  # type: ignore[misc]
            computed = run_batch(
                worker,
                [item],
                max_batch_size=self._specs[stage].max_batch_size,
                codec=self._codecs[stage],
                sizes=self._specs[stage].batch_sizes,
            )
            outcome = computed.outcomes[0]
            target = computed.targets.get(0, way.after)
            if outcome.status == Status.OK and way.split is not None and outcome.parts is not None:
                slots: list[Payload | None] = []
                heads = way.split.heads if way.split.names else way.split.heads * len(outcome.parts)
                for head, part in zip(heads, outcome.parts, strict=True):
                    ended, found, _ = self._through(route, head, part, meta, [])
                    if found.status != Status.OK and not way.split.holes:
                        return ended, found, before
                    slots.append(found.payload if found.status == Status.OK else None)
                payload, stage = gathered.pack(outcome.payload, slots), way.split.gather
            elif outcome.status != Status.OK or target < 0:
                return stage, outcome, before
            else:
                payload, stage = outcome.payload, target

    def close(self) -> None:
        """Call every worker's ``teardown``; its exceptions are logged."""
        for worker in self.workers:
            try:
                worker.teardown()
            except KeyboardInterrupt:
                raise
            except BaseException:  # the user's; the others are torn down all the same
                get_logger().exception("teardown failed", extra={"stage": worker.stage})
        self.workers = []

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()


def _into(sent: list[bytes]) -> Sink:
    def keep(index: int, data: bytes) -> bool:
        if index == 0:  # the others are padding
            sent.append(data)
        return True

    return keep


def _joined(payload: Payload) -> bytes:
    return b"".join(payload) if type(payload) is tuple else bytes(payload)  # type: ignore[arg-type]
