"""``engine graph``: the stages and routes of a deployment as a drawing, in Mermaid's text, or as data. Pure.

Each stage is drawn once, for it batches what all routes bring. Where there are several routes, a step says whose it is,
unless it is everybody's who pass its stage. What stages decide by themselves (``Done``, ``Skip``) is in no file, and is
not drawn.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from engine.config import Deployment, StageSection

# Within quotes Mermaid takes these for its own: https://mermaid.js.org/syntax/flowchart.html#entity-codes-to-escape-characters
_ENTITIES: Final = {'"': "#quot;", "#": "#35;", "<": "#lt;", ">": "#gt;", "`": "#96;"}
_ODD: Final = re.compile(r'["#<>`]')
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


def as_json(deployment: Deployment) -> str:
    """Stages with what they have, and of each route its stages in line and its steps; ``to`` null: the answer."""
    topology = deployment.topology
    document: dict[str, Any] = {
        "name": deployment.engine.name,
        "stages": [
            {
                "name": stage.name,
                "worker": stage.worker,
                "num": stage.num,
                "max_batch_size": stage.max_batch_size,
                "device": stage.device,
            }
            for stage in deployment.stages
        ],
        "routes": [
            {
                "path": route.path,
                "stages": list(route.stages),
                "steps": [{"from": before, "to": after or None, "when": when or None} for before, after, when in edges],
            }
            for route, edges in zip(
                deployment.routes, (topology.edges(number) for number in range(len(topology.routes))), strict=True
            )
        ],
    }
    return json.dumps(document, indent=2, ensure_ascii=False)


def mermaid(deployment: Deployment) -> str:
    """The text of a flow chart."""
    topology = deployment.topology
    nodes = {stage.name: f"s{number}" for number, stage in enumerate(deployment.stages)}
    lines = ["flowchart LR"]
    for number, route in enumerate(deployment.routes):
        lines.append(f"  r{number}([{_quoted(f'POST {route.path}')}])")
    lines += [f"  {nodes[stage.name]}[{_quoted(*_of(stage))}]" for stage in deployment.stages]
    lines.append(f"  answer([{_quoted('the answer')}])")
    whose: dict[tuple[str, str, str], list[str]] = {}
    for number, route in enumerate(deployment.routes):
        lines.append(f"  r{number} --> {nodes[route.stages[0]]}")
        for edge in topology.edges(number):
            whose.setdefault(edge, []).append(route.path)
    for (before, after, when), paths in whose.items():
        through = [route.path for route in deployment.routes if before in route.stages]
        said = [*([when] if when else []), *(paths if paths != through else [])]
        label = f" -- {_quoted(*said)}" if said else ""
        lines.append(f"  {nodes[before]}{label} --> {nodes[after] if after else 'answer'}")
    return "\n".join(lines) + "\n"


def _of(stage: StageSection) -> list[str]:
    """What a stage's box says."""
    count = f"{stage.num} worker{'s' if stage.num != 1 else ''}"
    if stage.is_scaled:
        count = f"{stage.min} to {stage.most} workers"
    batch = f", batches of {stage.max_batch_size}" if stage.max_batch_size > 1 else ""
    return [stage.name, f"{count}{batch}"]


def _quoted(*lines: str) -> str:
    """Text for a node or an edge, with what Mermaid would take for its own written out."""
    made = [_ODD.sub(lambda found: _ENTITIES[found[0]], _CONTROL.sub(" ", line)) for line in lines]
    return f'"{"<br/>".join(made)}"'
