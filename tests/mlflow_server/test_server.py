"""The MLflow server's two commands, as its image runs them from its own environment."""

import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy.engine import make_url

from local.settings import free_port
from mlflow_server.settings import ServerSettings, Settings

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venvs/mlflow-server/bin/python"
PASSWORD = "p@ss:/w%rd?#&"
HOST = "mlflow.example.com"

# Printable, as PostgreSQL takes names and passwords: no NUL, and nothing that UTF-8 lacks.
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)


def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run ``python -m mlflow_server`` with nothing of this process's environment."""
    return subprocess.run(
        [PYTHON, "-m", "mlflow_server", *arguments],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


class TestDatabase:
    @given(password=WORDS, user=WORDS, name=WORDS)
    @example(password=PASSWORD, user="a@b.iam", name="a/b")
    def test_any_password_comes_through_the_url(self, password: str, user: str, name: str) -> None:
        settings = Settings.model_validate(
            {
                "database_host": "10.0.0.3",
                "database_user": user,
                "database_name": name,
                "database_password": password,
            }
        )
        url = make_url(settings.backend_store_uri)
        assert (url.username, url.password, url.host, url.port) == (
            *(user, password, "10.0.0.3"),
            5432,
        )
        assert url.drivername == "postgresql+psycopg2"

    def test_a_folder_is_a_unix_socket(self) -> None:
        """As Cloud Run mounts Cloud SQL's."""
        folder = "/cloudsql/project:europe-west1:mlflow"
        settings = Settings.model_validate(
            {"database_host": folder, "database_password": PASSWORD, "database_name": "runs"}
        )
        url = make_url(settings.backend_store_uri)
        assert not url.host
        assert dict(url.query) == {"host": folder}
        assert (url.username, url.password, url.database) == ("mlflow", PASSWORD, "runs")

    def test_a_url_is_taken_as_it_is(self) -> None:
        settings = Settings.model_validate({"database_url": "sqlite:////tmp/mlflow.db"})
        assert settings.backend_store_uri == "sqlite:////tmp/mlflow.db"

    def test_the_password_is_in_no_error_nor_representation(self) -> None:
        """Guards against the whole input being printed when only the host is forgotten."""
        with pytest.raises(ValueError, match="DATABASE_HOST") as caught:
            Settings.model_validate({"database_password": PASSWORD})
        assert PASSWORD not in str(caught.value)
        given_host = {"database_host": "x", "database_password": PASSWORD}
        assert PASSWORD not in repr(Settings.model_validate(given_host))


class TestWrongSettings:
    @pytest.mark.parametrize("command", ["serve", "migrate"])
    @pytest.mark.parametrize(
        "database", [{}, {"DATABASE_URL": f"postgresql://u:{PASSWORD}@h/d", "DATABASE_HOST": "h"}]
    )
    def test_neither_database_or_both(self, command: str, database: dict[str, str]) -> None:
        """Guards against a message that held the password."""
        environment = {"DATABASE_PASSWORD": PASSWORD, "ARTIFACT_ROOT": "gs://bucket", **database}
        done = run(command, **environment)
        assert done.returncode == 2
        assert done.stderr == (
            "python -m mlflow_server: error: give either DATABASE_URL or DATABASE_HOST\n"
        )
        assert not done.stdout

    def test_every_wrong_value_has_a_line(self) -> None:
        done = run("serve", DATABASE_HOST="h", DATABASE_PASSWORD=PASSWORD, PORT="many")
        assert done.returncode == 2
        port, root = sorted(done.stderr.splitlines(), reverse=True)
        assert "PORT: " in port
        assert "'many'" in port
        assert "ARTIFACT_ROOT: " in root
        assert PASSWORD not in done.stderr

    @pytest.mark.parametrize("arguments", [[], ["upgrade"], ["serve", "--unknown"]])
    def test_wrong_arguments(self, arguments: list[str]) -> None:
        done = run(*arguments)
        assert done.returncode == 2
        assert "usage: python -m mlflow_server" in done.stderr
        assert "Traceback" not in done.stderr


def test_help_names_every_variable() -> None:
    done = run("--help")
    assert done.returncode == 0
    for name in ServerSettings.model_fields:
        assert name.upper() in done.stdout


class TestMigrate:
    def test_an_empty_database_gets_its_tables_and_may_be_migrated_again(
        self, tmp_path: Path
    ) -> None:
        file = tmp_path / "mlflow.db"
        url = f"sqlite:///{file}"
        for _ in range(2):
            done = run("migrate", DATABASE_URL=url)
            assert done.returncode == 0, done.stderr
        with sqlite3.connect(file) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
            [[version]] = database.execute("SELECT version_num FROM alembic_version").fetchall()
        assert {"experiments", "runs", "registered_models"} <= tables
        assert version

    def test_the_password_is_not_among_the_arguments(self, tmp_path: Path) -> None:
        """Guards against the URL on MLflow's command line, which any process may list."""
        process = subprocess.Popen(
            [PYTHON, "-m", "mlflow_server", "migrate"],
            cwd=ROOT,
            # Nothing answers there: MLflow tries for two minutes.
            env={
                "PATH": os.environ["PATH"],
                "DATABASE_HOST": "127.0.0.1",
                "DATABASE_PORT": str(free_port()),
                "DATABASE_PASSWORD": "hunter2",
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if "Connection refused" in line:
                    break
            else:
                pytest.fail("the database was not asked")
            seen = Path(f"/proc/{process.pid}/cmdline").read_text()
            assert "migrate" in seen
            assert "hunter2" not in seen
        finally:
            process.kill()
            process.communicate(timeout=10)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("mlflow_server")
    port = free_port()
    with (folder / "output.log").open("wb") as log:
        process = subprocess.Popen(
            [PYTHON, "-m", "mlflow_server", "serve"],
            cwd=ROOT,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(folder),
                "DATABASE_URL": f"sqlite:///{folder / 'mlflow.db'}",
                "ARTIFACT_ROOT": "gs://artifacts/mlflow",
                "HOST": "127.0.0.1",
                "PORT": str(port),
                "ALLOWED_HOSTS": HOST,
                "CORS_ALLOWED_ORIGINS": f"https://{HOST}",
            },
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for(f"{url}/health", process)
        yield url
        process.terminate()
        process.wait(20)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


class TestServe:
    def ask(self, url: str, host: str, **headers: str) -> httpx.Response:
        return httpx.post(
            f"{url}/api/2.0/mlflow/experiments/create",
            json={"name": f"of {time.monotonic_ns()}"},
            headers={"Host": host, **headers},
            timeout=30,
        )

    def test_health(self, url: str) -> None:
        answer = httpx.get(f"{url}/health", timeout=30)
        assert (answer.status_code, answer.text) == (200, "OK")

    def test_only_the_named_hosts_are_served(self, url: str) -> None:
        assert self.ask(url, HOST).status_code == 200
        for host in ("evil.example.com", f"{HOST}.evil.example.com"):
            assert self.ask(url, host).status_code == 403

    def test_only_the_named_origins_may_change_things(self, url: str) -> None:
        assert self.ask(url, HOST, Origin=f"https://{HOST}").status_code == 200
        assert self.ask(url, HOST, Origin="https://evil.example.com").status_code == 403

    def test_artifacts_go_straight_to_the_bucket(self, url: str) -> None:
        experiment_id = self.ask(url, HOST).json()["experiment_id"]
        answer = httpx.get(
            f"{url}/api/2.0/mlflow/experiments/get",
            params={"experiment_id": experiment_id},
            headers={"Host": HOST},
            timeout=30,
        )
        location = answer.json()["experiment"]["artifact_location"]
        assert location == f"gs://artifacts/mlflow/{experiment_id}"


def _wait_for(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx.get(url, timeout=5)
            return
        except httpx.TransportError:
            time.sleep(0.1)
    raise RuntimeError("the MLflow server did not start")
