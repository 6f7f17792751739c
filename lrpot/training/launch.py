"""How the processes of a fit begin and end: started here on one machine, or by torchrun or SLURM on several.

However it ends, all processes end, and one of them says why.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TypeVar

import torch.distributed as dist
from lightning.fabric.plugins.environments import ClusterEnvironment, SLURMEnvironment, TorchElasticEnvironment
from torch.distributed.rendezvous import rendezvous

from lrpot.errors import ConfigError, Interrupted, LrpotError, ProcessLost
from lrpot.training.parallel import ALONE, Processes, connect

Result = TypeVar("Result")

# What a process of a fit does.
Job = Callable[[Processes], Result]

# Seconds that the other processes have to end by themselves once one has failed.
GRACE = 5.0


def start(job: Job[object], size: int) -> None:
    """Do a job in several processes of this machine, and wait until all have ended.

    Ctrl-C here is passed on to all. When one fails, or this process ends, however it ends, so do all others.
    Processes are spawned: a script must call this below `if __name__ == "__main__":`.

    Args:
        job: must be picklable.
    Raises:
        whatever a process raised. ProcessLost: one was killed.
    """
    # where they find each other; here, so that it outlives any of them
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    started: list[_Started] = []
    try:
        with _passed_on(started):
            with _environment(size):
                for rank in range(size):
                    started.append(_Started(job, rank, size, store.port))  # noqa: PERF401 (each is known once started)
            failures = _outcomes(started)
    finally:
        for one in started:
            one.end()
    if failures:
        # what others say after one has failed is that it is missing
        raise min(failures, key=lambda error: isinstance(error, ProcessLost))


def environment() -> ClusterEnvironment | None:
    """What torchrun or srun says about this process; None if it was not started as one of several.

    Raises:
        ConfigError: srun was not told how many processes each machine has.
    """
    if TorchElasticEnvironment.detect() and int(os.environ["WORLD_SIZE"]) > 1:
        return TorchElasticEnvironment()
    # set for the tasks of srun alone, while others, such as SLURM_NTASKS, are there in all of the batch script
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        if "SLURM_NTASKS_PER_NODE" not in os.environ:
            raise ConfigError("srun must know the processes of each machine; give --ntasks-per-node, not --ntasks")
        return SLURMEnvironment(auto_requeue=False)
    return None


def processes_of(found: ClusterEnvironment | None, devices: int, nodes: int) -> Processes:
    """This process among those that torchrun or srun has started; alone, where they have not.

    Raises:
        ConfigError: they are not as many as the settings say.
    """
    if found is None:
        if nodes > 1:
            raise ConfigError(
                f"training.nodes = {nodes}: lrpot must be started on every machine by torchrun or srun; see "
                "docs/scaling.md"
            )
        return ALONE
    size = found.world_size()
    if size != devices * nodes:
        raise ConfigError(
            f"started as {size} processes, but training.devices x training.nodes is {devices} x {nodes}; give "
            "--devices (processes of each machine) and --nodes (machines) that fit"
        )
    return Processes(found.global_rank(), size, found.local_rank())


def join(job: Job[Result], found: ClusterEnvironment, processes: Processes) -> Result:
    """Do a job as one of the processes that torchrun or srun has started.

    Raises:
        whatever the first process to fail raised, in that process; SystemExit in the others.
    """
    os.environ |= {
        "MASTER_ADDR": found.main_address,
        "MASTER_PORT": str(found.main_port),
        "RANK": str(processes.rank),
        "WORLD_SIZE": str(processes.size),
    }
    store = next(iter(rendezvous("env://")))[0]
    connect(store, processes)
    try:
        result = job(processes)
    except BaseException as error:
        if _is_first_to_fail(store, processes):
            raise
        raise SystemExit(_exit_code(error)) from error
    dist.destroy_process_group()
    return result


@contextmanager
def told_once(found: ClusterEnvironment | None) -> Iterator[None]:
    """What is wrong for all processes alike, before they have met, is told by the first."""
    try:
        yield
    except BaseException as error:
        if found is None or found.global_rank() == 0:
            raise
        raise SystemExit(_exit_code(error)) from error


class _Started:
    """A process of the fit, seen from the one that started it."""

    def __init__(self, job: Job[object], rank: int, size: int, port: int) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy the locks of running threads
        self.rank, self.size, self.reported = rank, size, False
        self.outcome, sender = context.Pipe(duplex=False)
        # ends with this process, which tells the other to end
        alive, self._alive = context.Pipe(duplex=False)
        # read when Lightning is imported; `_environment` puts back what was there
        os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(rank)
        self.process: BaseProcess = context.Process(target=_work, args=(job, rank, size, port, sender, alive))
        self.process.start()
        # so that the end of the process is the end of the pipe
        sender.close()
        alive.close()

    def interrupt(self) -> None:
        if self.process.pid is not None and self.process.is_alive():
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGINT)

    def failure(self) -> BaseException | None:
        """How it ended; called when there is something in `outcome`, or its end."""
        self.reported = True
        try:
            error, text = self.outcome.recv()
        except EOFError:
            self.process.join()
            code = self.process.exitcode or 0
            how = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"
            return ProcessLost(
                f"process {self.rank} of {self.size} {how}; if memory ran out, lower training.batch_size; go on with "
                "lrpot fit --resume"
            )
        if error is not None:
            error.__cause__ = _Traceback(text)
        return error

    def end(self) -> None:
        """With all that it has started; does nothing to one that ends by itself."""
        self.process.join(GRACE if self.reported else 0.0)
        if self.process.is_alive():
            for kill in (os.killpg, os.kill):  # it may not yet have a group of its own
                with suppress(ProcessLookupError, PermissionError):
                    kill(self.process.pid, signal.SIGKILL)  # type: ignore[arg-type]
        self.process.join()
        self.outcome.close()
        self._alive.close()


class _Traceback(Exception):
    """Where an error was raised, in words: a traceback does not travel between processes."""


def _outcomes(started: list[_Started]) -> list[BaseException]:
    """What went wrong, in the order in which it did; waits for all, but not long once one has failed."""
    waiting = {one.outcome: one for one in started}
    failures: list[BaseException] = []
    deadline = None
    while waiting and (deadline is None or time.monotonic() < deadline):
        for ready in wait(list(waiting), timeout=None if deadline is None else max(deadline - time.monotonic(), 0.0)):
            error = waiting.pop(ready).failure()  # type: ignore[call-overload]
            if error is not None:
                failures.append(error)
                deadline = deadline or time.monotonic() + GRACE
    return failures


@contextmanager
def _passed_on(started: list[_Started]) -> Iterator[None]:
    """Ctrl-C goes to the processes of the fit, each of which answers it; not seen outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def press(*_: object) -> None:
        for one in started:
            one.interrupt()

    before = signal.signal(signal.SIGINT, press)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _environment(size: int) -> Iterator[None]:
    """What processes that are started inside find in their environment."""
    before = dict(os.environ)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // size)))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    # it unblocks SIGINT when it starts, so it must start before the signal is blocked
    resource_tracker.ensure_running()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # until `_work` is ready for it
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.environ.clear()
        os.environ.update(before)


