"""A Ray that another process started, as `ray start --head` does on a cluster's first machine."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil


@contextmanager
def head(store_bytes: int) -> Iterator[str]:
    """A Ray of its own with an object store of so many bytes; its address."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--port", str(port)]
    command += ["--num-cpus", "2", "--object-store-memory", str(store_bytes), "--include-dashboard", "false"]
    quiet = {"RAY_USAGE_STATS_ENABLED": "0"}
    process = subprocess.Popen(
        command, env=os.environ | quiet, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    there = psutil.Process(process.pid)
    assert process.stdout is not None
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "--block" in line:  # what it says once it has started
                break
        assert process.poll() is None, "".join(lines)
        threading.Thread(target=process.stdout.read, daemon=True).start()
        yield f"127.0.0.1:{port}"
    finally:
        # Its own way down takes 40 seconds. Nothing of it is needed any more.
        ended = [there]
        with suppress(psutil.NoSuchProcess):
            ended += there.children(recursive=True)
        for each in ended:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        assert not psutil.wait_procs(ended, timeout=20)[1]
