"""A torchrun wrapper that records why a rank died when the rank could not. It takes torchrun's arguments."""

from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from rarec.training.worker.worker_files import leave_ended, memory_kills


def main() -> None:
    """Run this machine's ranks; exit with code 1 if one fails."""
    arguments = parse_args(None)
    folder = Path(arguments.training_script_args[0]).parent  # where the job file is
    killed_before = memory_kills()
    try:
        run(arguments)
    except ChildFailedError as error:
        for rank, failure in error.failures.items():
            leave_ended(folder, rank, failure.exitcode, memory_kills() > killed_before)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