def _work(job: Job[object], rank: int, size: int, port: int, sender: Connection, alive: Connection) -> None:
    """What a started process does."""
    os.setpgid(0, 0)  # Ctrl-C of the terminal comes by the parent, once; and what is started here ends with this
    threading.Thread(target=_end_with_parent, args=(alive,), daemon=True).start()
    warnings.simplefilter("ignore")  # other packages' are for developers
    error, text = None, ""
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        processes = Processes(rank, size, rank)
        connect(dist.TCPStore("127.0.0.1", port, is_master=False), processes)
        job(processes)
        dist.destroy_process_group()
    except BaseException as caught:
        error, text = _sendable(caught), traceback.format_exc()
    sys.stdout.flush()
    sender.send((error, text))
    sender.close()
    if error is not None:
        os._exit(1)  # what ends a process in good order may wait for others


def _end_with_parent(alive: Connection) -> None:
    with suppress(EOFError):
        alive.recv_bytes()
    os.killpg(0, signal.SIGKILL)


def _sendable(error: BaseException) -> BaseException:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # any class may do anything there
        return LrpotError(f"{type(error).__name__}: {error}")
    return error


def _is_first_to_fail(store: dist.Store, processes: Processes) -> bool:
    """Whether this process is to say why. A process that failed for a reason of its own comes here before those that
    miss it."""
    key = "failed"
    try:
        first = store.add(key, 1) == 1
        # the store is in process 0, which stays until the others have asked
        deadline = time.monotonic() + GRACE
        while processes.first and store.add(key, 0) < processes.size and time.monotonic() < deadline:
            time.sleep(0.05)
    except RuntimeError:  # process 0 was killed, and nobody has said anything
        return processes.rank == 1
    return first


def _exit_code(error: BaseException) -> int:
    return 130 if isinstance(error, (Interrupted, KeyboardInterrupt)) else 1
