"""Starts a program of these tests once or several times on this machine, and never hangs."""

import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def start(arguments, count=1, devices=1) -> list[subprocess.Popen]:
    """`count` processes that find each other by our variables, with so many devices each."""
    port, found = free_port(), []
    for index in range(count):
        env = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
        env |= {"TF_CPP_MIN_LOG_LEVEL": "1", "OMP_NUM_THREADS": "1"}
        if count > 1:
            env |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}"}
            env |= {"JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(index)}
        command = [sys.executable, *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        found.append(subprocess.Popen(command, env=env, text=True, **pipes))
    return found


def finish(processes, timeout=240) -> list[tuple[int, str, str]]:
    """(exit status, stdout, stderr) of each; all are killed when one takes too long. They are read
    side by side: one whose pipe is full would wait, and the others for it."""
    try:
        with ThreadPoolExecutor(len(processes)) as readers:
            outputs = list(readers.map(lambda one: one.communicate(timeout=timeout), processes))
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, own(o), e) for p, (o, e) in zip(processes, outputs, strict=True)]


def own(output: str) -> str:
    """What our program printed: gloo says on stdout with whom it is connected."""
    lines = output.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("[Gloo]"))


def run(arguments, count=1, devices=1, timeout=240) -> list[str]:
    """stdout of each process; all must end with 0."""
    ended = finish(start(arguments, count, devices), timeout)
    for status, _, errors in ended:
        assert status == 0, errors[-3000:]
    return [output for _, output, _ in ended]


def write_job(path: Path, program: str = "mil_job.py", **job) -> list:
    """The arguments of that program for that job."""
    path.write_text(json.dumps({name: _plain(value) for name, value in job.items()}))
    return [HERE / program, path]


def _plain(value):
    return str(value) if isinstance(value, Path) else value
