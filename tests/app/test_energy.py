"""Energy from counters. If these fail, a figure of energy is made up, or wrong after a counter's overflow."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from masksub.app import energy
from masksub.app.energy import EnergyMeter


def package(root: Path, number: int, microjoules: int, name: str = "package-0") -> Path:
    folder = root / f"intel-rapl:{number}"
    folder.mkdir()
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text("1000000000\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    return folder / "energy_uj"


def test_packages_are_added_up_and_overflow_is_seen(tmp_path: Path) -> None:
    one, two = package(tmp_path, 0, 5_000_000), package(tmp_path, 1, 990_000_000, "package-1")
    package(tmp_path, 2, 0, "psys")
    meter = EnergyMeter.rapl(tmp_path)
    assert meter is not None and meter.name == "CPU packages (RAPL)"
    one.write_text("8000000")
    two.write_text("1000000")  # has started again from 0 at 1,000 J
    assert meter.read() == pytest.approx(3.0 + 11.0)
    assert meter.read() == 0.0


def test_a_sensor_that_falls_silent_gives_no_figure(tmp_path: Path) -> None:
    counter = package(tmp_path, 0, 5)
    meter = EnergyMeter.rapl(tmp_path)
    assert meter is not None
    counter.unlink()
    assert meter.read() is None
    package(tmp_path, 1, 5)
    assert meter.read() is None, "a gap can't be closed afterwards"


def test_no_sensor_no_meter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("masksub.app.energy.POWERCAP", tmp_path)
    assert EnergyMeter.rapl(tmp_path) is None
    assert EnergyMeter.find(torch.device("mps")) is None
    package(tmp_path, 0, 1).write_text("not a number")
    monkeypatch.setattr(EnergyMeter.rapl.__func__, "__defaults__", (tmp_path,))
    assert EnergyMeter.find(torch.device("cpu")) is None


def test_runs_side_by_side_on_a_cpu_have_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would be told the energy of all."""
    package(tmp_path, 0, 5)
    monkeypatch.setattr(EnergyMeter.rapl.__func__, "__defaults__", (tmp_path,))
    assert EnergyMeter.find(torch.device("cpu")) is not None
    monkeypatch.setattr(energy, "_cpu_is_shared", False)  # and back afterwards
    energy.no_cpu()
    assert EnergyMeter.find(torch.device("cpu")) is None
