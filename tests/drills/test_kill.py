"""Kill -9 at random moments, a full disk, a jumping clock, Ctrl-C twice, ports taken: trainings of two ranks go on.

Kills hit rank 0, rank 1, torchrun, the agent (`rarec.training.worker.node`) and the Dagster step's process, each in
each of the four trainings. The moments are drawn with a seed; what falls into them is the machine's affair, so that
repeated runs try more than one does. With RAREC_DRILLS_RECORD=1 the outcome goes to benchmarks/results/drills.md.
"""

import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from drill_data import TINY
from drill_record import record_part
from places import ROOT
from safetensors.torch import load_file
from waiting import wait_for

from rarec.training.checkpoint import STATE
from rarec.training.fit import HISTORY
from rarec.training.worker.process_tree import LAUNCH_ID
from resources.artifacts.manifest import DamagedArtifact
from resources.artifacts.store import ArtifactStore

pytestmark = pytest.mark.slow

SEED = 4
# Some five seconds of training each, with a checkpoint every other step.
CONFIG = {
    "raserec_pretrained": {"epochs": 24, "patience": 24},
    "raserec_finetuned": {"epochs": 24, "patience": 24, "batch_size": 128},
    "base_language_model": {"epochs": 8},
    "lora_checkpoint": {"epochs": 8, "patience": 8},
}
UPSTREAM = {  # trained assets: itself, and on what it rests
    "raserec_pretrained": ["raserec_pretrained"],
    "raserec_finetuned": ["raserec_pretrained", "raserec_finetuned"],
    "base_language_model": ["base_language_model"],
    "lora_checkpoint": ["base_language_model", "lora_checkpoint"],
}
ROLES = ("rank 0", "rank 1", "torchrun", "agent", "step")
GONE_S = 20.0  # the grace of the agent's SIGTERM, and some
LATE_S = 180.0  # for what takes seconds on an idle machine


@dataclass(frozen=True)
class Kill:
    """What is killed, and when."""

    role: str
    share: float | None  # of the epochs; None: while a launch starts
    delay: float  # seconds later


@dataclass
class Row:
    """A line of the record."""

    asset: str
    moment: str
    role: str
    checkpoint: str
    went_on: str = ""
    resumed: str = ""
    gone_s: float = 0.0


@dataclass
class Launch:
    """One launch, as seen when its first process appeared."""

    identity: str
    since: float
    position: tuple[int, int] | None  # of the checkpoint it finds
    log_size: int
    how: str


