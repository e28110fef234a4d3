"""``python -m local.scheduler``: a stand-in of Cloud Scheduler, until SIGTERM."""

import argparse
import asyncio
import logging
import signal
from pathlib import Path

from local.scheduler.jobs import Jobs, SchedulerConfig
from local.scheduler.server import create_server


async def run(config: SchedulerConfig, port: int) -> None:
    """Serve until SIGTERM or SIGINT."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stopping.set)
    jobs = Jobs(config)
    server = create_server(jobs, port)
    await server.start()
    await stopping.wait()
    await server.stop(grace=1)
    await jobs.close()


def main() -> None:
    """Read the command line, then serve."""
    parser = argparse.ArgumentParser(prog="python -m local.scheduler", description=__doc__)
    parser.add_argument("--project", required=True, help="project id")
    parser.add_argument("--region", required=True, help="the only location that exists")
    parser.add_argument("--port", type=int, required=True, help="gRPC, without TLS, on 127.0.0.1")
    parser.add_argument("--data-dir", type=Path, required=True, help="where jobs are kept")
    parser.add_argument(
        "--identity",
        action="append",
        default=[],
        metavar="ACCOUNT=HOST:PORT",
        help="service account that jobs may act as, and its metadata server",
    )
    parser.add_argument(
        "--tick-seconds", type=float, help="from one run of an every-minute job to the next"
    )
    parser.add_argument(
        "--twice-every", type=int, default=0, help="send one of so many runs twice at once"
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    config = SchedulerConfig(
        project=arguments.project,
        region=arguments.region,
        data_dir=arguments.data_dir,
        identities=dict(item.split("=", 1) for item in arguments.identity),
        tick_seconds=arguments.tick_seconds,
        twice_every=arguments.twice_every,
    )
    asyncio.run(run(config, arguments.port))


if __name__ == "__main__":
    main()
