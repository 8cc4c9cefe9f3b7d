"""The services of docker/compose.yaml as processes of this machine: their own commands, environment and health checks.

Translated are only what a container brings with it: names of hosts, ports (free ones here) and folders.
"""

import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import requests
import yaml
from places import ROOT
from waiting import wait_for

DOCKER = ROOT / "docker"
SETTINGS = {
    "POSTGRES_PASSWORD": "super$ecret",
    "DAGSTER_DB_PASSWORD": "da'gs\"t:er@1/",
    "MLFLOW_DB_PASSWORD": "ml f%low",
}
# As the Dockerfile has them; a test compares.
IMAGE = {"DAGSTER_HOME": "/opt/dagster", "RAREC_HOME": "/var/lib/rarec"}
SERVICES = ("mlflow", "code", "webserver", "webserver-readonly", "daemon")
LISTENS = {"postgres": 5432, "mlflow": 5000, "code": 4000, "webserver": 3000, "webserver-readonly": 3000}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def interpolated(value: Any, settings: dict[str, str]) -> Any:
    """A compose file with `$VAR`, `${VAR}`, `${VAR:-default}` and `${VAR:?message}` replaced; `$$` is a dollar.

    A default may hold one more variable.
    """

    def one(match: re.Match[str]) -> str:
        name, mark, rest = match["name"] or match["bare"], match["mark"], match["rest"]
        if match[0] == "$$":
            return "$"
        if settings.get(name) or mark is None:
            return settings.get(name, "")
        if mark == ":?":
            raise ValueError(f"{name}: {rest}")
        return re.sub(pattern, one, rest)

    if isinstance(value, dict):
        return {key: interpolated(one_, settings) for key, one_ in value.items()}
    if isinstance(value, list):
        return [interpolated(one_, settings) for one_ in value]
    pattern = r"\$\$|\$(?P<bare>\w+)|\$\{(?P<name>\w+)(?:(?P<mark>:[-?])(?P<rest>(?:[^{}]|\{[^}]*\})*))?\}"
    return re.sub(pattern, one, value) if isinstance(value, str) else value


def compose(settings: dict[str, str]) -> dict[str, Any]:
    return interpolated(yaml.safe_load((DOCKER / "compose.yaml").read_text()), settings)


