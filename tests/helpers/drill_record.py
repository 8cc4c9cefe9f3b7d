"""benchmarks/results/drills.md: each drill writes its own part and leaves those of the others."""

import os
from pathlib import Path

RECORD = Path(__file__).parents[2] / "benchmarks" / "results" / "drills.md"


def record_part(title, lines):
    """Put these lines under the title, in place of what stood there; only where RAREC_DRILLS_RECORD asks for it."""
    if not os.environ.get("RAREC_DRILLS_RECORD"):
        return
    parts = {}
    for part in ("\n" + RECORD.read_text()).split("\n# ")[1:]:
        heading, _, body = part.partition("\n")
        parts[heading] = body.strip("\n")
    parts[title] = "\n".join(lines).strip("\n")
    RECORD.write_text("\n".join(f"# {heading}\n\n{body}\n" for heading, body in parts.items()))
