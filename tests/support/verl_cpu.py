"""verl on a machine without accelerators, for test_verl_training: a platform "cpu" and a rollout engine "tiny".

Imported by verl in every process of a run (VERL_USE_EXTERNAL_MODULES), with VERL_PLATFORM=cpu. The engine is what vLLM
is to verl otherwise, in a Ray actor: it samples with the weights that it is given before each step.
"""

import types
from contextlib import nullcontext
from typing import Any

import ray
import torch
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry
from verl.workers.rollout import base
from verl.workers.rollout.replica import RolloutReplica, RolloutReplicaRegistry
from verl_engine import Engine

NAME = "tiny"


class DeviceModule(types.ModuleType):
    """What verl asks of torch.cuda: there is a device, without memory of its own to count or to set up."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if hasattr(torch.cpu, name):
            return getattr(torch.cpu, name)
        answers = {"is_available": True, "mem_get_info": (0, 1), "get_rng_state": None, "get_device_name": "cpu"}
        return lambda *args, **kwargs: answers.get(name, 0)


@PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformBase):
    device_name = "cpu"
    vendor_name = "cpu"
    device_module = DeviceModule("cpu_as_a_device")

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        return True

    def current_device(self) -> str:
        return "cpu"

    def device_count(self) -> int:
        return 1

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "NO_VISIBLE_DEVICES"

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def ray_resource_name(self) -> str:
        return "GPU"  # which verl counts; Ray is told that there are some

    def ray_noset_envvars(self) -> list[str]:
        return []

    def is_ipc_supported(self) -> bool:
        return False

    def nvtx_range(self, msg: str) -> Any:
        return nullcontext()

    def nothing(self, *args: Any) -> None:
        """Of the settings of a device."""

    set_device = synchronize = manual_seed = manual_seed_all = set_allocator_settings = empty_cache = nothing
    profiler_start = profiler_stop = cudart = nothing


def init_process_group(backend: str, *args: Any, **kwargs: Any) -> None:
    """verl's backend is cpu:gloo and one for the device, which torch takes for the same device twice."""
    original("gloo" if backend == "cpu:gloo,cpu:gloo" else backend, *args, **kwargs)


original, torch.distributed.init_process_group = torch.distributed.init_process_group, init_process_group


class Replica(RolloutReplica):
    async def launch_servers(self) -> None:
        actor = ray.remote(Engine).options(name=f"{NAME}_{self.replica_rank}", num_cpus=0)
        self._server_handle = actor.remote(self.model_config.path, self.replica_rank)
        self._server_address = f"{NAME}:{self.replica_rank}"
        self.servers = [self._server_handle]


class Adapter(base.BaseRollout):
    """In the trainer's process: hands the weights over."""

    async def update_weights(self, weights: Any, global_steps: int = 0, **ignored: Any) -> None:
        given = {name: weight.detach().clone() for name, weight in weights}
        await ray.get_actor(f"{NAME}_{torch.distributed.get_rank()}").load.remote(given, global_steps)

    async def resume(self, tags: list[str]) -> None:
        """It never sleeps."""

    async def release(self) -> None:
        """It never sleeps."""


RolloutReplicaRegistry.register(NAME, lambda: Replica)
base._ROLLOUT_REGISTRY[NAME, "async"] = f"{__name__}.Adapter"
# Its imports ask for the platform, so that they come behind its registration
from verl.workers.engine.base import EngineRegistry  # noqa: E402
from verl.workers.engine.fsdp import FSDPEngineWithLMHead  # noqa: E402

EngineRegistry.register("language_model", ["fsdp", "fsdp2"], device="cpu", vendor="cpu")(FSDPEngineWithLMHead)
