"""Start and stop the whole stack."""

import shutil
from collections.abc import Callable, Mapping

import httpx

from local import programs, services
from local.cloud_run.config import Image
from local.processes import Processes
from local.settings import (
    ARTIFACTS_BUCKET,
    PROJECT,
    SERVING_BUCKET,
    LocalSettings,
    SetupError,
)

Report = Callable[[str, str], None]
"""Called with a component's title and its address once it is up."""

# In the order of stopping: callers before what they call.
NAMES = ("scheduler", "cloud_run", "monitoring", "postgres", "firestore", "storage")


class Stack:
    """All programs of the local stack.

    Args:
        settings: where, and on which ports.
        images: further images that the local Cloud Run knows; see `services.write_config`.
    """

    def __init__(
        self, settings: LocalSettings, *, images: Mapping[str, Image] | None = None
    ) -> None:
        self.settings = settings
        self._images = images or {}
        self._processes = Processes(settings.data_dir)

    def up(self, report: Report) -> None:
        """Start what does not run, and wait until all of it answers.

        Raises:
            SetupError: something can't be started; the message says what to do.
        """
        settings = self.settings
        storage = programs.storage(settings)
        firestore = programs.firestore(settings)
        postgres = programs.postgres(settings)
        cloud_run = programs.cloud_run(settings, services.write_config(settings, self._images))
        scheduler = programs.scheduler(
            settings,
            accounts=[services.account("scheduler")],
            environment=services.caller_environment(settings),
        )
        monitoring = programs.monitoring(
            settings, settings.data_dir / "cloud_run" / "requests.jsonl"
        )
        wanted = [storage, firestore, monitoring, *([postgres] if postgres else [])]
        wanted += [cloud_run, scheduler]
        # All of them before any is started: one message, and nothing to clear up.
        self._processes.check_ports(wanted)
        for program in wanted[:-2]:
            self._processes.start(program)
        self._processes.wait(storage)
        report("Cloud Storage (fake-gcs-server)", settings.url("storage"))
        self._make_buckets()
        if postgres is not None:
            self._processes.wait(postgres)
            report("PostgreSQL", settings.address("postgres"))
        else:
            report("SQLite, since PostgreSQL can't run here", str(settings.data_dir / "mlflow.db"))
        self._processes.start(cloud_run)
        self._processes.wait(firestore)
        report("Firestore emulator", settings.address("firestore"))
        self._processes.wait(cloud_run)
        self._processes.wait(monitoring)
        report("Cloud Monitoring, API", settings.address("monitoring"))
        report("Cloud Run, API", settings.address("cloud_run"))
        report("Cloud Run, front end", settings.url("cloud_run_front"))
        services.deploy(settings, with_postgres=postgres is not None)
        for name in ("predict", "proxy", "promote"):
            report(f"  {name}", settings.url(name))
        report("  MLflow", settings.url("mlflow"))
        report("  Streamlit page", settings.url("ui"))
        self._processes.start(scheduler)
        self._processes.wait(scheduler)
        paused = services.schedule(settings)
        ticking = "paused: greenroom resume" if paused else f"every {settings.tick_seconds:g} s"
        report("Cloud Scheduler, API", f"{settings.address('scheduler')} (promote {ticking})")
        services.write_endpoints(settings)

    def down(self, report: Report) -> list[str]:
        """Stop everything, keep the data; return what was running.

        Args:
            report: told when something could not be kept.
        """
        stopped = []
        for name in NAMES:
            if name == "firestore" and self._processes.pid(name) is not None:
                try:
                    programs.export_firestore(self.settings)
                except httpx.HTTPError as error:
                    # Such as one that was only starting: what was exported before stays.
                    report("Firestore's documents are not kept", repr(error))
            if self._processes.stop(name):
                stopped.append(name)
        return stopped

    def stop(self, name: str) -> bool:
        """Stop one program; return whether it ran. `up` starts it again."""
        return self._processes.stop(name)

    def forget(self) -> None:
        """Stop everything and delete the data."""
        for name in NAMES:
            self._processes.stop(name)
        shutil.rmtree(self.settings.data_dir)

    def running(self) -> dict[str, int | None]:
        """Return the process id of each program; None for one that does not run."""
        return {name: self._processes.pid(name) for name in reversed(NAMES)}

    def _make_buckets(self) -> None:
        for bucket in (ARTIFACTS_BUCKET, SERVING_BUCKET):
            response = httpx.post(
                f"{self.settings.url('storage')}/storage/v1/b",
                params={"project": PROJECT},
                json={"name": bucket},
                timeout=10,
            )
            if not response.is_success and response.status_code != httpx.codes.CONFLICT:
                raise SetupError(f"bucket {bucket} can't be made: {response.text}")
