"""Errors of frameworks are told from a user's, by names and words alone; none of the frameworks is here."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from engine.errors import ServerError, ValidationError, WorkerBroken
from stages.verdict import Verdict, verdict

ASSERT = "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported"


def made(module: str, name: str, *bases: type[BaseException]) -> Any:
    """A class as the framework has it."""
    return type(name, bases or (RuntimeError,), {"__module__": module})


Accelerator = made("torch", "AcceleratorError")
Onnx = made("onnxruntime.capi.onnxruntime_pybind11_state", "Fail", Exception)
Jax = made("jaxlib.xla_extension", "XlaRuntimeError")
Cupy = made("cupy_backends.cuda.api.runtime", "CUDARuntimeError")


def coded(code: int) -> BaseException:
    error: Any = Accelerator("words nobody knows")
    error.error_code = code
    return error  # type: ignore[no-any-return]  # made above


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError(ASSERT), Verdict.BROKEN),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), Verdict.BROKEN),
        (RuntimeError("CUDA error: unspecified launch failure"), Verdict.BROKEN),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), Verdict.BROKEN),
        (RuntimeError("CUDA error: uncorrectable NVLink error detected during the execution"), Verdict.BROKEN),
        (RuntimeError("HIP error: an illegal memory access was encountered"), Verdict.BROKEN),
        (Accelerator(ASSERT), Verdict.BROKEN),
        (coded(700), Verdict.BROKEN),
        (coded(1), Verdict.ITEM),
        (
            Onnx("[ONNXRuntimeError] : 1 : FAIL : CUDA failure 700: an illegal memory access was encountered"),
            Verdict.BROKEN,
        ),
        (Jax("INTERNAL: Failed to launch: CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access"), Verdict.BROKEN),
        (Cupy("cudaErrorLaunchFailure: unspecified launch failure"), Verdict.BROKEN),
        (WorkerBroken("said by the user"), Verdict.BROKEN),
        (MemoryError(), Verdict.MEMORY),
        (made("numpy._core._exceptions", "_ArrayMemoryError", MemoryError)("7 EiB"), Verdict.MEMORY),
        (made("torch", "OutOfMemoryError")("CUDA out of memory. Tried to allocate 2 GiB"), Verdict.MEMORY),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), Verdict.MEMORY),
        (RuntimeError("CUDA error: out of memory"), Verdict.MEMORY),
        (Accelerator("CUDA error: out of memory"), Verdict.MEMORY),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"),
            Verdict.MEMORY,
        ),
        (Jax("RESOURCE_EXHAUSTED: Out of memory while trying to allocate"), Verdict.MEMORY),
        (ValueError(ASSERT), Verdict.ITEM),
        (RuntimeError(f"cannot read {ASSERT}"), Verdict.ITEM),  # a client's words in a user's message
        (RuntimeError("CUDA error: invalid argument"), Verdict.ITEM),
        (RuntimeError("CUDA error: no kernel image is available for execution on the device"), Verdict.ITEM),
        (ValidationError("out of memory"), Verdict.ITEM),
        (SystemExit(1), Verdict.ITEM),
    ],
)
def test_what_an_error_says_of_its_process(error: BaseException, expected: Verdict) -> None:
    assert verdict(error, lambda: None) is expected


def raised(outer: BaseException, inner: BaseException, *, explicit: bool) -> BaseException:
    try:
        try:
            raise inner
        except BaseException as cause:
            if explicit:
                raise outer from cause
            raise outer  # noqa: B904  # beside it, which is what is tested
    except BaseException as error:
        return error


@pytest.mark.parametrize("explicit", [True, False])
def test_a_broken_device_is_found_behind_other_errors(explicit: bool) -> None:
    assert verdict(raised(ServerError("x"), RuntimeError(ASSERT), explicit=explicit), lambda: None) is Verdict.BROKEN


def test_memory_that_user_code_has_dealt_with_is_its_own_affair() -> None:
    assert verdict(raised(ValueError("x"), MemoryError(), explicit=True)) is Verdict.MEMORY
    assert verdict(raised(ValueError("x"), MemoryError(), explicit=False)) is Verdict.ITEM
    assert verdict(raised(ServerError("too large"), MemoryError(), explicit=True)) is Verdict.ITEM


class Wild(RuntimeError):
    def __str__(self) -> str:
        raise SystemExit("not even this")


def test_it_never_fails() -> None:
    assert verdict(made("torch", "Wild", Wild)()) is Verdict.ITEM
    looped = ValueError("x")
    looped.__cause__ = looped
    assert verdict(looped) is Verdict.ITEM


class Cuda:
    def __init__(self, error: BaseException | None) -> None:
        self.error = error

    def is_initialized(self) -> bool:
        return True

    def synchronize(self) -> None:
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize(("refusal", "expected"), [(None, Verdict.ITEM), (RuntimeError(ASSERT), Verdict.BROKEN)])
def test_where_torch_can_be_asked_its_device_decides(
    monkeypatch: pytest.MonkeyPatch, refusal: BaseException | None, expected: Verdict
) -> None:
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=Cuda(refusal)))  # type: ignore[arg-type]  # a stand-in
    assert verdict(RuntimeError(ASSERT)) is expected
