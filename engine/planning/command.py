"""``engine plan``, run: which part of this package is asked for, and what is shown of its answer."""

from __future__ import annotations

import argparse
import sys

from engine.config import Deployment
from engine.errors import Unavailable
from engine.exitcodes import ExitCode
from engine.planning.answer import arrivals_of, kept_of, plan_of, service_of, shares_of, slos_of
from engine.planning.files import write
from engine.planning.flags import see_to_words
from engine.planning.profiles import measure, profile_of
from engine.planning.running import compare
from engine.simulation import picture, table


def run(options: argparse.Namespace, deployment: Deployment) -> int:
    """Answer what is asked. Raises ConfigError for files that cannot be read, StartError where a stage cannot be
    measured."""
    if options.measure is not None:
        return measure(deployment, options.measure, options.result_fd)
    try:
        return compare(options, deployment) if options.check else _plan(options, deployment)
    except Unavailable as error:
        print(
            f'engine: no running deployment "{deployment.engine.name}" answers: {error}; start it with: '
            f"engine up {options.file}",
            file=sys.stderr,
        )
        return ExitCode.UNREACHABLE


def _plan(options: argparse.Namespace, deployment: Deployment) -> int:
    see_to_words(options)
    slos_s = slos_of(options, deployment)
    kept = kept_of(options.keep, deployment)
    arrivals = arrivals_of(options)
    profile = profile_of(options, deployment)
    service = service_of(deployment, profile, slos_s, shares_of(options.share, deployment), options.parts)
    plan = plan_of(options, deployment, service, arrivals, kept)
    if options.picture is not None:
        write(options.picture, picture.drawn(plan))
    print(plan.to_json() if options.json else table.text(plan))
    return ExitCode.OK if plan.is_met else ExitCode.FAILED
