"""``engine check``: load every class and run the warm-up examples through every stage, in this one process.

Each stage is measured once: with its own examples if it has any, else with what the stage before it on a route
returned, passed on as it would be between processes. A stage that got neither is named as not exercised, not passed
in silence, and is an error where that was asked for. A stage that batches is warmed up with other sizes too, as in a
deployment, and each is shown with what its first and its second call took. The last line sums up.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import msgspec

from engine.config import Deployment, StageSection
from engine.config.units import warm_up_s
from engine.core.routing import Topology
from engine.exitcodes import ExitCode
from engine.loader import load_function
from stages import blame, device
from stages.base import Worker
from stages.build import encoded_size, examples, forward_example, fresh, lasts, load_offline
from stages.costing import coster_of
from stages.feeding import check_splits, coming
from stages.warming import WarmUp, ranges, values_of, warm_up

NOT_EXERCISED: Final = "not exercised"
REPEATS: Final = 5  # further calls the median is taken of
COSTS_SHOWN: Final = 8
REPEAT_S: Final = 2.0  # no further call is begun after this


@dataclass
class SizeFinding:
    """How long ``forward`` took on so many values, the first time and the second (None: there was no time for it)."""

    size: int
    first_s: float
    second_s: float | None


@dataclass
class Finding:
    """What was found out about one stage. Times in seconds, memory and sizes in bytes; None: not measured."""

    stage: str
    status: str = "not loaded"  # ok, failed, not exercised, not loaded
    device: str = ""
    examples: int = 0  # of its own
    fed_by: str | None = None  # the stage whose results it was given, for want of its own examples
    load_s: float | None = None
    first_s: float | None = None
    median_s: float | None = None
    batch: int | None = None  # values in the example that was measured
    sizes: list[SizeFinding] = field(default_factory=list)  # of a stage that batches, in the order of size
    left_out: list[int] = field(default_factory=list)  # sizes that the warm-up has no time or no room for
    exhausted: int | None = None  # the smallest size that memory did not take
    max_batch_cost: int | None = None  # what a batch may cost, where the stage goes by that
    costs: list[float] | None = None  # of the values of its examples, where its class says so
    result_bytes: int | None = None  # of the largest encoded result
    memory_bytes: int | None = None  # most beyond what the process held before the stage was loaded
    gpu_bytes: int | None = None  # the same on GPUs, of torch's tensors; None when the stage allocated none
    too_slow: bool = False  # the median is over the stage's timeout: every such request would get 408
    error: str | None = None
    trace: str | None = None  # from the user's own first line on


def check(deployment: Deployment, *, as_json: bool, strict: bool = False) -> int:
    """Dry-run the deployment and print the findings to stdout. Returns OK, or START if any stage failed.

    ``strict``: a stage that was not exercised is a failure too. Tracebacks of user code go to stderr, from the user's
    own first line on. Stages are torn down before it returns. KeyboardInterrupt passes through.
    """
    findings = run(deployment)
    functions = load_functions(deployment)
    ok = all(finding.status == "ok" or (finding.status == NOT_EXERCISED and not strict) for finding in findings)
    ok = ok and not any(functions.values())
    if as_json:
        stages = [asdict(finding) for finding in findings]
        document = {"name": deployment.engine.name, "ok": ok, "stages": stages, "functions": functions}
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n")
    else:
        told = "".join([f"{name}: {error or 'ok'}\n" for name, error in functions.items()])
        sys.stdout.write(f"{table(findings)}{told}\n{summary(findings, ok=ok)}\n")
    sys.stdout.flush()
    return ExitCode.OK if ok else ExitCode.START


def load_functions(deployment: Deployment) -> dict[str, str | None]:
    """The functions that the file names for the frontend, by where it does: why it could not be loaded, or None."""
    named = {f"[[endpoint]] {own.path}": own.handler for own in deployment.endpoints}
    if deployment.frontend.errors:
        named["[frontend] errors"] = deployment.frontend.errors
    found: dict[str, str | None] = {}
    for where, spec in named.items():
        try:
            load_function(spec, deployment.file.parent)
            found[where] = None
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # whatever user code raises when it is imported
            found[where] = blame.line(error)
            if trace := blame.traceback(error):
                sys.stderr.write(f"{where} cannot be loaded:\n{trace}\n\n")
    return found


def run(deployment: Deployment) -> list[Finding]:
    """The findings, one per stage in the order of the file. Goes on after a failure: every stage's is shown."""
    topology = deployment.topology
    findings = [Finding(spec.name) for spec in deployment.stages]
    workers: dict[int, Worker] = {}
    outputs: dict[int, list[Any]] = {}  # what each exercised stage returned for its last example
    try:
        for number, spec in enumerate(deployment.stages):
            worker = _load(deployment, spec, findings, number)
            if worker is not None:
                workers[number] = worker
        for number in _in_route_order(topology):
            if number in workers:
                results = _exercise(number, deployment, workers, outputs, findings)
                if results is not None:
                    outputs[number] = results
        for number, worker in workers.items():
            _tear_down(worker, findings, number)
    finally:
        workers.clear()
    return findings


