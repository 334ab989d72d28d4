"""A job as JSON; and in the OpenAPI document how one is asked for, and the paths where it is found. Pure."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any, Final

from engine.config.schema import JOBS
from frontend.jobs.rules import State
from frontend.jobs.store import Job

JOB: Final = "Job"  # the component

# JSON documents, whose shape the OpenAPI specification says.
Json = dict[str, Any]

_TIME: Final[Json] = {"type": "string", "format": "date-time"}
SCHEMA: Final[Json] = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "status": {"type": "string", "enum": [state.word for state in State]},
        "url": {"type": "string"},
        "route": {"type": "string"},
        "created": _TIME,
        "started": _TIME,
        "ended": _TIME,
        "expires": {**_TIME, "description": "When it is given up, or once it is over forgotten."},
        "result": {"type": "string", "description": "Where its answer is, once it is over."},
    },
    "required": ["id", "status", "url", "route", "created", "expires"],
}
PREFER: Final[Json] = {
    "name": "Prefer",
    "in": "header",
    "required": False,
    "description": "`respond-async` asks for a job: 202 at once, and the answer is fetched later.",
    "schema": {"type": "string"},
}


def told(job: Job) -> Json:
    """A job as its client sees it."""
    said: Json = {"id": job.id, "status": job.state.word, "url": f"{JOBS}/{job.id}", "route": job.route}
    for name in ("created", "started", "ended", "expires"):
        if (at := getattr(job, name)) is not None:
            said[name] = datetime.fromtimestamp(at, timezone.utc).isoformat(timespec="milliseconds")
    if job.state in (State.DONE, State.FAILED):
        said["result"] = f"{JOBS}/{job.id}/result"
    return said


def accepted(content: Json) -> Json:
    """The answer to a request for a job; ``content``: a job."""
    return {
        "description": "The request is kept as a job.",
        "headers": {"Location": {"description": "Where the job is.", "schema": {"type": "string"}}},
        "content": content,
    }


def paths(content: Json, missing: Json) -> dict[str, Json]:
    """``content``: a job; ``missing``: the answer where there is none."""
    wait = {**PREFER, "description": "`wait=SECONDS`: once the job is over, or after so long; 60 at most."}
    place: Json = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    shared: Json = {"tags": ["routes"], "parameters": [place]}
    looking: Json = {"tags": ["routes"], "parameters": [place, wait]}
    return {
        f"{JOBS}/{{id}}": {
            "get": {
                "operationId": "get_job",
                "summary": "How a job stands",
                **looking,
                "responses": {"200": {"description": "The job.", "content": content}, "404": missing},
            },
            "delete": {
                "operationId": "delete_job",
                "summary": "Cancel a job, or forget its answer",
                **shared,
                "responses": {"204": {"description": "Done."}, "404": missing},
            },
        },
        f"{JOBS}/{{id}}/result": {
            "get": {
                "operationId": "get_job_result",
                "summary": "What the request would have been answered",
                **looking,
                "responses": {
                    "200": {"description": "The answer; of a request that failed its status and body."},
                    "202": {"description": "The job is not over.", "content": content},
                    "404": missing,
                    "410": {"description": "The job was cancelled."},
                },
            }
        },
    }
