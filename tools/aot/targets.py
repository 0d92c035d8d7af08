"""Accelerators to compile for where there are none, as their compilers are told of them.

A GPU is described by XLA's `GpuTargetConfigProto`; the figures are those of NVIDIA's device query
and data sheets. Without a device nothing can be tuned, so kernels that are only chosen by timing
them are switched off (`_UNTUNED`). libtpu knows TPUs by the names of their slices.
"""

import importlib.util
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from remem_jax import mesh

_GIB = 2**30
_UNTUNED = "--xla_gpu_enable_triton_gemm=false --xla_gpu_autotune_level=0"
# What JAX takes of a GPU when it starts, unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
_GPU_SHARE = 0.75


class Gpu(NamedTuple):
    """What XLA has to know of a GPU.

    Attributes:
        name: As the driver has it.
        capability: CUDA compute capability.
        memory: Bytes.
        bandwidth: Bytes of memory in a second.
        cores: Streaming multiprocessors.
        clock: Of them, GHz.
        threads: That a multiprocessor holds.
        shared: Bytes of shared memory of a multiprocessor, and what a block may ask for.
        cache: Bytes of the second-level cache.
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
        """The text of a `GpuTargetConfigProto`."""
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
        title: For the table.
        device: A GPU, or the name of a slice of TPUs.
        devices: How many, in all.
        hosts: How many machines have them.
        memory: Bytes of a device that programs may take.
    """

    title: str
    device: Gpu | str
    devices: int
    hosts: int
    memory: int

    @property
    def package(self) -> str:
        """The module that brings the compiler."""
        return "libtpu" if isinstance(self.device, str) else "jax_plugins.xla_cuda13"

    @property
    def flags(self) -> str:
        """What XLA_FLAGS must hold: plans compile steps too, which take no options."""
        return "" if isinstance(self.device, str) else _UNTUNED


def _gpus(title: str, gpu: Gpu, devices: int) -> Target:
    return Target(title, gpu, devices, 1, int(_GPU_SHARE * gpu.memory))


# Of the 16 GiB of a v5e libtpu keeps a quarter of one.
_V5E = int(15.75 * _GIB)
TARGETS = {
    "h100": _gpus("1 H100 (80 GB)", H100, 1),
    "8xh100": _gpus("8 H100 (80 GB)", H100, 8),
    "rtx3090": _gpus("1 RTX 3090 (24 GB)", RTX_3090, 1),
    "v5e-8": Target("8 TPU v5e (16 GB)", "v5e:2x4", 8, 2, _V5E),
    "v5e-16": Target("16 TPU v5e (16 GB), 4 hosts", "v5e:4x4", 16, 4, _V5E),
}


def is_installed(target: Target) -> bool:
    """Whether the target's compiler is here; setup.cfg's extra `aot` has both."""
    try:
        return importlib.util.find_spec(target.package) is not None
    except ModuleNotFoundError:  # The parent of a module.
        return False


def make_mesh(target: Target) -> jax.sharding.Mesh:
    """The project's mesh, of the target's devices.

    Raises:
        RuntimeError: If they are not those that the target describes.
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
        raise RuntimeError(f"{target.title}: {len(devices)} devices of {hosts} hosts.")
    return mesh.make_mesh(list(devices))