class Drill:
    """Runs training steps in a RAREC_HOME of its own and looks at what they leave."""

    def __init__(self, home: Path):
        self.home = home
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAREC", "MLFLOW"))}
        self.environment = kept | {
            "RAREC_HOME": str(home),
            "DAGSTER_HOME": str(home / "dagster"),
            "RAREC_NPROC": "2",
            "RAREC_THREADS": "1",
            "RAREC_CHECKPOINT_STEPS": "2",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }
        self.store = ArtifactStore(root=str(home / "artifacts"), cache=str(home / "cache"))
        self.undisturbed: dict[str, dict] = {}
        self._plans = itertools.count()

    def start(self, *assets, with_upstream=False, config=None, **environment):
        """A process that materialises the assets; its output is `process.log`."""
        number = next(self._plans)
        plan = self.home / f"plan-{number}.json"
        plan.write_text(json.dumps({"assets": assets, "with_upstream": with_upstream, "config": config or {}}))
        with (self.home / f"step-{number}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-W", "ignore", str(ROOT / "tests/helpers/drill_step.py"), str(plan)],
                cwd=ROOT, env=self.environment | environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        process.log = Path(log.name)
        return process

    def train(self, asset, **environment):
        """A process that makes this trained asset with the settings of the undisturbed run."""
        return self.start(asset, config={asset: CONFIG[asset]}, **environment)

    def account(self, process, seconds=400):
        """What a step tells of itself when it ends."""
        process.wait(seconds)
        lines = process.log.read_text().splitlines()
        assert lines, "the step said nothing"
        assert lines[-1].startswith('{"success"'), "\n".join(lines[-40:])
        return json.loads(lines[-1])

    def train_undisturbed(self, asset):
        """Make the asset and all before it, note what is in its artifact, and take that away again."""
        if asset not in self.undisturbed:
            config = {name: CONFIG[name] for name in UPSTREAM[asset]}
            account = self.account(self.start(asset, with_upstream=True, config=config), 600)
            assert account["success"], account
            self.undisturbed[asset] = self.content(asset)
        shutil.rmtree(self.home / "artifacts" / asset, ignore_errors=True)
        assert self.position(asset) is None

    def identities(self, asset):
        """The fingerprints of its artifacts."""
        return sorted(path.name for path in (self.home / "artifacts" / asset / "tiny").glob("*"))

    def content(self, asset):
        """The hashes of all files of its only artifact."""
        (identity,) = self.identities(asset)
        files = self.store.open(asset, "tiny", identity).manifest.files
        return {name: record.sha256 for name, record in files.items()}

    def state(self, asset):
        """The checkpoint's file, if there is one."""
        return next(iter(self.home.glob(f"work/{asset}/**/checkpoint/{STATE}")), None)

    def position(self, asset):
        """Finished epochs and steps of the checkpoint; None without one."""
        file = self.state(asset)
        if file is None:
            return None
        try:
            with file.open("rb") as stream:
                header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        except FileNotFoundError:
            return None
        record = json.loads(header["__metadata__"]["state"])
        return len(record["history"]), record["step"]

    def log_of_rank_0(self, asset):
        """What all attempts wrote."""
        return b"".join(file.read_bytes() for file in sorted(self.home.glob(f"work/{asset}/**/log-0.txt")))

    def processes(self, launch=None):
        """Living processes of a launch, or of all of this home, by role; a role may have several."""
        found = []
        for process in psutil.process_iter():
            try:
                environment = process.environ()
                if environment.get("RAREC_HOME") != str(self.home) or LAUNCH_ID not in environment:
                    continue
                if process.status() == psutil.STATUS_ZOMBIE or launch not in (None, environment[LAUNCH_ID]):
                    continue
                found.append((environment[LAUNCH_ID], _role(process, environment), process))
            except psutil.Error:
                continue
        return found

    def clean(self):
        """End what a failed test left."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("RAREC_HOME") == str(self.home):
                    process.kill()

    def assert_result(self, asset, account):
        """One artifact, materialised once, equal to the undisturbed one to the last bit, and nothing else left."""
        assert account["success"], account
        assert not account["materialised"][asset]["reused"]
        assert self.identities(asset) == [account["materialised"][asset]["fingerprint"]]
        assert self.content(asset) == self.undisturbed[asset]
        assert self.processes() == []
        assert list((self.home / "artifacts" / ".staging").iterdir()) == []
        assert self.position(asset) is None  # the checkpoint has done its duty


def _role(process, environment):
    command = " ".join(process.cmdline())
    if "rarec.training.worker.node" in command:
        return "agent"
    if "rarec.training.worker.torchrun_worker" in command:
        return "torchrun"
    parent = process.parent()
    if (
        parent is not None
        and "rarec.training.worker.torchrun_worker" in " ".join(parent.cmdline())
        and "RANK" in environment
    ):
        return f"rank {environment['RANK']}"
    return "other"


class Watch:
    """Looks at the store and at the checkpoint all the time."""

    def __init__(self, drill, asset):
        self._drill, self._asset = drill, asset
        self.faults, self.looks, self.positions = [], 0, []
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._seen, args=(look,)) for look in (self._store, self._checkpoint)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _seen(self, look):
        """A thread that dies must not pass for one that finds nothing."""
        try:
            look()
        except Exception as error:
            self.faults.append(repr(error))

    def _store(self):
        """Whatever stands in the store is whole: it has a manifest, and every file is as that says."""
        while not self._end.wait(0.25):
            self.looks += 1
            for folder in (self._drill.home / "artifacts").glob("[!.]*/*/*"):
                try:
                    self._drill.store.find(folder.parts[-3], folder.parts[-2], folder.name)
                except DamagedArtifact as fault:
                    self.faults.append(str(fault))

    def _checkpoint(self):
        """Whoever starts from scratch where a checkpoint is, puts one in its place that is farther back."""
        while not self._end.wait(0.05):
            position = self._drill.position(self._asset)
            if position and (not self.positions or position != self.positions[-1]):
                self.positions.append(position)


@pytest.fixture(scope="module")
def drill(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    (home / "datasets").mkdir()
    (home / "dagster").mkdir()
    (home / "datasets" / "tiny.toml").write_text(TINY)
    shutil.copy(ROOT / "pipelines" / "dagster.yaml", home / "dagster")
    one = Drill(home)
    try:
        yield one
    finally:
        one.clean()


@pytest.fixture(scope="module")
def record():
    rows, notes = [], []
    yield rows, notes
    record_part("Drills: what a training survives", _lines(rows, notes))


def draw(asset, epochs, extra=()):
    """Five kills, each role once, at moments of a generator of the asset's own."""
    generator = random.Random(f"{SEED} {asset}")
    roles = generator.sample(ROLES, k=len(ROLES))
    shares = sorted(generator.uniform(0.02, 0.9) for _ in roles)
    kills = []
    for role, share in zip(roles, shares, strict=True):
        starting = generator.random() < 0.25
        kills.append(Kill(role, None if starting else share * epochs, generator.uniform(0, 8 if starting else 0.3)))
    return [*kills, *extra]


