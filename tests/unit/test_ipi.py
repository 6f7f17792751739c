"""The client of i-PI, beside a server of ASE's that speaks the same protocol. With i-PI itself: tests/reference."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
from ase.calculators.socketio import SocketIOCalculator

from lrpot import LRCalculator
from lrpot.errors import ConfigError
from lrpot.interfaces.ipi import run_client
from tests.helpers_cli import rock_salt, small_model


def test_numbers_and_number_of_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Energy, forces and stress of a configuration are one evaluation."""
    atoms, mine = rock_salt(), rock_salt(seed=5)
    mine.calc = LRCalculator(small_model())
    evaluations = []
    forward = mine.calc.model.forward

    def count(*args: object, **kwargs: object) -> object:
        evaluations.append(kwargs)
        return forward(*args, **kwargs)

    monkeypatch.setattr(mine.calc.model, "forward", count)
    address = f"lrpot-unit-{os.getpid()}"
    steps: list[int] = []
    client = threading.Thread(target=lambda: steps.append(run_client(mine, unix_socket=address)))
    with SocketIOCalculator(unixsocket=address) as server:
        client.start()
        atoms.calc = server
        forces, stress = atoms.get_forces(), atoms.get_stress()
        atoms.rattle(0.01, seed=1)
        atoms.get_forces()
    client.join(timeout=60)
    assert steps == [2]
    assert len(evaluations) == 2
    expected = rock_salt()
    expected.calc = LRCalculator(small_model())
    np.testing.assert_allclose(forces, expected.get_forces(), atol=1e-9)
    np.testing.assert_allclose(stress, expected.get_stress(), atol=1e-9)


def test_no_server() -> None:
    with pytest.raises(ConfigError, match="i-PI does not answer at the unix socket 'lrpot-nobody'"):
        run_client(rock_salt(), unix_socket="lrpot-nobody", patience=0.0)
