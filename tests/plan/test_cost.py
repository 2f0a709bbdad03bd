"""Time, energy and carbon: published runs come out as published; units and refusals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dougong.base import DougongError
from dougong.model import decoder_spec
from dougong.plan import HARDWARE, Hardware, estimate, footprint, hardware, plan


def test_gpt3_as_published():
    """Patterson et al. 2021, table 4: 3.14e23 operations on 10,000 V100 at 24.6 Tflop/s and 330 W each, PUE 1.10,
    0.429 kg/kWh: 14.8 days, 1,287 MWh, 552.1 t CO2e."""
    device = Hardware("V100", 24.6e12, 32e9, 900e9, 330.0, "Patterson et al. 2021")
    run = estimate(3.14e23, 1.0, device, devices=10_000, utilisation=1.0, pue=1.10, kg_co2e_per_kwh=0.429)
    assert run.seconds / 86400 == pytest.approx(14.8, abs=0.05)
    assert run.footprint.energy_kwh / 1000 == pytest.approx(1287, rel=0.005)
    assert run.footprint.carbon_kg_co2e / 1000 == pytest.approx(552.1, rel=0.005)


def test_units():
    hour = footprint(3600.0, 1000.0, pue=1.0, kg_co2e_per_kwh=0.5)
    assert (hour.energy_kwh, hour.carbon_kg_co2e) == (1.0, 0.5)


@given(st.integers(1, 64), st.floats(0.01, 1), st.floats(1, 1e12))
def test_more_devices_take_less_time_and_the_same_energy(devices, utilisation, tokens):
    one = estimate(6e9, tokens, HARDWARE["a100-80gb"], 1, utilisation, price_per_device_hour=2.0)
    many = estimate(6e9, tokens, HARDWARE["a100-80gb"], devices, utilisation, price_per_device_hour=2.0)
    assert many.seconds * devices == pytest.approx(one.seconds)
    assert many.footprint.energy_kwh == pytest.approx(one.footprint.energy_kwh)
    assert many.cost == pytest.approx(one.cost)


def test_plan_puts_it_together():
    spec = decoder_spec(4096, 256, 4, 4, 512)
    bill = plan(spec, device="l4", train_tokens=1e9, region="china")
    assert bill.run is not None
    assert bill.run.flops == pytest.approx(1e9 * bill.training_flops_per_token)
    assert bill.run.tokens_per_second * bill.run.seconds == pytest.approx(1e9)
    assert bill.run.cost is None
    assert bill.run.footprint.carbon_kg_co2e == pytest.approx(bill.run.footprint.energy_kwh * 0.5366)
    assert bill.fits(hardware("l4")) == (True, True)
    assert 0 < bill.embedding_share < 1
    assert plan(spec).run is None


def test_wrong_requests_are_refused_by_name():
    with pytest.raises(DougongError, match="h100"):
        hardware("h1000")
    with pytest.raises(DougongError, match="china"):
        plan(decoder_spec(64, 32, 1, 2, 16), device="l4", region="chna")
    with pytest.raises(DougongError, match=r"utilisation is 1\.5"):
        estimate(1.0, 1.0, HARDWARE["l4"], utilisation=1.5)
    with pytest.raises(DougongError, match="0 devices"):
        estimate(1.0, 1.0, HARDWARE["l4"], devices=0)
    with pytest.raises(DougongError, match=r"PUE 0\.9"):
        footprint(1.0, 1.0, pue=0.9)
