"""Descriptions of accelerators, for compiling without having them.

XLA's `GpuTargetConfigProto` describes a GPU; its values are from NVIDIA's device query and data
sheets. Without a device, XLA cannot time kernels, so those that need autotuning are switched off
(`_UNTUNED`). libtpu knows TPUs by the names of their slices.
"""

import importlib.util
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from remem_jax import mesh

_GIB = 2**30
_UNTUNED = "--xla_gpu_enable_triton_gemm=false --xla_gpu_autotune_level=0"
# Fraction of a GPU's memory that JAX allocates when it starts, unless
# XLA_PYTHON_CLIENT_MEM_FRACTION sets another.
_GPU_SHARE = 0.75


class Gpu(NamedTuple):
    """The properties of a GPU that XLA needs.

    Attributes:
        name: The driver's name of it.
        capability: CUDA compute capability.
        memory: Memory in bytes.
        bandwidth: Memory bandwidth in bytes per second.
        cores: Number of streaming multiprocessors.
        clock: Clock rate of the multiprocessors in GHz.
        threads: Maximum threads of a multiprocessor.
        shared: Shared memory of a multiprocessor in bytes, and the maximum of a block.
        cache: L2 cache in bytes.
    """

    name: str
    capability: tuple[int, int]
    memory: int
    bandwidth: int
    cores: int
    clock: float
    threads: int
    shared: tuple[int, int]
    cache: int

    def config(self) -> str:
        """Returns the text of a `GpuTargetConfigProto`."""
        major, minor = self.capability
        in_core, in_block = self.shared
        return f"""
            gpu_device_info {{
              threads_per_block_limit: 1024  threads_per_warp: 32
              shared_memory_per_block: 49152  shared_memory_per_core: {in_core}
              shared_memory_per_block_optin: {in_block}
              threads_per_core_limit: {self.threads}  core_count: {self.cores}  fpus_per_core: 128
              block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
              memory_bandwidth: {self.bandwidth}  l2_cache_size: {self.cache}
              clock_rate_ghz: {self.clock}  device_memory_size: {self.memory}
              cuda_compute_capability {{ major: {major} minor: {minor} }}
              registers_per_core_limit: 65536  registers_per_block_limit: 65536
            }}
            platform_name: "CUDA"
            dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
            device_description_str: "{self.name}"
        """


H100 = Gpu(
    name="NVIDIA H100 80GB HBM3",
    capability=(9, 0),
    memory=84942979072,
    bandwidth=3352320000000,
    cores=132,
    clock=1.98,
    threads=2048,
    shared=(233472, 232448),
    cache=52428800,
)
RTX_3090 = Gpu(
    name="NVIDIA GeForce RTX 3090",
    capability=(8, 6),
    memory=25286672384,
    bandwidth=936096000000,
    cores=82,
    clock=1.695,
    threads=1536,
    shared=(102400, 101376),
    cache=6291456,
)


class Target(NamedTuple):
    """Devices that a step is compiled for.

    Attributes:
        title: Title in the table.
        device: A GPU, or the name of a TPU slice.
        devices: Number of devices on all hosts.
        hosts: Number of hosts.
        memory: Bytes of each device that programs may use.
    """

    title: str
    device: Gpu | str
    devices: int
    hosts: int
    memory: int

    @property
    def package(self) -> str:
        """Module with the compiler."""
        return "libtpu" if isinstance(self.device, str) else "jax_plugins.xla_cuda13"

    @property
    def flags(self) -> str:
        """Value of XLA_FLAGS: memory plans compile steps too, where options cannot be passed."""
        return "" if isinstance(self.device, str) else _UNTUNED


def _gpus(title: str, gpu: Gpu, devices: int) -> Target:
    return Target(title, gpu, devices, 1, int(_GPU_SHARE * gpu.memory))


# libtpu reserves a quarter of a GiB of the 16 GiB of a v5e.
_V5E = int(15.75 * _GIB)
TARGETS = {
    "h100": _gpus("1 H100 (80 GB)", H100, 1),
    "8xh100": _gpus("8 H100 (80 GB)", H100, 8),
    "rtx3090": _gpus("1 RTX 3090 (24 GB)", RTX_3090, 1),
    "v5e-8": Target("8 TPU v5e (16 GB)", "v5e:2x4", 8, 2, _V5E),
    "v5e-16": Target("16 TPU v5e (16 GB), 4 hosts", "v5e:4x4", 16, 4, _V5E),
}


def is_installed(target: Target) -> bool:
    """Returns whether the target's compiler is installed; the extra `aot` has both compilers."""
    try:
        return importlib.util.find_spec(target.package) is not None
    except ModuleNotFoundError:  # The parent of a module is missing.
        return False


def make_mesh(target: Target) -> jax.sharding.Mesh:
    """Returns the project's mesh of the target's devices.

    Raises:
        RuntimeError: If the compiler has other numbers of devices or hosts.
    """
    if isinstance(target.device, str):
        options: dict[str, Any] = {"platform": "tpu", "topology_name": target.device}
    else:
        options = {
            "platform": "cuda",
            "topology_name": target.device.name,
            "topology": f"1x{target.hosts}x{target.devices // target.hosts}",
            "target_config": target.device.config(),
        }
    devices = topologies.get_topology_desc(**options).devices
    hosts = len({device.process_index for device in devices})
    if (len(devices), hosts) != (target.devices, target.hosts):
        raise RuntimeError(
            f"{target.title}: expected {target.devices} devices of {target.hosts} hosts; got "
            f"{len(devices)} of {hosts}."
        )
    return mesh.make_mesh(list(devices))
