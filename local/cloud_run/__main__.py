"""``python -m local.cloud_run --config FILE``: one stand-in, until SIGTERM."""

import argparse
import asyncio
import json
import logging
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path

from local.cloud_run.api import create_server
from local.cloud_run.config import CloudRunConfig
from local.cloud_run.control import ControlPlane
from local.cloud_run.frontend import FrontEnd

_KNOWN_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class JsonFormatter(logging.Formatter):
    """One JSON object a line, as Cloud Logging reads it."""

    def format(self, record: logging.LogRecord) -> str:
        """The record and its extra fields."""
        entry: dict[str, object] = {
            "severity": record.levelname,
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry.update((k, v) for k, v in vars(record).items() if k not in _KNOWN_ATTRIBUTES)
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


async def run(config: CloudRunConfig) -> None:
    """Serve until SIGTERM or SIGINT, then stop all instances."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stopping.set)
    plane = ControlPlane(config)
    front_end = FrontEnd(config, plane, config.data_dir / "requests.jsonl")
    server = create_server(plane, config.api_port)
    await front_end.listen(config.port)
    for service, port in config.service_ports.items():
        await front_end.listen(port, service)
    await plane.start()
    await server.start()
    ready = {"severity": "INFO", "message": "ready", "api_port": config.api_port}
    print(json.dumps({**ready, "port": config.port}), flush=True)
    await stopping.wait()
    await server.stop(grace=1)
    await front_end.close()
    await plane.stop()


def main() -> None:
    """Read the command line and the configuration, then serve."""
    parser = argparse.ArgumentParser(prog="python -m local.cloud_run", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="JSON file, see CloudRunConfig")
    arguments = parser.parse_args()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    config = CloudRunConfig.model_validate_json(arguments.config.read_text(encoding="utf-8"))
    # Waits for a child's end without a thread for each.
    asyncio.set_child_watcher(asyncio.PidfdChildWatcher())
    asyncio.run(run(config))


if __name__ == "__main__":
    main()
