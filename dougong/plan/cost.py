"""Time, money, energy and carbon of a run, by published methods.

energy = devices * watts * hours * PUE, carbon = energy * grid intensity (Strubell et al. 2019, "Energy and Policy
Considerations for Deep Learning in NLP"; Lacoste et al. 2019, "Quantifying the Carbon Emissions of Machine Learning";
Patterson et al. 2021, "Carbon Emissions and Large Neural Network Training"). PUE is what a data centre draws for each
watt that reaches its computers. Making the devices is not counted, nor is the time they stand idle.
"""

from __future__ import annotations

from dataclasses import dataclass

from dougong.base import DougongError, nearest
from dougong.plan.hardware import Hardware

JOULES_PER_KWH = 3.6e6

# Patterson et al. 2021, section 2.2: 1.59 is the average of the United States' data centres, 1.10 a large cloud's.
# A machine at home or in an office has no such overhead: 1.0.
PUE_AVERAGE = 1.59

# kg CO2e for a kWh. Averages over a year and a country: one city, hour or supplier differs several times over.
REGIONS: dict[str, tuple[float, str]] = {
    "us": (0.429, "average of the United States, Patterson et al. 2021, table 4"),
    "china": (0.5366, "national average for 2022, Ministry of Ecology and Environment, December 2024"),
    "world": (0.475, "world average, International Energy Agency, Global Energy & CO2 Status Report 2019"),
}


@dataclass(frozen=True)
class Footprint:
    """Energy drawn and what was emitted to make it."""

    energy_kwh: float
    carbon_kg_co2e: float


@dataclass(frozen=True)
class Run:
    """A training run as planned. `cost` is in whatever currency the price was."""

    devices: int
    tokens: float
    flops: float
    tokens_per_second: float
    seconds: float
    footprint: Footprint
    cost: float | None


def intensity(region: str) -> float:
    """kg CO2e for a kWh in that region. Raises DougongError that names the nearest known one."""
    if region not in REGIONS:
        raise DougongError(f"region {region!r} is not in the table{nearest(region, REGIONS)}")
    return REGIONS[region][0]


def footprint(
    seconds: float, watts: float, pue: float = PUE_AVERAGE, kg_co2e_per_kwh: float = REGIONS["world"][0]
) -> Footprint:
    """Energy and carbon of `watts` (all devices together) drawn for `seconds`."""
    if min(seconds, watts, kg_co2e_per_kwh) < 0 or pue < 1:
        raise DougongError(
            f"seconds {seconds}, watts {watts}, PUE {pue} and {kg_co2e_per_kwh} kg CO2e/kWh: expected none below 0 "
            "and a PUE of at least 1"
        )
    energy = seconds * watts * pue / JOULES_PER_KWH
    return Footprint(energy, energy * kg_co2e_per_kwh)


def estimate(
    flops_per_token: float,
    tokens: float,
    device: Hardware,
    devices: int = 1,
    utilisation: float = 0.4,
    watts: float | None = None,
    pue: float = PUE_AVERAGE,
    kg_co2e_per_kwh: float = REGIONS["world"][0],
    price_per_device_hour: float | None = None,
) -> Run:
    """Time and footprint of a run over `tokens` tokens at `flops_per_token` (forward and backward).

    utilisation: the share of the peak that becomes useful work, "MFU" (Chowdhery et al. 2022; well-tuned runs reach 0.3
    to 0.5). watts: measured draw of one device; its published limit where None, which errs on the high side.
    """
    if not 0 < utilisation <= 1:
        raise DougongError(f"utilisation is {utilisation}; expected a share of the peak, above 0 and at most 1")
    if devices < 1 or tokens < 0:
        raise DougongError(f"{devices} devices and {tokens} tokens; expected at least 1 and at least 0")
    speed = devices * device.flops_per_second * utilisation / flops_per_token
    seconds = tokens / speed
    drawn = devices * (device.watts if watts is None else watts)
    price = None if price_per_device_hour is None else devices * seconds / 3600 * price_per_device_hour
    return Run(
        devices=devices,
        tokens=tokens,
        flops=tokens * flops_per_token,
        tokens_per_second=speed,
        seconds=seconds,
        footprint=footprint(seconds, drawn, pue, kg_co2e_per_kwh),
        cost=price,
    )
