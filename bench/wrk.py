"""Load by wrk: requests that were made before, each sent once unless told otherwise, on connections that are kept."""

import json
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bench.figures import BenchError, Refused, Sample

# Length, line feed, bytes: nothing is made or parsed while the clock runs.
_SCRIPT = """
local requests, sent, once = {}, 0, %s
local file = assert(io.open("%s", "rb"))
while true do
  local length = file:read("*n")
  if not length then break end
  file:read(1)
  requests[#requests + 1] = file:read(length)
end
file:close()
function request()
  sent = sent + 1
  if once and sent >= #requests then wrk.thread:stop() end
  return requests[(sent - 1) %% #requests + 1]
end
function done(summary, latency)
  local e = summary.errors
  io.write(string.format(
    '\\n{"requests": %%d, "microseconds": %%d, "refused": %%d, "broken": %%d, "p50": %%d, "p99": %%d}\\n',
    summary.requests, summary.duration, e.status, e.connect + e.read + e.write + e.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""


def find() -> str:
    """Return where wrk is; raises `BenchError` where it is not installed."""
    if (path := shutil.which("wrk")) is None:
        raise BenchError("wrk is not installed: apt-get install wrk")
    return path


def spoken(method: str, path: str, body: bytes = b"", headers: Iterable[tuple[str, str]] = ()) -> bytes:
    """Return a request byte for byte."""
    lines = [f"{method} {path} HTTP/1.1", "Host: bench", *(f"{name}: {value}" for name, value in headers)]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _answer(port: int, requests: Path) -> str:
    """Return how an answer to the first of some requests begins."""
    with requests.open("rb") as file, socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(file.read(int(file.readline())))
        return connection.recv(1_000).decode(errors="replace")


def run(
    folder: Path,
    port: int,
    requests: Iterable[bytes],
    *,
    seconds: float,
    connections: int,
    server_cpu: Callable[[], float],
    postgres_cpu: Callable[[], float],
    again: bool = False,
) -> Sample:
    """Send `requests` in their order, each once or all `again` and again, and return what it took.

    Where they run out nothing more is sent and the clock goes on: there must be more than can be answered. Raises
    `Refused` where one was not answered 2xx.
    """
    data, script = folder / "requests", folder / "requests.lua"
    with data.open("wb") as file:
        for request in requests:
            file.write(b"%d\n%b" % (len(request), request))
    script.write_text(_SCRIPT % ("false" if again else "true", data))
    command = [find(), "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "10s"]
    command += ["-s", str(script), f"http://127.0.0.1:{port}/"]
    before = server_cpu(), postgres_cpu()
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    after = server_cpu(), postgres_cpu()
    if done.returncode != 0 or "\n{" not in done.stdout:
        raise BenchError(f"wrk failed: {done.stderr.strip() or done.stdout.strip()}")
    said: dict[str, Any] = json.loads(done.stdout.rsplit("\n{", 1)[1].join(["{", ""]))
    if said["refused"] or not said["requests"]:
        raise Refused(
            f"{said['refused']} of {said['requests']} requests were answered otherwise than 2xx; now with "
            f"{_answer(port, data)}"
        )
    return Sample(
        said["requests"],
        said["microseconds"] / 1e6,
        after[0] - before[0],
        after[1] - before[1],
        said["p50"] / 1000,
        said["p99"] / 1000,
    )
