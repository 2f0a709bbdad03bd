"""What the makers of accelerators publish about them, for dense matrix products: no doubling by sparsity."""

from __future__ import annotations

from dataclasses import dataclass

from dougong.base import DougongError, nearest


@dataclass(frozen=True)
class Hardware:
    """One device. `flops_per_second` is the peak of bfloat16 matrix products (float16 where the device has no bfloat16)
    with float32 sums; `watts` the board's limit, which a training run comes close to but rarely reaches."""

    name: str
    flops_per_second: float
    memory_bytes: float
    bytes_per_second: float
    watts: float
    source: str


def _device(
    name: str, teraflops: float, gigabytes: float, gigabytes_per_second: float, watts: float, source: str
) -> Hardware:
    return Hardware(name, teraflops * 1e12, gigabytes * 1e9, gigabytes_per_second * 1e9, watts, source)


HARDWARE: dict[str, Hardware] = {
    device.name: device
    for device in (
        _device("v100-32gb", 125.0, 32.0, 900.0, 300.0, "NVIDIA V100 datasheet, SXM2, float16"),
        _device("t4", 65.0, 16.0, 320.0, 70.0, "NVIDIA T4 datasheet, float16"),
        _device("a100-40gb", 312.0, 40.0, 1555.0, 400.0, "NVIDIA A100 datasheet, SXM4"),
        _device("a100-80gb", 312.0, 80.0, 2039.0, 400.0, "NVIDIA A100 datasheet, SXM4"),
        _device("h100", 989.0, 80.0, 3350.0, 700.0, "NVIDIA H100 datasheet, SXM5"),
        _device("h200", 989.0, 141.0, 4800.0, 700.0, "NVIDIA H200 datasheet, SXM5"),
        _device("l4", 121.0, 24.0, 300.0, 72.0, "NVIDIA L4 datasheet"),
        _device("l40s", 362.0, 48.0, 864.0, 350.0, "NVIDIA L40S datasheet"),
        _device("rtx3090", 71.0, 24.0, 936.0, 350.0, "NVIDIA Ampere GA102 whitepaper"),
        _device("rtx4090", 165.0, 24.0, 1008.0, 450.0, "NVIDIA Ada architecture whitepaper"),
        _device("mi300x", 1307.0, 192.0, 5300.0, 750.0, "AMD Instinct MI300X datasheet"),
    )
}


def hardware(name: str) -> Hardware:
    """The device of that name. Raises DougongError that names the nearest known one."""
    if name.lower() not in HARDWARE:
        raise DougongError(f"hardware {name!r} is not in the table{nearest(name.lower(), HARDWARE)}")
    return HARDWARE[name.lower()]
