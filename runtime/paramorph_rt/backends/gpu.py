"""The NVIDIA GPU that engines run on, as its driver reports it, whatever packages are installed."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

from ..errors import BackendError

DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
COMPUTE_CAPABILITY = (75, 76)  # CUdevice_attribute: major, minor


@dataclass(frozen=True)
class Gpu:
    """The first GPU that this process may use; CUDA_VISIBLE_DEVICES chooses which that is."""

    name: str
    compute_capability: str  # such as "8.6"
    memory_bytes: int
    driver_cuda: str  # newest CUDA that the driver serves, such as "13.0"


def find_gpu() -> Gpu:
    """Ask the driver.

    Raises:
        BackendError: No driver, or no GPU that it can use.

    Source:
        CUDA Driver API, device management.
    """
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError as err:
        raise BackendError(
            "GPU: expected one of NVIDIA and its driver, found no driver; choose --backend "
            "onnxruntime or openvino for the CPU, and leave out --precision fp16."
        ) from err
    version, count, device = (ctypes.c_int() for _ in range(3))
    total = ctypes.c_size_t()
    name = ctypes.create_string_buffer(256)
    _check(driver, driver.cuInit(0))
    _check(driver, driver.cuDriverGetVersion(ctypes.byref(version)))
    _check(driver, driver.cuDeviceGetCount(ctypes.byref(count)))
    if count.value == 0:
        raise BackendError(
            "GPU: expected one of NVIDIA, found its driver alone; check CUDA_VISIBLE_DEVICES."
        )
    _check(driver, driver.cuDeviceGet(ctypes.byref(device), 0))
    _check(driver, driver.cuDeviceGetName(name, len(name), device))
    _check(driver, driver.cuDeviceTotalMem_v2(ctypes.byref(total), device))
    capability = []
    for attribute in COMPUTE_CAPABILITY:
        value = ctypes.c_int()
        _check(driver, driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device))
        capability.append(str(value.value))
    return Gpu(
        name.value.decode(errors="replace"),
        ".".join(capability),
        total.value,
        f"{version.value // 1000}.{version.value % 1000 // 10}",
    )


def _check(driver: ctypes.CDLL, status: int) -> None:
    if status == 0:
        return
    text = ctypes.c_char_p()
    driver.cuGetErrorString(status, ctypes.byref(text))
    what = (text.value or b"an unknown error").decode(errors="replace")
    raise BackendError(
        f"GPU: expected one that answers, got error {status} of its driver ({what}); check "
        "nvidia-smi and CUDA_VISIBLE_DEVICES."
    )
