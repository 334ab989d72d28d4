"""Manifests for Kubernetes.

A *cell* is a broker, one pod of the StatefulSet, and for each stage a Deployment of workers that know this broker
alone; the frontends know all brokers, by the names that the headless Service gives their pods. Whatever scales a stage
does it by the metric ``stage_demand_workers``, as the file's ``min`` and ``max`` have it.
"""

from __future__ import annotations

from math import ceil
from typing import Any, Final
from urllib.parse import urlsplit

from engine.config import Deployment
from engine.config.schema import StageSection
from engine.core.cells import share
from engine.core.demand import DOWN_S, UP_S, UTILISATION
from engine.core.processes import Kind
from engine.ports import ports
from engine.render import yaml
from engine.render.about import APP, KEY, RUN_DIR, USER, About, check, gpus, label, stop_s

Object = dict[str, Any]  # of Kubernetes, as its own documentation has it

POLL_S: Final = 5  # of whoever scales, who else would leave a stage without workers alone for half a minute
PROBE_S: Final = 10  # between two probes
PROBE_TIMEOUT_S: Final = 5  # an interpreter starts for one
FILE: Final = f"{APP}/stages.toml"


def render(deployment: Deployment, about: About) -> str:
    """All of it. Raises ConfigError for a deployment that cannot be run so."""
    return yaml.dump(*objects(deployment, about))


def objects(deployment: Deployment, about: About) -> list[Object]:
    check(deployment)
    cluster = _Cluster(deployment, about)
    workers = [(stage, cell) for cell in range(about.cells) for stage in deployment.stages]
    scaled = [cluster.scaled(stage, cell) for stage, cell in workers if stage.is_scaled]
    return [
        cluster.config(),
        cluster.broker_service(),
        cluster.brokers(),
        *[cluster.workers(stage, cell) for stage, cell in workers],
        cluster.frontend_service(),
        cluster.frontends(),
        *cluster.policies(),
        *cluster.budgets(),
        cluster.monitor(),
        *scaled,
    ]