class Stack:
    """Postgres, an object store and the services, in one temporary folder."""

    def __init__(self, settings: dict[str, str]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rarec-deploy-"))
        self.folder.chmod(0o755)  # Postgres runs as another user
        self.ports = {name: free_port() for name in (*LISTENS, "store")}
        store = f"http://127.0.0.1:{self.ports['store']}"
        self.settings = {
            **SETTINGS,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": store,
            **settings,
        }
        self.services = compose(self.settings)["services"]
        self.home = self.folder / "rarec"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("rarec", "dagster", "instance", "mlflow", "data", "user", "services/pipelines"):
            (self.folder / name).mkdir(parents=True)
        # What the images copy; the instance's settings as they are.
        shutil.copy(DOCKER / "dagster.yaml", self.folder / "instance")
        workspace = yaml.safe_load((DOCKER / "workspace.yaml").read_text())
        server = workspace["load_from"][0]["grpc_server"]
        server |= {"host": "127.0.0.1", "port": self.ports[server["host"]]}
        (self.folder / "instance" / "workspace.yaml").write_text(yaml.safe_dump(workspace))
        for name in ("__init__.py", "run_launcher_docker.py"):
            shutil.copy(ROOT / "pipelines" / name, self.folder / "services" / "pipelines")

    # ---- Postgres and object store

    def initialise_postgres(self) -> None:
        """A data folder and, by docker/init-databases.sh, the databases."""
        data = self.folder / "postgres"
        data.mkdir(mode=0o700)
        if os.geteuid() == 0:
            shutil.chown(data, "postgres", "postgres")
        password = self.folder / "password"
        password.write_text(self.settings["POSTGRES_PASSWORD"])
        command = [self._postgres("initdb"), "-D", str(data), "-U", "postgres", "--auth-local=trust"]
        command += ["--auth-host=scram-sha-256", f"--pwfile={password}", "--no-sync"]
        subprocess.run(command, check=True, capture_output=True, cwd=data, **self._as_postgres())
        self.start_postgres()
        variables = {**os.environ, "PGHOST": str(data), "PGPORT": str(self.ports["postgres"])}
        own = self.environment("postgres")
        subprocess.run([str(DOCKER / "init-databases.sh")], check=True, env={**variables, **own})

    def start_postgres(self) -> None:
        data = self.folder / "postgres"
        command = [self._postgres("postgres"), "-D", str(data), "-h", "127.0.0.1", "-k", str(data)]
        self._run("postgres", [*command, "-p", str(self.ports["postgres"])], {**os.environ}, **self._as_postgres())
        ready = [self._postgres("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.ports["postgres"])]
        wait_for(lambda: subprocess.run(ready, check=False).returncode == 0, 120, "Postgres", pause=0.5)

    def stop_postgres(self) -> None:
        """As docker does: SIGINT, which cuts every connection."""
        process = self._processes.pop("postgres")
        process.send_signal(signal.SIGINT)
        process.wait(60)

    def postgres_tool(self, program: str, *arguments: str, **more: Any) -> subprocess.CompletedProcess[bytes]:
        """Run a client program as the superuser on the server's socket."""
        server = ["-h", str(self.folder / "postgres"), "-p", str(self.ports["postgres"]), "-U", "postgres"]
        return subprocess.run([self._postgres(program), *server, *arguments], check=True, **more)

    def start_store(self, buckets: tuple[str, ...]) -> None:
        """Moto's S3."""
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.ports["store"])]
        self._run("store", command, {**os.environ})
        url = self.settings["AWS_ENDPOINT_URL"]
        wait_for(lambda: _answers(url), 120, "the object store", pause=0.5)
        for bucket in buckets:
            requests.put(f"{url}/{bucket}", timeout=10).raise_for_status()

    # ---- services

    def start(self, *names: str) -> None:
        """Start services and wait until their own health checks pass."""
        for name in names:
            self._run(name, self._here(self.services[name]["command"], name), self.environment(name))
        for name in names:
            test = self._here(self.services[name]["healthcheck"]["test"][1:], name)
            wait_for(lambda name=name, test=test: self._passes(name, test), 180, f"{name} is healthy", pause=0.5)

    def run_in(self, name: str, *command: str) -> None:
        """Run a command as in a container of a service."""
        subprocess.run(command, check=True, env=self.environment(name), cwd=self.folder, timeout=120)

    def kill(self, name: str) -> None:
        """End a service and all it started at once, as the end of its container does."""
        process = self._processes.pop(name)
        try:
            family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        except psutil.NoSuchProcess:
            family = []
        for one in family:
            try:
                one.kill()
            except psutil.NoSuchProcess:
                continue
        process.wait(30)

    def close(self) -> None:
        for name in [*self._processes]:
            self.kill(name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"

    def graphql(self, query: str, server: str = "webserver", **variables: Any) -> dict[str, Any]:
        answer = requests.post(
            f"{self.url(server)}/graphql", json={"query": query, "variables": variables}, timeout=60
        ).json()
        assert not answer.get("errors"), answer["errors"]
        return answer["data"]

    def environment(self, name: str) -> dict[str, str]:
        """Of one container, and no other variable: its image's and compose's."""
        values = {"HOME": str(self.folder / "user"), "LANG": "C.UTF-8", "PATH": os.environ["PATH"]}
        values["PATH"] = f"{Path(sys.executable).parent}:{values['PATH']}"
        values |= {variable: self._here(value, name) for variable, value in IMAGE.items()}
        values["PYTHONPATH"] = str(ROOT if name == "code" else self.folder / "services")
        for variable, value in self.services[name]["environment"].items():
            if value is None:
                value = self.settings.get(variable)
            if value is not None:
                values[variable] = "127.0.0.1" if variable.endswith("_HOST") else self._here(str(value), name)
        return values

    def _here(self, value: Any, service: str) -> Any:
        if isinstance(value, list):
            return [self._here(one, service) for one in value]
        own = LISTENS.get(service)
        for name in ("postgres", "mlflow", "code"):
            value = value.replace(f"{name}:{LISTENS[name]}", f"127.0.0.1:{self.ports[name]}")
        value = value.replace("0.0.0.0", "127.0.0.1")
        if own:
            value = re.sub(rf"(^|--port=|127\.0\.0\.1:){own}\b", rf"\g<1>{self.ports[service]}", value)
        if value == str(LISTENS["postgres"]):
            value = str(self.ports["postgres"])
        for there, here in {"/opt/dagster": "instance", "/var/lib": "", "/data": "data"}.items():
            value = re.sub(rf"(^|=){there}(?=/|$)", rf"\g<1>{self.folder / here}", value)
        return value

    def _passes(self, name: str, test: list[str]) -> bool:
        process = self._processes[name]
        assert process.poll() is None, f"{name} ended with code {process.poll()}:\n{self.log(name)[-3000:]}"
        environment = self.environment(name)
        return subprocess.run(test, env=environment, capture_output=True, timeout=60, check=False).returncode == 0

    def _run(self, name: str, command: list[str], environment: dict[str, str], **more: Any) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command, env=environment, cwd=self.folder, stdout=log, stderr=log, start_new_session=True, **more
            )

    @staticmethod
    def _postgres(program: str) -> str:
        """Debian keeps them by version, outside of PATH."""
        return str(max(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"), key=lambda path: int(path.parts[4])))

    @staticmethod
    def _as_postgres() -> dict[str, Any]:
        """Postgres refuses root."""
        if os.geteuid() != 0:
            return {}
        return {"user": "postgres", "group": pwd.getpwnam("postgres").pw_gid, "extra_groups": []}


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).ok
    except requests.RequestException:
        return False
