"""The actors of deployments on a cluster: found, started, asked. Used by commands, and by the actor that scales."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from engine.onray.parts import NAMESPACE, Part

ANSWER_S: Final = 2.0


@dataclass(frozen=True)
class Told:
    """What the holders of a deployment's parts are told beside their part: see :class:`engine.onray.holder.Holder`."""

    file: str
    broker: str
    fixed_ports: int
    given: Mapping[str, str]


class Actors:
    """Those in our namespace."""

    def __init__(self, ray: Any) -> None:  # the module
        self.ray = ray

    def names(self, deployment: str) -> Collection[str]:
        """Of a deployment's parts that there are, placed or not."""
        listed = self.ray.util.list_named_actors(all_namespaces=True)
        prefix = f"{deployment}/"
        return {one["name"] for one in listed if one["namespace"] == NAMESPACE and one["name"].startswith(prefix)}

    def named(self, name: str) -> Any:
        """An actor, or None."""
        with suppress(ValueError):
            return self.ray.get_actor(name, namespace=NAMESPACE)
        return None

    def start(self, part: Part, told: Told) -> Any:
        """An actor for it, which Ray places where there is room, now or later."""
        from engine.onray.holder import Holder

        options = self.ray.remote(Holder).options(
            name=part.name,
            namespace=NAMESPACE,
            lifetime="detached",
            num_cpus=part.cpus,
            num_gpus=part.gpus,
            max_restarts=-1,
            max_concurrency=8,
            scheduling_strategy="SPREAD",
        )
        return options.remote(part, told.file, told.broker, told.fixed_ports, told.given)

    def kill(self, actor: Any) -> None:
        """For good: it is not started again."""
        self.ray.kill(actor)

    def has_come(self, answer: Any) -> bool:
        """Whether a call has been answered, or has failed."""
        done, _ = self.ray.wait([answer], timeout=0)
        return bool(done)

    def asked(self, questions: Sequence[Any], within_s: float = ANSWER_S) -> list[Any]:
        """The answers to calls of actors, in order; None for those that do not come in time or failed."""
        if not questions:
            return []
        self.ray.wait(list(questions), num_returns=len(questions), timeout=within_s)
        answers = []
        for question in questions:
            try:
                answers.append(self.ray.get(question, timeout=0.01))
            except Exception:  # of an actor that is not placed, or is being placed again
                answers.append(None)
        return answers
