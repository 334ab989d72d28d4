"""How much memory a stage takes, on the GPU too: told by torch when user code has loaded it, here a stand-in."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.config import load
from stages import device, dryrun

SERVICE = """
import sys
from stages import Worker

class OnCPU(Worker):
    example = 1

    def forward(self, data):
        return data

class OnGPU(Worker):
    example = 1

    def __init__(self, weights, activations):
        self.cuda, self.activations = sys.modules["torch"].cuda, activations
        self.cuda.allocate(weights)

    def forward(self, data):
        self.cuda.allocate(self.activations)
        self.cuda.allocate(-self.activations)
        return data
"""

FILE = """
[[stage]]
name = "first"
worker = "device_service:OnGPU"
args = { weights = 1000, activations = 10 }

[[stage]]
name = "none"
worker = "device_service:OnCPU"

[[stage]]
name = "last"
worker = "device_service:OnGPU"
args = { weights = 2000, activations = 20 }
"""


class FakeCUDA:
    """As much of ``torch.cuda`` as is asked, with two devices that share what is allocated evenly."""

    def __init__(self) -> None:
        self.now = self.peak = 0

    def allocate(self, count: int) -> None:
        self.now += count
        self.peak = max(self.peak, self.now)

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 2

    def memory_allocated(self, index: int) -> int:
        return self.now // 2

    def max_memory_allocated(self, index: int) -> int:
        return self.peak // 2

    def reset_peak_memory_stats(self, index: int) -> None:
        self.peak = self.now


def test_without_torch_in_use_there_is_no_gpu_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    unused = SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: False))
    for torch in (None, SimpleNamespace(), unused):
        monkeypatch.setitem(sys.modules, "torch", torch)
        device.reset_peak()
        assert (device.gpu_bytes(), device.gpu_peak_bytes()) == (None, None)


def test_peaks_begin_anew_on_every_device(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCUDA()
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    cuda.allocate(100)
    cuda.allocate(-60)
    assert (device.gpu_bytes(), device.gpu_peak_bytes()) == (40, 100)
    device.reset_peak()
    assert (device.gpu_bytes(), device.gpu_peak_bytes()) == (40, 40)


def test_each_stage_is_told_its_own_gpu_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake: Any = SimpleNamespace(cuda=FakeCUDA())
    monkeypatch.setitem(sys.modules, "torch", fake)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "device_service.py").write_text(SERVICE)
    (tmp_path / "stages.toml").write_text(FILE)
    try:
        findings = dryrun.run(load(tmp_path, environ={}))
    finally:
        sys.modules.pop("device_service", None)
    assert [(one.stage, one.status, one.gpu_bytes) for one in findings] == [
        ("first", "ok", 1010),
        ("none", "ok", None),
        ("last", "ok", 2020),
    ]
    first, none, last = dryrun.table(findings).splitlines()[1:4]
    assert "1010 B" in first
    assert "2.0 KiB" in last
    assert " - " in none
