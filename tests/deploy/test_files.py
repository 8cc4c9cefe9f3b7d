"""The files of docker/, judged by the published rules and by each other."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from deploy_stack import DOCKER, IMAGE, LISTENS, SERVICES, SETTINGS, compose, interpolated
from places import ROOT

from pipelines.definitions import build_defs
from resources.settings import Installation
from resources.settings_table import settings_table

pytestmark = pytest.mark.deploy

BIN = Path(sys.executable).parent
DOCKERFILE = (DOCKER / "Dockerfile").read_text()


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_hadolint_has_nothing_to_say():
    assert run(str(BIN / "hadolint"), "docker/Dockerfile") == ""


def test_compose_files_follow_the_published_schema():
    files = ("docker/compose.yaml", "docker/compose.gpu.yaml")
    assert "ok" in run(str(BIN / "check-jsonschema"), "--builtin-schema", "vendor.compose-spec", *files)


def test_images_run_as_an_unprivileged_user_and_hold_no_secret():
    for target in ("code", "services", "mlflow"):
        (stage,) = re.findall(rf"^FROM \S+ AS {target}\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL)
        assert stage.splitlines().count("USER 10001") == 1
        assert "RUN" not in stage.split("USER 10001")[1]
    assert not re.search(r"PASSWORD|SECRET|TOKEN|KEY", DOCKERFILE)
    for name, value in IMAGE.items():
        assert f"{name}={value}" in DOCKERFILE
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert not any(line.lstrip("!").startswith(("docker/.env", ".env")) for line in ignored)
    assert "docker/.env" in (ROOT / ".gitignore").read_text().splitlines()


def test_everything_copied_into_an_image_is_let_through():
    let_through = [line[1:] for line in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"]
    for sources in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists()
            assert any(source == one or source.startswith(f"{one}/") for one in let_through), source


def test_passwords_have_no_default_and_ports_are_published_on_loopback_only():
    for missing in SETTINGS:
        with pytest.raises(ValueError, match=missing):
            compose({name: value for name, value in SETTINGS.items() if name != missing})
    assert interpolated("$$a ${B:-c}$D", {"D": "d"}) == "$a cd"
    assert interpolated("${A:-b:${C:-d}}/${C:-d}", {"C": "e"}) == "b:e/e"
    services = compose(SETTINGS)["services"]
    assert set(services) == {"postgres", *SERVICES}
    for name, service in services.items():
        for port in service.get("ports", []):
            assert re.fullmatch(rf"127\.0\.0\.1:\d+:{LISTENS[name]}", port)
        assert service["restart"] == "unless-stopped"
        assert service["healthcheck"]["test"][0] == "CMD"
        assert "no-new-privileges:true" in service["security_opt"]
        assert not service.get("privileged")
    assert "ports" not in services["postgres"]
    assert "ports" not in services["code"]
    assert services["webserver-readonly"]["profiles"] == ["readonly"]


def test_the_superusers_password_reaches_postgres_alone():
    for name, service in compose({**SETTINGS, "POSTGRES_PASSWORD": "only-here"})["services"].items():
        assert ("only-here" in str(service)) == (name == "postgres")


def test_the_example_of_settings_names_every_variable_that_compose_reads():
    text = (DOCKER / "compose.yaml").read_text()
    read = set(re.findall(r"\$\{(\w+)", text)) | set(re.findall(r"^ +([A-Z_]+):$", text, re.MULTILINE))
    listed = set(re.findall(r"^(?:# )?([A-Z_]+)=", (DOCKER / ".env.example").read_text(), re.MULTILINE))
    assert read - {"AWS_SESSION_TOKEN"} == listed
    filled = re.findall(r"^([A-Z_]+)=(.+)$", (DOCKER / ".env.example").read_text(), re.MULTILINE)
    assert filled == []


def test_every_setting_of_rarec_reaches_the_code_location_or_makes_no_sense_there():
    """The image sets RAREC_HOME; several machines need a network of their own, pods Kubernetes."""
    senseless = {"RAREC_HOME", "RAREC_POD_GPUS", "RAREC_HOSTFILE", "RAREC_REMOTE_SHELL", "RAREC_RENDEZVOUS"}
    senseless |= {"RAREC_NODES", "RAREC_WORKER_ENVIRONMENT", "RAREC_PEERS"}  # peers are no part of the image
    known = {variable.name for variable in settings_table() if variable.name.startswith("RAREC_")}
    passed = {name for name in compose(SETTINGS)["services"]["code"]["environment"] if name.startswith("RAREC_")}
    assert not passed & senseless
    assert passed | senseless == known


def test_links_point_to_the_published_ports_or_to_what_is_set():
    def home(**settings):
        given = compose({**SETTINGS, **settings})["services"]["code"]["environment"]
        return Installation.from_environment({name: value for name, value in given.items() if value is not None})

    default = home(DAGSTER_PORT="3333", MLFLOW_PORT="5555")
    assert (default.dagster_ui, default.mlflow_ui) == ("http://127.0.0.1:3333", "http://127.0.0.1:5555")
    behind = home(DAGSTER_PORT="3333", DAGSTER_UI_URL="https://a.example", MLFLOW_UI_URL="https://b.example/")
    assert (behind.dagster_ui, behind.mlflow_ui) == ("https://a.example", "https://b.example")


def test_documented_one_off_containers_start_no_other_service():
    """On upgrade these would refuse the old schemas, on backup write meanwhile."""
    commands = re.findall(r"docker compose run [^\n`]*", (ROOT / "docs" / "deployment.md").read_text())
    assert len(commands) >= 4
    assert [one for one in commands if "--no-deps" not in one.split()] == []


def test_documented_backup_of_rarec_brings_back_ledgers_and_data_sets(tmp_path):
    docs = (ROOT / "docs" / "deployment.md").read_text()
    there, back = tmp_path / "there", tmp_path / "back"
    home, restored = (Installation.from_environment({"RAREC_HOME": str(folder)}) for folder in (there, back))
    kept = [Path(one.ledgers) / "ml-100k" / "ledger.sqlite" for one in (home, restored)]
    declared = [one.datasets / "shop.toml" for one in (home, restored)]
    stored = [Path(one.artifacts) / "raserec_finetuned" / "work" / "model" for one in (home, restored)]
    lost = [one.work / "run" / "checkpoint" for one in (home, restored)]
    cached = [one.cache / "copy" for one in (home, restored)]
    for file, _ in (kept, declared, stored, lost, cached):
        file.parent.mkdir(parents=True)
        file.write_text(file.name)
    back.mkdir()
    for around in (
        "docker compose run --rm --no-deps -T --entrypoint tar code",
        "kubectl exec (?:-i )?deploy/POD -- tar",
    ):
        save, load = re.findall(rf"^{around} (.* [<>] rarec\.tgz)", docs, re.MULTILINE)
        for arguments, folder in ((save, there), (load, back)):
            assert "-C /var/lib/rarec " in arguments
            command = f"tar {arguments.replace('/var/lib/rarec', str(folder))}"
            subprocess.run(command, shell=True, check=True, cwd=tmp_path)
        for before, after in (kept, declared, stored):
            assert after.read_text() == before.read_text()
        assert not [after for _, after in (lost, cached) if after.exists()]
        shutil.rmtree(back)
        back.mkdir()


def test_kubernetes_runs_the_pinned_dagster_with_gpus_a_step():
    values = yaml.safe_load((DOCKER / "kubernetes" / "values.yaml").read_text())
    pins = (ROOT / "requirements" / "constraints.txt").read_text()
    assert f"dagster=={values['dagsterWebserver']['image']['tag']}\n" in pins
    assert values["dagsterDaemon"]["image"]["tag"] == values["dagsterWebserver"]["image"]["tag"]
    (deployment,) = values["dagster-user-deployments"]["deployments"]
    assert int(deployment["env"]["RAREC_POD_GPUS"]) > 0
    home = Installation.from_environment({"RAREC_POD_GPUS": deployment["env"]["RAREC_POD_GPUS"]})
    executor = build_defs(home).executor
    assert executor.name == "k8s", "dagster-k8s takes our settings of steps"


def test_webserver_and_daemon_load_nothing_but_dagster():
    source = (ROOT / "pipelines" / "run_launcher_docker.py").read_text()
    modules = set(re.findall(r"^(?:from|import) (\w+)", source, re.MULTILINE))
    assert modules == {"logging", "time", "typing", "dagster", "dagster_postgres", "sqlalchemy"}
    (install,) = re.findall(r"AS services\n.*?pip install [^\n]*constraints.txt ([^\n]*)", DOCKERFILE, re.DOTALL)
    assert install.split() == ["dagster", "dagster-webserver", "dagster-postgres"]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(one.startswith("dagster-postgres") for one in extras["deploy"])
