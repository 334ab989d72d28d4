"""What one frontend process counts. Plain numbers in one event loop; :meth:`FrontendMetrics.families` hands them out.

Labels are bounded: an endpoint is one of the configured paths or ``other``, a code is a status, a reason a row of the
table of errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from engine.config.schema import JOBS, PAGE, RESERVED_PATHS
from engine.core import oip
from engine.core.stats import Histogram, Label, duration_buckets
from engine.metrics import Family, counter, gauge, histogram, lost_lines_family
from frontend.accesslog import AccessLog

if TYPE_CHECKING:
    from frontend.apikeys import Keys
    from frontend.jobs.runner import Runner
    from frontend.tracing import Traces

OTHER: Final = "other"


class FrontendMetrics:
    """Counts answers. ``pending`` is asked for the number of requests not answered yet when families are made."""

    def __init__(
        self, namespace: str, endpoints: Iterable[str], timeout_s: float, access: AccessLog | None = None
    ) -> None:
        """``access``: where each of them is told; None: nowhere."""
        self._namespace = namespace
        self.access = access
        self.keys: Keys | None = None  # by which clients come in
        self.traces: Traces | None = None  # who makes a span of each; None: nobody
        buckets = duration_buckets(timeout_s)
        self._durations = {path: Histogram(buckets) for path in endpoints}
        self._answers: dict[tuple[int, str], int] = {}
        self._rejections: dict[str, int] = {}
        self._request_bytes = 0
        self._response_bytes = 0
        self.pending: Callable[[], int] = lambda: 0
        self.jobs: Runner | None = None
        self.dropped: Callable[[], tuple[int, int]] = lambda: (0, 0)  # connections, for want of descriptors

    def count(
        self,
        path: str,
        status: int,
        *,
        reason: str = "",
        duration_s: float = 0.0,
        request_bytes: int = 0,
        response_bytes: int = 0,
        who: Label | None = None,
    ) -> None:
        """One answer. Health, metrics and pages about the service are not counted unless they were refused;
        status 0 (nothing was sent) counts as 499, a client that left. ``who``: by what the request can be found."""
        durations = self._durations.get(path)
        if durations is None:
            if _is_about_service(path) and not reason:
                return
            path = OTHER
        elif who is None:
            durations.observe(duration_s)
        else:
            durations.observe_one(duration_s, who)
        key = (status or 499, path)
        self._answers[key] = self._answers.get(key, 0) + 1
        if reason:
            self._rejections[reason] = self._rejections.get(reason, 0) + 1
        self._request_bytes += request_bytes
        self._response_bytes += response_bytes

    def tells(self, path: str, reason: str) -> bool:
        """Whether the access log has a line for such a request: pages about the service are not told, like
        :meth:`count`."""
        return path in self._durations or bool(reason) or not _is_about_service(path)

    def families(self) -> list[Family]:
        """All of it, named with the namespace."""
        prefix = self._namespace
        return [
            counter(
                f"{prefix}_throughput",
                "answers by status code and endpoint",
                [({"code": str(code), "endpoint": path}, n) for (code, path), n in self._answers.items()],
            ),
            histogram(
                f"{prefix}_process_duration_second",
                "time of a batch at a stage and its worker (total: of a request, headers to answer), in seconds",
                [({"stage": "total", "connection": "total"}, Histogram.sum_of(self._durations.values()))],
            ),
            # Apart from the family above, whose labels are those that Mosec's dashboards know.
            histogram(
                f"{prefix}_request_duration_second",
                "time of a request from its headers to its answer, by endpoint, in seconds",
                [({"endpoint": path}, one) for path, one in self._durations.items()],
            ),
            # Not `remaining_task`: that is the broker's, for the whole deployment, and the two would be summed.
            lost_lines_family(prefix, "frontend", self.access.lost if self.access is not None else 0),
            gauge(f"{prefix}_frontend_pending", "requests handed to the broker and not answered yet", self.pending()),
            counter(
                f"{prefix}_rejections",
                "requests refused by a frontend, by reason",
                [({"reason": reason}, n) for reason, n in self._rejections.items()],
            ),
            gauge(
                f"{prefix}_jobs_running",
                "jobs that this process has computed now",
                self.jobs.running if self.jobs is not None else 0,
            ),
            counter(
                f"{prefix}_jobs",
                "jobs that are over, by how they ended: done, or failed",
                [({"state": word}, n) for word, n in self.jobs.finished.items()] if self.jobs is not None else [],
            ),
            counter(
                f"{prefix}_webhooks",
                "messages that a job is over, by whether they were taken in the end",
                [({"state": word}, n) for word, n in self.jobs.hooks.items()] if self.jobs is not None else [],
            ),
            counter(
                f"{prefix}_api_key_requests",
                "requests of each API key, by what became of them: admitted, or the limit that refused them",
                self.keys.outcomes() if self.keys is not None else [],
            ),
            counter(
                f"{prefix}_connections_dropped",
                "connections that ended for want of descriptors: idle ones to make room, and new ones without any",
                [({"which": which}, n) for which, n in zip(("idle", "new"), self.dropped(), strict=True)],
            ),
            counter(f"{prefix}_request_bytes", "bytes of request bodies read", [({}, self._request_bytes)]),
            counter(f"{prefix}_response_bytes", "bytes of response bodies sent", [({}, self._response_bytes)]),
        ]


def _is_about_service(path: str) -> bool:
    is_below = path.startswith(("/openapi/", f"{PAGE}/", f"{JOBS}/"))
    return is_below or path in RESERVED_PATHS or path == PAGE or oip.is_about(path)
