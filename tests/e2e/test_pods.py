"""The commands that are rendered for Kubernetes, run as they stand there in something like its pods: each in
namespaces of its own, so that all have the same pids, with a root that is read-only, as a user who may do nothing, with
the file, the key and the folders where the manifests put them. Only the network is this machine's."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from harness import free_ports, wait_for, write_service

from engine.config import load
from engine.render import About
from engine.render.kubernetes import objects

TOOLS = ("unshare", "nsenter", "setpriv", "mount")
HERE = Path(sys.executable).parent

pytestmark = [
    pytest.mark.unmeasured,  # coverage could not write
    pytest.mark.skipif(
        os.geteuid() != 0 or not all(map(shutil.which, TOOLS)), reason="namespaces of this kind are for root to make"
    ),
]

# A root of its own, of the parts of this machine's, with what the manifests mount; then nothing can be written but to
# /tmp and /dev/shm. A home where the interpreter lies is for its owner alone, so its folders are put where all may go.
POD = """
set -e
mount --make-rprivate /
root=/mnt
mount -t tmpfs -o mode=755 tmpfs $root
for one in /*; do
    case $one in /tmp|/run|/app|/mnt|/root) continue;; esac
    if [ -L $one ]; then cp -P $one $root$one; elif [ -d $one ]; then mkdir $root$one; mount --rbind $one $root$one; fi
done
mkdir $root/root $root/tmp $root/app $root/run
for one in /root/.[!.]*; do
    if [ -d $one ]; then mkdir $root$one; mount --bind $one $root$one; fi
done
mount -t tmpfs -o mode=1777 tmpfs $root/tmp
mount -t tmpfs -o mode=1777 tmpfs $root/dev/shm
mount --bind {folder}/hosts $root/etc/hosts
cp {folder}/service.py {folder}/stages.toml $root/app
mkdir -p $root{secrets}
cp {folder}/deployment.key $root{secrets}
chown 0:{user} $root{secrets}/*
chmod 440 $root{secrets}/*
mount -o remount,ro $root
exec chroot $root {command}
"""

SERVICE = """
import os
from engine import Worker

class Encode(Worker):
    example = {}
    def forward(self, data):
        try:
            open("/app/new", "w")
        except OSError as error:
            return {"uid": os.getuid(), "pid": os.getpid(), "error": error.strerror}
"""

TEXT = """
[engine]
name = "tried"
bind = "tcp://0.0.0.0:{port}"
key = "deployment.key"

[frontend]
port = {http}
workers = 1

[[stage]]
name = "encode"
worker = "service:Encode"
num = 2
"""


class Pod:
    def __init__(self, manifest: dict[str, Any], folder: Path, name: str) -> None:
        (container,) = manifest["spec"]["template"]["spec"]["containers"]
        self._container = container
        spec = manifest["spec"]["template"]["spec"]
        user = spec["securityContext"]["runAsUser"]
        (secrets,) = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "key"]
        variables = {"PATH": f"{HERE}:/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1", "LANG": "C.UTF-8"}
        variables |= {one["name"]: one["value"] for one in container["env"]}
        self._as_user = [
            "setpriv", "--reuid", str(user), "--regid", str(user), "--clear-groups", "--no-new-privs", "env", "-i",
            *[f"{key}={value}" for key, value in variables.items()],
        ]  # fmt: skip
        command = shlex.join([*self._as_user, *container["command"]])
        script = POD.format(folder=folder, user=user, secrets=secrets, command=command)
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                ["unshare", "--pid", "--fork", "--mount-proc", "--mount", "--kill-child=KILL", "sh", "-c", script],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def first(self) -> psutil.Process:
        """Process 1 of the pod."""
        (found,) = psutil.Process(self.process.pid).children()
        return found

    def probe(self, which: str) -> int:
        """The exit code of an exec probe of the manifest, run in the pod."""
        enter = ["nsenter", "-t", str(self.first.pid), "-p", "-m", "chroot", "/mnt"]
        command = [*enter, *self._as_user, *self._container[which]["exec"]["command"]]
        return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode

    def stop(self) -> int:
        self.first.terminate()
        return self.process.wait(30)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def test_the_rendered_commands_run_as_they_stand(folder: Path, stack: ExitStack) -> None:
    port = free_ports(300)
    http = port + 290
    file = write_service(folder, TEXT.format(port=port, http=http))
    (folder / "service.py").write_text(SERVICE)
    (folder / "hosts").write_text("127.0.0.1 localhost tried-broker-0.tried-broker\n")
    subprocess.run([HERE / "engine", "keys", "new", folder / "deployment.key"], check=True, capture_output=True)
    text = file.read_text()
    found = objects(load(file, environ={}), About(text=text))
    made = {one["metadata"]["name"]: one for one in found if one["kind"] in ("Deployment", "StatefulSet")}
    assert found[0]["data"] == {"stages.toml": text}
    pods = {}
    for name in ("tried-broker", "tried-frontend", "tried-encode", "tried-encode"):
        pod = pods[f"{name}{len(pods)}"] = Pod(made[name], folder, f"{name}{len(pods)}")
        stack.callback(pod.kill)

    def ready() -> bool:
        try:
            told = httpx.get(f"http://127.0.0.1:{http}/readyz", trust_env=False, timeout=5).json()
        except (httpx.HTTPError, ValueError):
            return False
        return bool(told["stages"][0]["ready"] == 2)

    try:
        wait_for("both workers", ready, within_s=60)
    except AssertionError as error:
        raise AssertionError("\n".join(pod.log.read_text()[-2000:] for pod in pods.values())) from error
    answers = [httpx.post(f"http://127.0.0.1:{http}/inference", json={}, trust_env=False).json() for _ in range(4)]
    assert {(one["uid"], one["error"]) for one in answers} == {(10001, "Read-only file system")}
    assert len({one["pid"] for one in answers}) == 1  # the same in both pods
    for name, pod in pods.items():
        if "frontend" not in name:
            assert pod.probe("readinessProbe") == 0, pod.log.read_text()
            assert pod.probe("livenessProbe") == 0
    assert [pod.stop() for name, pod in pods.items() if "encode" in name] == [0, 0]
    assert [pod.stop() for name, pod in pods.items() if "encode" not in name] == [0, 0]