def _load(deployment: Deployment, spec: StageSection, findings: Sequence[Finding], number: int) -> Worker | None:
    finding = findings[number]
    memory = _Memory()
    began = time.perf_counter()
    try:
        worker = load_offline(deployment, spec)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever user code raises: it may call sys.exit, or raise what is no Exception
        _fail(findings, number, error, "cannot be loaded")
        return None
    finding.load_s = time.perf_counter() - began
    memory.add_to(finding)
    finding.device = worker.device
    finding.status = NOT_EXERCISED
    return worker


def _in_route_order(topology: Topology) -> list[int]:
    """Every stage once, those that feed others first."""
    return list(dict.fromkeys(stage for route in topology.routes for stage in route.stages))


def _exercise(
    number: int,
    deployment: Deployment,
    workers: dict[int, Worker],
    outputs: dict[int, list[Any]],
    findings: Sequence[Finding],
) -> list[Any] | None:
    """Run one stage; what it returned, or None if it was not run or failed."""
    worker, finding, spec = workers[number], findings[number], deployment.stages[number]
    plan = WarmUp(spec.max_batch_size, spec.batch_sizes)
    try:
        inputs = examples(worker)
        finding.examples = len(inputs)
        if not inputs:
            inputs = _fed(number, deployment.topology, workers, outputs, findings)
        if not inputs:
            return None
        finding.max_batch_cost = spec.max_batch_cost or None
        if (coster := coster_of(worker)) is not None:
            plan.doing = "asking what its example costs"
            finding.costs = [coster.asked(value) for example in inputs for value in values_of(worker, [example])]
            plan.doing = "computing its example"
        results = _measure(worker, inputs, finding, spec, plan)
        finding.result_bytes = encoded_size(worker, results, lasts(deployment, spec.name))
        check_splits(deployment.topology, number, results)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # as above
        _fail(findings, number, error, f"failed while {plan.doing}")
        return None
    finding.status = "ok"
    finding.too_slow = finding.median_s is not None and finding.median_s > spec.timeout
    return results


def _fed(
    number: int,
    topology: Topology,
    workers: dict[int, Worker],
    outputs: dict[int, list[Any]],
    findings: Sequence[Finding],
) -> list[Any]:
    """The results of a stage before, as they arrive here, made into examples for this stage."""
    for former, values in coming(number, topology, workers, outputs):
        if not values:
            continue
        findings[number].fed_by = workers[former].stage
        most = workers[number].max_batch_size
        return [values[:most]] if most > 1 else values[:1]
    return []


def _measure(worker: Worker, inputs: Sequence[Any], finding: Finding, spec: StageSection, plan: WarmUp) -> list[Any]:
    memory = _Memory()
    began = time.perf_counter() - (finding.load_s or 0.0)
    results = warm_up(worker, plan, inputs, asked_s=warm_up_s(spec.warm_up), began=began)
    finding.first_s = plan.first_s
    if spec.max_batch_size > 1:
        finding.sizes = [SizeFinding(size, one.first_s, one.second_s) for size, one in sorted(plan.tried.items())]
        finding.left_out, finding.exhausted = sorted(plan.left_out), plan.exhausted or None
    example = inputs[-1] if not plan.exhausted else inputs[-1][: plan.fitted]
    times: list[float] = []
    until = time.perf_counter() + REPEAT_S
    while len(times) < REPEATS and (not times or time.perf_counter() < until):
        value = fresh(worker, example)
        began = time.perf_counter()
        results = forward_example(worker, value)
        times.append(time.perf_counter() - began)
    finding.median_s = statistics.median(times)
    finding.batch = len(results)
    memory.add_to(finding)
    return results


