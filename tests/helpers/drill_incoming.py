"""Watches a folder and takes in what has settled, until it is killed: `drill_incoming.py folder ledger`.

It looks as the sensor does and goes on as the asset does. Says `ready` when it begins, `idle` while nothing is left.
"""

import sys
import time
from pathlib import Path

from rarec.data.incoming.ledger import Ledger
from rarec.data.spec import builtin_specs
from resources.incoming import IncomingFiles, ingest

SETTLE_S = 0.03
PAUSE_S = 0.005
BATCH_FILES = 3  # so that the ledger is written often


def main():
    source, ledger = IncomingFiles(sys.argv[1]), Ledger(Path(sys.argv[2]))
    spec = builtin_specs()["ml-100k"]
    print("ready", flush=True)
    while True:
        settled, settling = ledger.look(source.listing(), time.time(), SETTLE_S)
        if settled:
            ingest(source, ledger, spec, settled, BATCH_FILES)
        elif not settling:
            print("idle", flush=True)
        time.sleep(PAUSE_S)


if __name__ == "__main__":
    main()
