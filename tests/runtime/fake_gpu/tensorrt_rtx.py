"""What the backends use of `tensorrt_rtx`, with its signatures, on the fake driver.

An engine's file is JSON. It answers with ``displacement[c] = (c + 1) * moving - fixed`` and
``warped = moving + fixed``, when its stream gets there. `LOG` tells what happened. As the real one,
it captures its kernels at the second launch and again whenever an address changes, replays them
after that, and captures nothing on the default stream.
"""

from __future__ import annotations

import ctypes
import enum
import json
import os

import numpy as np

__version__ = os.environ.get("FAKE_TENSORRT", "1.7.1.116")
LOG: list[str] = []
_DRIVER = ctypes.CDLL("libcuda.so.1")
_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1


float32 = DataType.FLOAT


class CudaGraphStrategy(enum.Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class ILogger:
    class Severity(enum.Enum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3

    def log(self, severity: Severity, msg: str) -> None:
        raise NotImplementedError


class IPluginRegistry:
    def __init__(self) -> None:
        self._creators: dict[tuple[str, str, str], str] = {}

    def get_creator(self, type: str, version: str, plugin_namespace: str = "") -> object:
        return self._creators.get((type, version, plugin_namespace))

    def load_library(self, plugin_path: str) -> object:
        with open(plugin_path, encoding="utf-8") as file:
            name = file.read()
        if not name or (name, "1", "") in self._creators:
            return None
        LOG.append(f"plugin {name}")
        self._creators[name, "1", ""] = plugin_path
        return self


_REGISTRY = IPluginRegistry()


def get_plugin_registry() -> IPluginRegistry:
    return _REGISTRY


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        self._logger.log(ILogger.Severity.INFO, "Loaded engine size: 0 MiB")
        try:
            plan = json.loads(serialized_engine)
        except ValueError:
            self._logger.log(ILogger.Severity.ERROR, "Error Code 2: a header that is none.")
            return None
        if "plugin" in plan and get_plugin_registry().get_creator(plan["plugin"], "1") is None:
            self._logger.log(ILogger.Severity.ERROR, "Error Code 4: Plugin not found.")
            return None
        return ICudaEngine(plan, self._logger)


class ICudaEngine:
    def __init__(self, plan: dict, logger: ILogger) -> None:
        self._plan, self._logger = plan, logger

    @property
    def num_io_tensors(self) -> int:
        return len(self._plan["tensors"])

    def get_tensor_name(self, index: int) -> str:
        return list(self._plan["tensors"])[index]

    def get_tensor_shape(self, name: str) -> list[int]:
        return self._plan["tensors"][name]

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[self._plan.get("type", "FLOAT")]

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(
        self, runtime_config: IRuntimeConfig | None = None
    ) -> IExecutionContext | None:
        return None if self._plan.get("too_large") else IExecutionContext(self, runtime_config)


class IRuntimeCache:
    def __init__(self) -> None:
        self._kernels: list[str] = []

    def serialize(self) -> bytes:
        return json.dumps({"version": __version__, "kernels": self._kernels}).encode()

    def deserialize(self, blob: bytes) -> bool:
        try:
            found = json.loads(blob)
        except ValueError:
            found = {}
        if found.get("version") != __version__:
            LOG.append("cache refused")
            return False
        LOG.append("cache loaded")
        self._kernels = found["kernels"]
        return True


class IRuntimeConfig:
    def __init__(self) -> None:
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
        self._cache = IRuntimeCache()

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache | None = None) -> bool:
        self._cache = cache
        return True


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, config: IRuntimeConfig | None) -> None:
        self._engine, self._config = engine, config or IRuntimeConfig()
        self._addresses: dict[str, int] = {}
        self._launches: list = []
        self._captured: dict[str, int] | None = None
        LOG.append(f"context with {self._config.cuda_graph_strategy.name}")

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self._engine._plan["tensors"] or int(memory) % 256:
            self._engine._logger.log(ILogger.Severity.ERROR, f"Error Code 3: address of {name}")
            return False
        self._addresses[name] = int(memory)
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        if self._engine._plan.get("fails"):
            self._engine._logger.log(ILogger.Severity.ERROR, "Error Code 1: no kernel image.")
            return False
        kernels = self._config._cache._kernels
        if "kernel" not in kernels:
            LOG.append("compiled")
            kernels.append("kernel")
        addresses = dict(self._addresses)
        if self._config.cuda_graph_strategy is CudaGraphStrategy.WHOLE_GRAPH_CAPTURE:
            LOG.append(self._capture(addresses, int(stream_handle)))
        launch = _CALLBACK(lambda _: self._compute(addresses))
        self._launches.append(launch)
        return not _DRIVER.cuLaunchHostFunc(ctypes.c_void_p(int(stream_handle)), launch, None)

    def _capture(self, addresses: dict[str, int], stream: int) -> str:
        if stream == 0:
            return "not captured"
        if len(self._launches) == 0 or self._captured == addresses:
            return "launched" if len(self._launches) == 0 else "replayed"
        self._captured = addresses
        return "captured"

    def _compute(self, addresses: dict[str, int]) -> None:
        arrays = {n: _array(a, self._engine.get_tensor_shape(n)) for n, a in addresses.items()}
        moving, fixed = arrays["moving"], arrays["fixed"]
        arrays["displacement"][:] = np.concatenate([n * moving - fixed for n in (1, 2, 3)], axis=1)
        if self._engine._plan.get("not_a_number"):
            arrays["displacement"][0, 1, 2, 3, 4] = np.nan
        if "warped" in arrays:
            arrays["warped"][:] = moving + fixed


def _array(address: int, shape: list[int]) -> np.ndarray:
    count = int(np.prod(shape))
    return np.ctypeslib.as_array((ctypes.c_float * count).from_address(address)).reshape(shape)
