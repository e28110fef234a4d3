"""Load: as fast as answers come (wrk), at a fixed rate, or a fixed number of questions."""

import http.client
import json
import os
import selectors
import socket
import subprocess
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

# wrk takes the bodies one after the other, and writes its summary as JSON.
_SCRIPT = """
local bodies = {}
for line in io.lines("%s") do bodies[#bodies + 1] = line end
local tokens = {}
for line in io.lines("%s") do tokens[#tokens + 1] = line end
local requests, at = {}, 0
function init()
  for index = 1, math.max(#bodies, #tokens) do
    local headers = {["Content-Type"] = "application/json"}
    if #tokens > 0 then headers["Authorization"] = "Bearer " .. tokens[index] end
    requests[index] = wrk.format("POST", "%s", headers, bodies[(index - 1) %% #bodies + 1])
  end
end
function request()
  at = at %% #requests + 1
  return requests[at]
end
function done(summary)
  local errors = summary.errors
  io.write(string.format('\\n{"requests": %%d, "microseconds": %%d, "errors": %%d}\\n',
    summary.requests, summary.duration,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"""


class Target(NamedTuple):
    """Where questions go, and how they are put."""

    port: int
    path: str
    bodies: Sequence[bytes]
    tokens: Sequence[str] = ()
    """ID tokens that wrk sends, one after the other; none: it sends no token."""


def requests_a_second(
    target: Target, folder: Path, *, seconds: float, connections: int, core: int
) -> float:
    """Return how many answers a second wrk gets at most.

    Args:
        target: what to ask.
        folder: for wrk's script and bodies.
        seconds: how long.
        connections: questions at a time.
        core: that wrk runs on, alone.

    Raises:
        RuntimeError: an answer was an error, or there was none.
    """
    bodies = folder / "bodies.jsonl"
    bodies.write_bytes(b"\n".join(target.bodies))
    tokens = folder / "tokens.txt"
    tokens.write_text("".join(f"{token}\n" for token in target.tokens))
    script = folder / "script.lua"
    script.write_text(_SCRIPT % (bodies, tokens, target.path))
    command = [
        *("taskset", "--cpu-list", str(core)),
        *("wrk", "--threads=1", f"--connections={connections}", f"--duration={seconds:g}s"),
        *("--timeout=10s", f"--script={script}", f"http://127.0.0.1:{target.port}"),
    ]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603
    summary = json.loads(output.splitlines()[-1])
    if summary["errors"] or not summary["requests"]:
        raise RuntimeError(f"wrk on {target.path}: {summary}")
    return float(summary["requests"] / summary["microseconds"] * 1e6)


def latencies(target: Target, *, count: int, rate: float, connections: int) -> list[float]:
    """Ask at a fixed rate, whatever the answers do, and return each latency in seconds.

    Open loop: a question has its time, and its latency counts from then, also when
    it had to wait for a connection (so nothing slow goes uncounted: "coordinated
    omission"). Busy waiting: sleeping would add a millisecond. Run it on a core of
    its own.

    Args:
        target: what to ask.
        count: questions.
        rate: questions a second; ``inf``: as soon as a connection is free.
        connections: questions under way at a time, at most.
    """
    requests = [
        b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (target.path.encode(), len(body), body)
        for body in target.bodies
    ]
    selector = selectors.EpollSelector()
    free: deque[socket.socket] = deque()
    for _ in range(connections):
        connection = socket.create_connection(("127.0.0.1", target.port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        selector.register(connection, selectors.EVENT_READ)
        free.append(connection)
    # Connection -> when its question was due, and what has come of the answer.
    under_way: dict[socket.socket, tuple[float, bytes]] = {}
    result: list[float] = []
    asked = 0
    start = time.perf_counter()
    while len(result) < count:
        now = time.perf_counter()
        while free and asked < count and (due := start + asked / rate) <= now:
            connection = free.popleft()
            under_way[connection] = (due if rate < float("inf") else now, b"")
            connection.sendall(requests[asked % len(requests)])
            asked += 1
        for key, _ in selector.select(0):
            connection = key.fileobj  # type: ignore[assignment]  # only sockets are registered
            due, answer = under_way[connection]
            answer += (piece := connection.recv(65_536))
            if not piece:
                raise RuntimeError(f"{target.path}: the connection was closed")
            if _is_whole(answer):
                if not answer.startswith(b"HTTP/1.1 200 "):
                    raise RuntimeError(f"{target.path}: {answer[:200]!r}")
                result.append(time.perf_counter() - due)
                del under_way[connection]
                free.append(connection)
            else:
                under_way[connection] = (due, answer)
    for connection in free:
        connection.close()
    selector.close()
    return result


def ask(target: Target, body: bytes) -> bytes:
    """Put one question and return the answer's body.

    Raises:
        OSError: nothing answers yet.
        RuntimeError: the answer is an error.
    """
    connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=10)
    try:
        connection.request("POST", target.path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read()
    finally:
        connection.close()
    if response.status != 200:
        raise RuntimeError(f"{target.path}: {response.status}: {content[:500]!r}")
    return content


def pin(core: int) -> None:
    """Keep this process on one core."""
    os.sched_setaffinity(0, {core})


def _is_whole(answer: bytes) -> bool:
    head, separator, body = answer.partition(b"\r\n\r\n")
    if not separator:
        return False
    at = head.lower().index(b"content-length:") + len(b"content-length:")
    return len(body) >= int(head[at:].split(b"\r\n", 1)[0])
