"""The containers of one machine, for ``docker compose``."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlsplit

from engine.config import Deployment
from engine.core.processes import Kind
from engine.render import yaml
from engine.render.about import APP, KEY, RUN_DIR, About, check, gpus, label, stop_s

# The secret is the file of the host, with the owner and the mode that it has there, and it is read by its owner alone:
# so its owner is who the containers run as.
OWNER: Final = "${KEY_OWNER:-1000:1000}"


def render(deployment: Deployment, about: About) -> str:
    """A ``compose.yaml``; the file, the key and the Dockerfile lie beside it. Raises ConfigError."""
    check(deployment)
    port = urlsplit(deployment.engine.bind).port
    file = f"{APP}/{deployment.file.name}"
    is_secret = not deployment.engine.insecure or bool(deployment.engine.key)

    def service(only: str, stop: int, **rest: Any) -> dict[str, Any]:
        variables = {"ENGINE_BROKER": f"broker:{port}", "ENGINE_RUN_DIR": RUN_DIR}
        health = ["CMD", "engine", "health", file, "--only", only]
        made = {
            "image": about.image_of(deployment),
            "build": ".",
            "command": ["up", file, "--only", only],
            "environment": variables | ({"ENGINE_KEY": KEY} if is_secret else {}),
            "read_only": True,
            "tmpfs": ["/tmp"],
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges:true"],
            "restart": "unless-stopped",
            "stop_grace_period": f"{stop}s",
            "healthcheck": {"test": health, "interval": "10s", "timeout": "5s", "start_interval": "1s"},
            **rest,
        }
        if is_secret:
            made["user"] = OWNER
            made["secrets"] = [{"source": "key", "target": KEY}]
        return made

    http = deployment.frontend.port
    services = {
        "broker": service("broker", stop_s(deployment, Kind.BROKER)),
        "frontend": service("frontend", stop_s(deployment, Kind.FRONTEND), ports=[f"{http}:{http}"]),
    }
    for stage in deployment.stages:
        deploy: dict[str, Any] = {}
        if gpus(stage):
            devices = [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]
            deploy = {"deploy": {"resources": {"reservations": {"devices": devices}}}}
        services[label(stage.name)] = service(
            stage.name if stage.num else f"{stage.name}=1", stop_s(deployment, Kind.WORKER), **deploy
        )
    whole: dict[str, Any] = {"name": label(deployment.engine.name), "services": services}
    if is_secret:
        whole["secrets"] = {"key": {"file": "./deployment.key"}}
    return yaml.dump(whole)
