"""A tiny training worker for tests/resources/workers/test_launcher.py: what it does is chosen by the job's mode."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from rarec.errors import InputError
from rarec.training.job import WorkerJob
from rarec.training.progress import worker_main

SLEEPER = [sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(300)"]


class ToyJob(WorkerJob):
    """What the worker does, and the folder in which it shows that it does it."""

    module = "launcher_worker"

    mode: str
    folder: Path
    names: tuple[str, ...] = ()
    failing_rank: int = 0
    others: bool = False
    at_step: int = 0
    settle_s: float = 0.5


def hangs_here():
    time.sleep(300)


def work(job, place, reporter):
    rank, folder = int(os.environ["RANK"]), job.folder
    if job.mode == "environment":
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "OMP_NUM_THREADS", "DS_ACCELERATOR")
        names += ("CUDA_VISIBLE_DEVICES", *job.names)
        (folder / f"rank-{rank}").write_text("\n".join(f"{name}={os.environ[name]}" for name in names))
    elif job.mode == "reduce":
        import torch
        import torch.distributed as dist

        dist.init_process_group("gloo")
        total = torch.tensor([float(rank + 1)])
        dist.all_reduce(total)
        reporter.report(stage="reduce", step=1, steps=1, total=total.item(), force=True)
        dist.destroy_process_group()
    elif job.mode == "train":
        print("first line")
        sys.stderr.write("10 %\r50 %\r100 %\n")
        for step in range(1, 5):
            reporter.report(stage="pretrain", epoch=1, epochs=1, step=step, steps=4, loss=1 / step, force=True, hr=0.5)
        reporter.report(stage="pretrain", step=4, steps=4, loss=float("nan"), force=True)
        print("last line without newline", end="")
    elif job.mode == "bad input":
        raise InputError("The job has no encoder; set encoder to sasrec.")
    elif job.mode == "error":
        if rank == job.failing_rank:
            raise RuntimeError("loss is not finite")
        time.sleep(300)
    elif job.mode == "killed":
        if rank == job.failing_rank:
            while job.others and not (folder / "noisy").exists():
                time.sleep(0.05)
            print(f"last words of {rank}", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        while True:
            print(f"noise of {rank}", flush=True)
            (folder / "noisy").touch()
            time.sleep(0.05)
    elif job.mode == "memory":
        raise MemoryError("bytearray of 9 TiB")
    elif job.mode == "hang":
        for step in range(10_000):
            reporter.report(stage="pretrain", epoch=1, epochs=2, step=step, steps=10_000)
            (folder / f"ready-{rank}").touch()
            if rank == job.failing_rank and step == job.at_step:
                hangs_here()
            time.sleep(0.05)
    elif job.mode == "stubborn":
        # Ignores SIGTERM, has a child and a grandchild that do too, and an orphan whose parent is gone.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        spawn = f"import subprocess, signal, time; signal.signal(15, signal.SIG_IGN); subprocess.Popen({SLEEPER!r})"
        subprocess.Popen([sys.executable, "-c", spawn + "; time.sleep(300)"], start_new_session=True)
        subprocess.run([sys.executable, "-c", spawn], check=True, start_new_session=True)
        time.sleep(job.settle_s)
        (folder / f"ready-{rank}").touch()
        reporter.report(stage="stubborn", step=1, steps=2, force=True)
        time.sleep(300)
    elif job.mode == "waiting":
        (folder / f"ready-{rank}").touch()
        time.sleep(300)


if __name__ == "__main__":
    worker_main(ToyJob, work)
