"""The random generators of accelerators, which stand-ins replace: most machines have none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ckptstore.training.random_state import RandomState

if TYPE_CHECKING:
    import pytest


class Accelerator:
    """The random generators of some devices, as torch.cuda, torch.xpu and torch.mps offer them."""

    def __init__(self, *states: int) -> None:
        self.states = [torch.tensor([state]) for state in states]

    def is_available(self) -> bool:
        return bool(self.states)

    def device_count(self) -> int:
        return len(self.states)

    def get_rng_state(self, device: int = 0) -> torch.Tensor:
        return self.states[device]

    def set_rng_state(self, state: torch.Tensor, device: int = 0) -> None:
        self.states[device] = state


class OneDevice(Accelerator):
    """As torch.mps, whose functions take no device."""

    def get_rng_state(self) -> torch.Tensor:  # type: ignore[override]
        return super().get_rng_state()

    def set_rng_state(self, state: torch.Tensor) -> None:  # type: ignore[override]
        super().set_rng_state(state)


def placed(monkeypatch: pytest.MonkeyPatch, **accelerators: Accelerator) -> None:
    for name, accelerator in accelerators.items():
        monkeypatch.setattr(torch, name, accelerator)


def test_generators_are_restored_on_as_many_devices_as_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    placed(monkeypatch, cuda=Accelerator(1, 2), xpu=Accelerator(), mps=OneDevice(3))
    state = RandomState().state_dict()
    counts = {name: len(states) for name, states in state["torch"].items() if name != "cpu"}
    assert counts == {"cuda": 2, "mps": 1}
    fewer, other, single = Accelerator(7), Accelerator(8), OneDevice(9)
    placed(monkeypatch, cuda=fewer, xpu=other, mps=single)
    RandomState().load_state_dict(state)
    assert [int(item.states[0]) for item in (fewer, other, single)] == [1, 8, 3]
    placed(monkeypatch, cuda=Accelerator(), xpu=Accelerator(), mps=Accelerator())
    RandomState().load_state_dict(state)