class _Memory:
    """What this process comes to hold from now on: the stages before hold theirs all the while."""

    def __init__(self) -> None:
        device.reset_peak()
        self._main = device.resident_bytes()
        self._gpu = device.gpu_bytes() or 0

    def add_to(self, finding: Finding) -> None:
        finding.memory_bytes = (finding.memory_bytes or 0) + max(0, device.peak_bytes() - self._main)
        gpu = max(0, (device.gpu_peak_bytes() or 0) - self._gpu)
        if gpu or finding.gpu_bytes is not None:
            finding.gpu_bytes = (finding.gpu_bytes or 0) + gpu


def _tear_down(worker: Worker, findings: Sequence[Finding], number: int) -> None:
    try:
        worker.teardown()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the user's
        _fail(findings, number, error, "failed in teardown")


def _fail(findings: Sequence[Finding], number: int, error: BaseException, what: str) -> None:
    """Note a failure, and show its traceback at once; one that other stages have met as well, once."""
    finding, trace = findings[number], blame.traceback(error)
    finding.status, finding.error = "failed", blame.line(error)
    if trace and all(other.trace != trace for other in findings):
        sys.stderr.write(f"stage {finding.stage} {what}:\n{trace}\n\n")
    finding.trace = trace or None


# --- showing it ------------------------------------------------------------------------------------------------------


def table(findings: Sequence[Finding]) -> str:
    """The findings for people: a line per stage, then what deserves a word."""
    rows = [("stage", "status", "device", "load", "first call", "median", "batch", "memory", "GPU", "result")]
    for finding in findings:
        rows.append(
            (
                finding.stage,
                finding.status,
                finding.device or "-",
                _time(finding.load_s),
                _time(finding.first_s),
                _time(finding.median_s),
                "-" if finding.batch is None else str(finding.batch),
                _size(finding.memory_bytes),
                _size(finding.gpu_bytes),
                _size(finding.result_bytes),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for finding in findings:
        lines += _by_size(finding)
        if finding.max_batch_cost is not None and finding.costs is None:
            lines.append(f"{finding.stage}: its class has no cost(value): what a payload costs is its bytes")
        if finding.costs:
            shown = ", ".join(f"{cost:g}" for cost in finding.costs[:COSTS_SHOWN])
            more = f" and {len(finding.costs) - COSTS_SHOWN} more" if len(finding.costs) > COSTS_SHOWN else ""
            lines.append(
                f"{finding.stage}: the values of its examples cost {shown}{more}; a batch, {finding.max_batch_cost}"
            )
        if finding.error is not None:
            lines.append(f"{finding.stage}: {finding.error}")
        elif finding.status == NOT_EXERCISED:
            lines.append(
                f"{finding.stage}: not exercised: give its class an example (a value that forward takes, "
                "where it batches a list of them), or one to a stage before it"
            )
        elif finding.fed_by is not None:
            lines.append(f"{finding.stage}: has no example of its own; ran on the results of {finding.fed_by}")
        if finding.too_slow:
            lines.append(f"{finding.stage}: slower than its timeout: such requests get 408; raise the stage's timeout")
    return "\n".join(lines) + "\n"


def _by_size(finding: Finding) -> list[str]:
    """A line per size; none where there is but one, which its stage's line has shown."""
    if len(finding.sizes) < 2 and not finding.left_out and finding.exhausted is None:
        return []
    lines = [f"{finding.stage}: first and second call by size of batch:"]
    for one in finding.sizes:
        lines.append(f"{one.size:>8}  {_time(one.first_s):>12}  {_time(one.second_s):>12}".rstrip())
    if finding.exhausted is not None:
        lines.append(f"{finding.exhausted:>8}  does not fit in memory: such batches are computed in parts")
    if finding.left_out:
        lines.append(f'{"":8}  no time for {ranges(finding.left_out)}: warm_up = "1 min" takes more')
    return lines


def summary(findings: Sequence[Finding], *, ok: bool) -> str:
    """The last line: how many stages are which, and what was not found out."""
    counts = Counter(finding.status for finding in findings)
    told = ", ".join(f"{count} {status}" for status, count in counts.items())
    untried = counts[NOT_EXERCISED]
    hint = " (an error with --strict)" if untried and ok else ""
    return f"check {'passed' if ok else 'FAILED'}: {len(findings)} stage{'s' * (len(findings) != 1)}: {told}{hint}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.2f} ms"


def _size(count: int | None) -> str:
    if count is None:
        return "-"
    if count < 1024:
        return f"{count} B"
    value, unit = count / 1024, "KiB"
    for larger in ("MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.1f} {unit}"