def next_launch(drill, asset, step, known):
    """The next launch; the step is started again if it has ended. What was launched before is gone by then."""
    how = "tried again in the run" if known else "first"
    deadline = time.monotonic() + LATE_S
    while time.monotonic() < deadline:
        processes = drill.processes()
        identities = {identity for identity, _, _ in processes} - known
        if identities:
            assert {identity for identity, _, _ in processes} == identities, "a process of an earlier launch is left"
            (identity,) = identities
            log_size = len(drill.log_of_rank_0(asset))
            return step, Launch(identity, time.monotonic(), drill.position(asset), log_size, how)
        if step.poll() is not None:
            assert step.returncode != 0
            wait_for(lambda: drill.processes() == [], GONE_S, "nothing is left of the run")
            step, how = drill.train(asset), "run started again"
        time.sleep(0.05)
    raise AssertionError(f"no launch within {LATE_S} s; {step.log.read_text()[-2000:]}")


def strike(drill, asset, step, launch, kill):
    """Wait for the moment and kill; the line of the record."""
    if kill.share is None:
        time.sleep(kill.delay)
    elif kill.share > CONFIG[asset]["epochs"]:
        wait_for(lambda: _finishing(drill, asset), LATE_S, "the result is being written")
    else:
        steps = {}

        def reached():
            assert step.poll() is None, f"the training ended before the kill; {step.log.read_text()[-2000:]}"
            position = drill.position(asset)
            if position is None or position == launch.position:
                return False
            steps[position[0]] = max(position[1], steps.get(position[0], 0))
            return position[0] >= kill.share  # whole epochs; the delay brings it between two checkpoints

        wait_for(reached, LATE_S, f"{kill.share:.1f} epochs")
        time.sleep(kill.delay)

    def target():
        if kill.role == "step":
            return psutil.Process(step.pid)
        return next((p for _, role, p in drill.processes(launch.identity) if role == kill.role), None)

    victim = wait_for(target, LATE_S, f"{kill.role} is there")
    victim.kill()
    seconds = time.monotonic() - launch.since
    position = drill.position(asset)
    if kill.share is not None and kill.share > CONFIG[asset]["epochs"]:
        moment = "writing the result"
    elif position == launch.position:
        moment = f"starting, {seconds:.1f} s after its launch"
    else:
        moment = f"training, {seconds:.1f} s after its launch"
    if kill.role == "step":
        step.wait(20)
        killed = time.monotonic()
        wait_for(lambda: drill.processes() == [], GONE_S, "nothing is left of the killed step")
        gone = time.monotonic() - killed
    else:
        killed = time.monotonic()
        wait_for(lambda: not drill.processes(launch.identity), GONE_S, "nothing is left of the launch")
        gone = time.monotonic() - killed
    return Row(asset, moment, kill.role, _text(drill.position(asset)), gone_s=gone)


