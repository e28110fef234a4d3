"""The ceiling of the load generator: the same bytes to whatever arrives, as they are."""

import asyncio
import sys

import uvloop


class Static(asyncio.Protocol):
    """Takes each piece that arrives for one request."""

    answer = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Keep the connection to answer on."""
        self._transport = transport

    def data_received(self, _data: bytes) -> None:
        """Answer."""
        self._transport.write(self.answer)


async def _serve(port: int, answer_bytes: int) -> None:
    Static.answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (
        answer_bytes,
        b" " * answer_bytes,
    )
    server = await asyncio.get_running_loop().create_server(Static, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), int(sys.argv[2])))