class _Cluster:
    """The objects of one deployment, each made of nothing but that."""

    def __init__(self, deployment: Deployment, about: About) -> None:
        self.deployment, self.about = deployment, about
        self.name = label(deployment.engine.name)
        self.port = urlsplit(deployment.engine.bind).port or 0

    # --- parts of objects

    def _object(self, kind: str, version: str, name: str, labels: Object, **rest: Any) -> Object:
        about = {"name": name, "namespace": self.about.namespace, "labels": labels}
        return {"apiVersion": version, "kind": kind, "metadata": about, **rest}

    def _labels(self, part: str = "", cell: int | None = None) -> Object:
        found = {"app.kubernetes.io/name": self.name, "app.kubernetes.io/managed-by": "stageline"}
        if part:
            found["app.kubernetes.io/component"] = part
        if cell is not None:
            found["stageline/cell"] = str(cell + 1)
        return found

    def _chosen(self, part: str = "", cell: int | None = None) -> Object:
        """What a selector asks for."""
        labels = self._labels(part, cell)
        del labels["app.kubernetes.io/managed-by"]
        return labels

    def _broker(self, cell: int) -> str:
        return f"{self.name}-broker-{cell}.{self.name}-broker:{self.port}"

    def _workers_name(self, stage: StageSection, cell: int) -> str:
        return f"{self.name}-{label(stage.name)}" + (f"-{cell + 1}" if self.about.cells > 1 else "")

    def _pod(self, part: str, only: str, brokers: str, labels: Object, *, stop: int, **about: Any) -> Object:
        """A pod that supervises a part. ``about``: of the container."""
        variables = {"ENGINE_BROKER": brokers, "ENGINE_RUN_DIR": RUN_DIR}
        mounts = [
            {"name": "file", "mountPath": FILE, "subPath": "stages.toml", "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
        ]
        volumes: list[Object] = [
            {"name": "file", "configMap": {"name": f"{self.name}-file"}},
            {"name": "tmp", "emptyDir": {}},
        ]
        if not self.deployment.engine.insecure or self.deployment.engine.key:
            variables["ENGINE_KEY"] = KEY
            folder, _, file = KEY.rpartition("/")
            mounts.append({"name": "key", "mountPath": folder, "readOnly": True})
            secret = {"secretName": f"{self.name}-key", "items": [{"key": file, "path": file}], "defaultMode": 0o440}
            volumes.append({"name": "key", "secret": secret})
        container = {
            "name": part,
            "image": self.about.image_of(self.deployment),
            "command": ["engine", "up", FILE, "--only", only],
            "env": [{"name": name, "value": value} for name, value in variables.items()],
            **about,
            "volumeMounts": mounts,
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            },
        }
        return {
            "metadata": {"labels": labels},
            "spec": {
                "terminationGracePeriodSeconds": stop,
                "automountServiceAccountToken": False,
                "securityContext": {
                    "runAsNonRoot": True,
                    "runAsUser": USER,
                    "runAsGroup": USER,
                    "fsGroup": USER,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "containers": [container],
                "volumes": volumes,
            },
        }

    def _probes(self, only: str, start_s: float) -> Object:
        """What a supervisor says of itself, which takes no network."""
        ask = ["engine", "health", FILE, "--only", only]
        often = {"periodSeconds": PROBE_S, "timeoutSeconds": PROBE_TIMEOUT_S}
        return {
            "startupProbe": {"exec": {"command": ask}, **often, "failureThreshold": ceil(start_s / PROBE_S) + 1},
            "readinessProbe": {"exec": {"command": ask}, **often},
            "livenessProbe": {"exec": {"command": [*ask, "--live"]}, **often, "failureThreshold": 3},
        }

    # --- objects

    def config(self) -> Object:
        return self._object(
            "ConfigMap", "v1", f"{self.name}-file", self._labels(), data={"stages.toml": self.about.text}
        )

    def broker_service(self) -> Object:
        fixed = [one for one in ports(self.deployment) if one.process == "broker" and one.first == one.last]
        spec = {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,  # a worker looks for its broker before that is ready
            "selector": self._chosen("broker"),
            "ports": [{"name": f"port-{one.first}", "port": one.first, "protocol": "TCP"} for one in fixed],
        }
        return self._object("Service", "v1", f"{self.name}-broker", self._labels("broker"), spec=spec)

    def brokers(self) -> Object:
        fixed = [one for one in ports(self.deployment) if one.process == "broker" and one.first == one.last]
        pod = self._pod(
            "broker",
            "broker",
            ",".join(self._broker(cell) for cell in range(self.about.cells)),
            self._labels("broker"),
            stop=stop_s(self.deployment, Kind.BROKER),
            ports=[{"name": f"port-{one.first}", "containerPort": one.first} for one in fixed],
            **self._probes("broker", 30.0),
        )
        spec = {
            "serviceName": f"{self.name}-broker",
            "replicas": self.about.cells,
            "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": self._chosen("broker")},
            "template": pod,
        }
        return self._object("StatefulSet", "apps/v1", f"{self.name}-broker", self._labels("broker"), spec=spec)

    def workers(self, stage: StageSection, cell: int) -> Object:
        limits = {"resources": {"limits": {"nvidia.com/gpu": str(gpus(stage))}}} if gpus(stage) else {}
        only = f"{stage.name}=1"
        pod = self._pod(
            label(stage.name),
            only,
            self._broker(cell),
            self._labels(label(stage.name), cell),
            stop=stop_s(self.deployment, Kind.WORKER),
            **limits,
            **self._probes(only, stage.start_timeout),
        )
        spec: Object = {
            "selector": {"matchLabels": self._chosen(label(stage.name), cell)},
            "template": pod,
        }
        if not stage.is_scaled:  # else whoever scales it says how many
            spec = {"replicas": max(1, share(stage.num, self.about.cells, cell)), **spec}
        labels = self._labels(label(stage.name), cell)
        return self._object("Deployment", "apps/v1", self._workers_name(stage, cell), labels, spec=spec)

    def frontend_service(self) -> Object:
        frontend = self.deployment.frontend
        spec = {
            "selector": self._chosen("frontend"),
            "ports": [{"name": "http", "port": frontend.port, "targetPort": "http", "protocol": "TCP"}],
        }
        return self._object("Service", "v1", f"{self.name}-frontend", self._labels("frontend"), spec=spec)

    def frontends(self) -> Object:
        frontend = self.deployment.frontend
        scheme = {"scheme": "HTTPS"} if frontend.certfile else {}

        def page(path: str) -> Object:
            often = {"periodSeconds": PROBE_S, "timeoutSeconds": PROBE_TIMEOUT_S}
            return {"httpGet": {"path": path, "port": "http", **scheme}, **often}

        pod = self._pod(
            "frontend",
            "frontend",
            ",".join(self._broker(cell) for cell in range(self.about.cells)),
            self._labels("frontend"),
            stop=stop_s(self.deployment, Kind.FRONTEND),
            ports=[{"name": "http", "containerPort": frontend.port}],
            startupProbe={**page("/healthz"), "failureThreshold": 7},
            readinessProbe=page("/readyz"),
            livenessProbe={**page("/healthz"), "failureThreshold": 3},
        )
        spec = {
            "replicas": 2 * self.about.cells,
            "selector": {"matchLabels": self._chosen("frontend")},
            "template": pod,
        }
        return self._object("Deployment", "apps/v1", f"{self.name}-frontend", self._labels("frontend"), spec=spec)

    def policies(self) -> list[Object]:
        """Who may connect to whom: clients to frontends, this deployment's pods to its brokers, nobody to workers."""
        broker = [one for one in ports(self.deployment) if one.process == "broker"]
        first, last = min(one.first for one in broker), max(one.last for one in broker)
        ours = {"podSelector": {"matchLabels": self._chosen()}}
        to_broker = {"from": [ours], "ports": [{"protocol": "TCP", "port": first, "endPort": last}]}
        to_frontend = {"ports": [{"protocol": "TCP", "port": self.deployment.frontend.port}]}

        def policy(name: str, chosen: Object, *ingress: Object) -> Object:
            spec = {"podSelector": {"matchLabels": chosen}, "policyTypes": ["Ingress"], "ingress": list(ingress)}
            return self._object("NetworkPolicy", "networking.k8s.io/v1", name, self._labels(), spec=spec)

        return [
            policy(f"{self.name}-nobody", self._chosen()),
            policy(f"{self.name}-broker", self._chosen("broker"), to_broker),
            policy(f"{self.name}-frontend", self._chosen("frontend"), to_frontend),
        ]

    def budgets(self) -> list[Object]:
        """One pod of a kind at a time is taken away on purpose."""
        chosen = [("broker", self._chosen("broker")), ("frontend", self._chosen("frontend"))]
        chosen += [(label(stage.name), self._chosen(label(stage.name))) for stage in self.deployment.stages]
        return [
            self._object(
                "PodDisruptionBudget",
                "policy/v1",
                f"{self.name}-{part}",
                self._labels(part),
                spec={"maxUnavailable": 1, "selector": {"matchLabels": labels}},
            )
            for part, labels in chosen
        ]

    def monitor(self) -> Object:
        """For the operator of Prometheus. Each frontend tells of the whole deployment."""
        scheme = {"scheme": "https"} if self.deployment.frontend.certfile else {}
        spec = {
            "selector": {"matchLabels": self._chosen("frontend")},
            "podMetricsEndpoints": [{"port": "http", "path": "/metrics", **scheme}],
        }
        return self._object("PodMonitor", "monitoring.coreos.com/v1", self.name, self._labels(), spec=spec)

    def scaled(self, stage: StageSection, cell: int) -> Object:
        """For KEDA, which reads the figure from a frontend's own page."""
        many = self.about.cells > 1
        labels = f'stage="{stage.name}"' + (f',cell="{cell + 1}"' if many else "")
        frontend = self.deployment.frontend
        scheme = "https" if frontend.certfile else "http"
        trigger = {
            "type": "metrics-api",
            "metricType": "AverageValue",
            "metadata": {
                "url": f"{scheme}://{self.name}-frontend.{self.about.namespace}.svc:{frontend.port}/metrics",
                "format": "prometheus",
                "valueLocation": f"{self.deployment.engine.namespace}_stage_demand_workers{{{labels}}}",
                "targetValue": str(UTILISATION),
                # The name of the Service is none of those that a certificate for clients has.
                **({"unsafeSsl": "true"} if frontend.certfile else {}),
            },
        }
        least = share(stage.min, self.about.cells, cell) if many else stage.min
        behaviour = {
            "scaleUp": {"stabilizationWindowSeconds": int(UP_S)},
            "scaleDown": {"stabilizationWindowSeconds": int(DOWN_S)},
        }
        spec = {
            "scaleTargetRef": {"name": self._workers_name(stage, cell)},
            "minReplicaCount": max(least, 1) if stage.min else 0,
            "maxReplicaCount": max(1, share(stage.most, self.about.cells, cell)),
            "pollingInterval": POLL_S,
            "cooldownPeriod": int(DOWN_S),
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": behaviour}},
            "triggers": [trigger],
        }
        part = label(stage.name)
        return self._object(
            "ScaledObject", "keda.sh/v1alpha1", self._workers_name(stage, cell), self._labels(part, cell), spec=spec
        )
