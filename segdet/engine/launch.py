"""One process for each device, on one machine or several, or as torchrun has started them."""

from __future__ import annotations

import datetime
import os
import signal
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.rendezvous import rendezvous

from segdet.engine.watching import wait_for
from segdet.errors import ConfigError, ProcessError, SegdetError
from segdet.utils import comm
from segdet.utils.processes import end_with_parent

_MOST_TEXT = 6000  # of a traceback: a pipe holds no more than eight of these, unread
DEFAULT_TIMEOUT = datetime.timedelta(minutes=30)


def launch(
    main_func: Callable[..., Any],
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = "auto",
    args: tuple[Any, ...] = (),
    timeout: datetime.timedelta = DEFAULT_TIMEOUT,
) -> Any:
    """Call `main_func(*args)` in each of `num_machines * num_gpus_per_machine` processes.

    Under torchrun this process is one of them already and the numbers here are ignored. Where
    there is no CUDA the processes run on the CPU and talk by gloo.

    Args:
        main_func: importable by name, since new processes import it.
        num_gpus_per_machine: processes on each machine; 0, as for a CPU, is one without a group.
        num_machines: how many machines call this.
        machine_rank: which of them this is.
        dist_url: where they meet, such as "tcp://10.0.0.1:29500"; "auto" finds a free port, for
            one machine.
        args: of `main_func`.
        timeout: of a collective call.

    Returns:
        What `main_func` returned, if it ran in this process; else None.

    Raises:
        ConfigError: a negative number, more processes than devices, or no meeting point for
            several machines.
        SegdetError: a user's mistake that a process raised, or a `ProcessError`: one has died or
            hangs.
        Stopped: a signal ended the run.
    """
    if dist.is_torchelastic_launched():
        return join_others(main_func, args, timeout)
    if num_gpus_per_machine < 0:
        raise ConfigError(f"--num-gpus must be >= 0, is {num_gpus_per_machine}")
    if num_machines < 1:
        raise ConfigError(f"--num-machines must be >= 1, is {num_machines}")
    world_size = num_machines * num_gpus_per_machine
    if world_size <= 1:
        return main_func(*args)
    if torch.cuda.is_available() and num_gpus_per_machine > torch.cuda.device_count():
        raise ConfigError(
            f"--num-gpus {num_gpus_per_machine}: this machine has {torch.cuda.device_count()}"
        )
    if dist_url in ("auto", None):
        if num_machines > 1:
            raise ConfigError("--dist-url tcp://HOST:PORT of one of the machines must be given")
        dist_url = f"tcp://127.0.0.1:{_free_port()}"
    context = mp.get_context("spawn")
    errors = context.SimpleQueue()
    job = (main_func, args, machine_rank, num_gpus_per_machine, world_size)
    processes = [
        context.Process(target=_worker, args=(local_rank, job, dist_url, timeout, errors))
        for local_rank in range(num_gpus_per_machine)
    ]
    for process in processes:
        process.start()
    wait_for(processes, machine_rank * num_gpus_per_machine, errors)
    return None


def join_others(
    main_func: Callable[..., Any],
    args: tuple[Any, ...] = (),
    timeout: datetime.timedelta = DEFAULT_TIMEOUT,
) -> Any:
    """Call `main_func(*args)` in this process, which others have been started beside.

    RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT tell of them, as torchrun sets them.

    Args:
        main_func: to call.
        args: of `main_func`.
        timeout: of a collective call.

    Returns:
        What `main_func` returned.
    """
    store, rank, world_size = next(rendezvous("env://", timeout=timeout))
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        # torchrun's store outlives an attempt: it would give the addresses of those that died. On
        # several machines the counts may differ.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(  # pyright: ignore[reportPrivateImportUsage]
            f"attempt/{attempt}", store
        )
    ranks = {"rank": rank, "world_size": world_size}
    return _run(main_func, args, int(os.environ["LOCAL_RANK"]), timeout, store=store, **ranks)


def is_restarted() -> bool:
    """Whether torchrun has started this process anew after a failure, or SLURM its job."""
    counts = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    return any(int(os.environ.get(name, "0")) > 0 for name in counts)


def _worker(
    local_rank: int,
    job: tuple[Callable[..., Any], tuple[Any, ...], int, int, int],
    dist_url: str,
    timeout: datetime.timedelta,
    errors: Any,
) -> None:
    main_func, args, machine_rank, local_size, world_size = job
    end_with_parent(signal.SIGTERM)  # which asks it to stop
    os.environ.update(LOCAL_RANK=str(local_rank), LOCAL_WORLD_SIZE=str(local_size))
    if not torch.cuda.is_available():
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_size))
    rank = machine_rank * local_size + local_rank
    ranks = {"rank": rank, "world_size": world_size}
    try:
        _run(main_func, args, local_rank, timeout, init_method=dist_url, **ranks)
    except Exception as error:
        errors.put((rank, _portable(error)))
        raise SystemExit(1) from None


def _portable(error: Exception) -> Exception:
    """As it was, if it is a user's mistake; else with its traceback as text, as pickle has none."""
    if isinstance(error, SegdetError):
        return error
    text = "".join(traceback.format_exception(error))[-_MOST_TEXT:]
    return RuntimeError(f"process {comm.get_rank()} failed:\n\n{text}")


def _run(
    main_func: Callable[..., Any],
    args: tuple[Any, ...],
    local_rank: int,
    timeout: datetime.timedelta,
    **meeting: Any,
) -> Any:
    """Join the others, call, leave."""
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "nccl"
        torch.cuda.set_device(local_rank)
    dist.init_process_group(backend, timeout=timeout, **meeting)
    try:
        comm.synchronize()
        result = main_func(*args)
        comm.synchronize()  # leaving while another one still talks would abort it
    except RuntimeError as error:
        if not _is_loss(error):
            raise
        raise ProcessError(comm.describe_loss(error)) from error
    comm.leave()
    return result


def _is_loss(error: RuntimeError) -> bool:
    """Whether a collective call failed, because another process has died or hangs."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