def _finishing(drill, asset):
    return any((drill.home / "artifacts" / ".staging").glob(f"{asset}-*/**/{HISTORY}"))


def _text(position):
    return "none" if position is None else f"epoch {position[0]} + {position[1]} steps"


def said_to_go_on(drill, asset, log_size):
    """Where rank 0 says that it resumes, in its log behind so many bytes: (epochs, steps)."""
    said = drill.log_of_rank_0(asset)[log_size:].decode()
    return [
        (int(words[words.index("after") + 1]), int(words[words.index("and") + 1]))
        for words in map(str.split, said.splitlines())
        if "resuming" in words and "after" in words
    ]


def _assert_resumed(drill, asset, launch, trained):
    """The launch went on from the checkpoint it found, if it came so far as to say so."""
    said = said_to_go_on(drill, asset, launch.log_size)
    if launch.position is None:
        assert said == []
    elif trained or said:
        assert said == [launch.position]


@pytest.mark.parametrize("asset", CONFIG)
def test_kill_9_at_random_moments(drill, record, asset):
    epochs = CONFIG[asset]["epochs"]
    last = [Kill("step", epochs + 1, 0.0)] if asset == "raserec_finetuned" else []  # in the midst of writing the result
    drill.train_undisturbed(asset)
    known, rows = set(), []
    step = drill.train(asset)
    with Watch(drill, asset) as watch:
        for kill in draw(asset, epochs, last):
            step, launch = next_launch(drill, asset, step, known)
            if rows:
                rows[-1].went_on, rows[-1].resumed = launch.how, _text(launch.position)
            known.add(launch.identity)
            rows.append(strike(drill, asset, step, launch, kill))
            print(rows[-1], flush=True)
            _assert_resumed(drill, asset, launch, trained=drill.position(asset) != launch.position)
        step, launch = next_launch(drill, asset, step, known)
        rows[-1].went_on, rows[-1].resumed = launch.how, _text(launch.position)
        account = drill.account(step)
        _assert_resumed(drill, asset, launch, trained=True)
    drill.assert_result(asset, account)
    assert watch.faults == []
    assert watch.looks > 50
    assert watch.positions == sorted(watch.positions)
    record[0].extend(rows)


def begin(drill, asset, **environment):
    """A step that trains and has left a checkpoint within an epoch."""
    step = drill.train(asset, **environment)

    def trains():
        assert step.poll() is None, step.log.read_text()[-2000:]
        return (drill.position(asset) or (0,))[0] >= 2

    wait_for(trains, LATE_S, "a checkpoint")
    return step


def finish(drill, asset, expected=None):
    """Start the run again; it goes on from the checkpoint and ends like the undisturbed one."""
    position, log_size = drill.position(asset), len(drill.log_of_rank_0(asset))
    if expected is not None:
        assert position >= expected
    drill.assert_result(asset, drill.account(drill.train(asset)))
    assert said_to_go_on(drill, asset, log_size) == [position]


@contextmanager
def small_disk(folder, size):
    """A file system of its own in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting a small disk is not permitted: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder, left):
    """Fill the disk but for so many bytes."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while (room := os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize - left) > 0:
            file.write(bytes(room))
    return ballast


@pytest.mark.skipif(not shutil.which("mount"), reason="there is no mount")
@pytest.mark.parametrize("left", [0, 16 << 10], ids=["to the last byte", "but for small files"])
def test_disk_full_at_a_checkpoint(drill, record, left):
    asset = "raserec_pretrained"
    drill.train_undisturbed(asset)
    work = drill.home / "work" / asset
    with small_disk(work, "8m"):
        step = begin(drill, asset)
        ballast = fill(work, left)
        position = drill.position(asset)
        account = drill.account(step)
        assert not account["success"]
        (failure,) = account["failures"]
        print(failure)
        # A rank that cannot leave a word is spoken for by the launcher.
        assert f"{STATE} cannot be written: " in failure or f"the disk of the working folder {work}" in failure
        assert "run again" in failure
        assert account["retries"] == 0
        assert drill.processes() == []
        assert load_file(drill.state(asset))  # whole
        ballast.unlink()
        finish(drill, asset, position)
    record[1].append(f"Disk full at a checkpoint ({left >> 10} KiB left): refused with a clear message, then equal.")


