"""A calculator as the force engine of i-PI, over a socket."""

from __future__ import annotations

import socket
import time

from ase import Atoms
from ase.calculators.socketio import IPIProtocol, SocketClient, SocketClosed, actualunixsocketname
from ase.parallel import world

from lrpot.errors import ConfigError

# s, between two looks for a server that is not there yet.
PAUSE = 0.1


class _Client(SocketClient):
    """ASE's client, which asks for energy, forces and stress one after the other: all are computed at once."""

    def __init__(self, connection: socket.socket) -> None:
        # ASE's own would leave the socket open where nobody listens yet
        self.comm = world
        self.protocol = IPIProtocol(connection)
        self.log = self.protocol.log
        self.closed = False
        self.bead_index = 0
        self.bead_initbytes = b""
        self.state = "READY"

    def calculate(self, atoms: Atoms, use_stress: bool) -> tuple[object, ...]:
        if use_stress:
            atoms.get_stress()
        return super().calculate(atoms, use_stress)


def run_client(
    atoms: Atoms,
    *,
    unix_socket: str | None = None,
    host: str = "localhost",
    port: int = 31415,
    stress: bool = True,
    patience: float = 60.0,
) -> int:
    """Compute what i-PI asks for until it ends.

    Args:
        atoms: with a calculator, such as LRCalculator; elements in the order of i-PI's. i-PI moves them.
        unix_socket: the address in i-PI's input, for mode='unix'.
        host: the address for mode='inet'.
        port: its number there.
        stress: whether to compute it; i-PI needs it at constant pressure only.
        patience: s; how long to wait for i-PI to open its socket.
    Returns:
        how many configurations were computed.
    Raises:
        ConfigError: i-PI was not there in time. LrpotError: see `LRCalculator`.
    """
    client = _connected(unix_socket, host, port, patience)
    steps = 0
    try:
        for _ in client.irun(atoms, use_stress=stress):
            steps += 1
    except (SocketClosed, ConnectionError):
        pass  # i-PI ends without a word when its run is over
    finally:
        client.close()
    return steps


def _connected(unix_socket: str | None, host: str, port: int, patience: float) -> SocketClient:
    end = time.monotonic() + patience
    while True:
        try:
            return _Client(_open(unix_socket, host, port))
        except OSError as error:
            if time.monotonic() > end:
                where = f"{host}:{port}" if unix_socket is None else f"the unix socket {unix_socket!r}"
                raise ConfigError(
                    f"i-PI does not answer at {where} ({error}); start i-pi with the same address in its input, "
                    "and look for what it says"
                ) from error
            time.sleep(PAUSE)


def _open(unix_socket: str | None, host: str, port: int) -> socket.socket:
    if unix_socket is None:
        return socket.create_connection((host, port))
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(actualunixsocketname(unix_socket))
    except OSError:
        connection.close()
        raise
    return connection