def test_interrupted_twice(drill, record):
    asset = "raserec_pretrained"
    drill.train_undisturbed(asset)
    step = begin(drill, asset)
    position = drill.position(asset)
    step.send_signal(signal.SIGINT)
    time.sleep(0.5)
    with suppress(ProcessLookupError):
        step.send_signal(signal.SIGINT)
    assert step.wait(30) != 0
    print(step.log.read_text()[-500:])
    assert "tried again" not in step.log.read_text()
    assert drill.processes() == []
    finish(drill, asset, position)
    record[1].append("SIGINT twice to the step: ended, nothing left; run again: equal.")


# Real time as every program on the machine sees it that asks the C library: hours off, and another jump each second.
JUMPING_CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>

static long offset(void) {
    static const long hours[] = {0, 5, -7, 30, 2, -50};
    static int (*real)(clockid_t, struct timespec *);
    struct timespec now;
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    real(CLOCK_MONOTONIC, &now);
    return 3600 * hours[now.tv_sec % 6];
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, now);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) now->tv_sec += offset();
    return result;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec precise;
    int result = clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return result;
}

time_t time(time_t *out) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (out) *out = precise.tv_sec;
    return precise.tv_sec;
}
"""


@pytest.fixture
def jumping_clock(tmp_path):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler (cc) to build a clock that jumps")
    (tmp_path / "clock.c").write_text(JUMPING_CLOCK)
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(tmp_path / "clock.so"), str(tmp_path / "clock.c"), "-ldl"]
    subprocess.run(command, check=True)
    return {"LD_PRELOAD": str(tmp_path / "clock.so")}


def test_clock_that_jumps_by_hours_each_second(drill, record, jumping_clock):
    command = [sys.executable, "-c", "import time; a = time.time(); time.sleep(1); print(time.time() - a)"]
    jump = float(subprocess.run(command, env=os.environ | jumping_clock, capture_output=True, check=True).stdout)
    assert abs(jump) > 3000
    asset = "raserec_pretrained"
    drill.train_undisturbed(asset)
    # A rank that is silent for a minute would be held for hung.
    account = drill.account(drill.train(asset, RAREC_HEARTBEAT="60", **jumping_clock))
    assert account["retries"] == 0
    drill.assert_result(asset, account)
    record[1].append("Clock that jumps by hours, forwards and backwards, each second: no retry, equal.")


def test_ports_that_torchrun_likes_are_taken(drill, record):
    asset = "raserec_pretrained"
    drill.train_undisturbed(asset)
    ports = (29400, 29500)  # torchrun's and torch's defaults
    with ExitStack() as taken:
        for port in ports:
            one = taken.enter_context(socket.socket())
            with suppress(OSError):  # then somebody else has it: as good
                one.bind(("", port))
                one.listen()
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "RANK": "7", "WORLD_SIZE": "9"}
        account = drill.account(drill.train(asset, **environment))
    assert account["retries"] == 0
    drill.assert_result(asset, account)
    record[1].append("Ports 29400 and 29500 taken, and named by the environment: others are chosen, equal.")


def _lines(rows, notes):
    return [
        "    RAREC_DRILLS_RECORD=1 python -m pytest -m slow tests/drills/test_kill.py",
        "",
        "Two ranks on two CPU cores, a checkpoint every second step, the synthetic data set of the drills. Each",
        "training's final artifact (weights, history, settings) is compared with that of an undisturbed run file by",
        "file, by SHA-256: no tolerance. Meanwhile the artifact store was looked at several times a second, and all",
        "that stood in it verified.",
        "",
        "| asset | moment of kill -9 | killed | checkpoint | others gone after, s | went on | from | result |",
        "|---|---|---|---|---|---|---|---|",
        *(
            f"| {row.asset} | {row.moment} | {row.role} | {row.checkpoint} | {row.gone_s:.1f} | {row.went_on} "
            f"| {row.resumed} | equal |"
            for row in rows
        ),
        "",
        *(f"- {note}" for note in notes),
    ]
