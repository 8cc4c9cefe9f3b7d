"""Both stages without dropout on however many ranks torchrun starts; run by test_raserec_ranks.

Usage: raserec_ranks_worker.py FOLDER. Rank 0 writes FOLDER/summary.json and the weights.
"""

import json
import os
import sys
from pathlib import Path

import torch
from raserec_toys import chain_sequences

from rarec.raserec.encoders import build_encoder
from rarec.raserec.finetune import finetune
from rarec.raserec.pretrain import pretrain
from rarec.raserec.settings import FinetuneSettings, PretrainSettings
from rarec.retrieval.memory import MemoryBank
from rarec.retrieval.settings import MemorySettings
from rarec.training.dropout import DropoutBits
from rarec.training.engine import all_sum, gather_rows, join_group, rank, world_size
from rarec.training.engine_settings import EngineSettings

# Batches of 9 over windows of up to 7 prefixes: some last steps leave a rank without any window.
STAGE1 = PretrainSettings(
    dim=8,
    inner_dim=12,
    hidden_dropout=0,
    attention_dropout=0,
    max_length=12,
    batch_size=9,
    learning_rate=5e-3,
    epochs=3,
)
STAGE2 = FinetuneSettings(memories=4, beta=0.5, inner_dim=12, dropout=0, batch_size=7, learning_rate=5e-3, epochs=3)


def both_stages(folder: Path) -> None:
    """Train both stages and write what the test compares."""
    torch.set_num_threads(1)
    join_group(torch.device("cpu"))
    sequences = chain_sequences(users=25, n_items=20)
    summaries = {}

    def folders(name):
        (folder / name).mkdir(parents=True, exist_ok=True)
        return folder / name, folder / "checkpoints" / name

    for kind in ("sasrec", "gru4rec", "bert4rec"):
        settings = STAGE1.model_copy(update={"encoder": kind})
        for suffix, engine in engines(kind == "sasrec"):
            name = kind + suffix
            summaries[name] = pretrain(sequences, settings, *folders(name), lambda **values: None, engine)
    # Stage 2 starts from the same encoder on every number of ranks.
    encoder = new_encoder(sequences)
    prefixes = sequences.prefixes("train")
    bank = MemoryBank.build(sequences, prefixes, encoder.encode(sequences, prefixes).numpy(), "enc", MemorySettings())
    for suffix, engine in [*engines(True), ("-in-pieces", EngineSettings(accumulation=3))]:
        name = "stage2" + suffix
        summaries[name] = finetune(sequences, encoder, bank, STAGE2, *folders(name), lambda **values: None, engine)
    if world_size() > 1:
        check_gather()
    if rank() == 0:
        (folder / "summary.json").write_text(json.dumps(summaries))


def engines(several):
    """What is trained with, by the suffix of the run's name."""
    yield "", EngineSettings()
    if several and world_size() > 1:
        for stage in (1, 2, 3):
            yield f"-zero{stage}", EngineSettings(zero_stage=stage, offload=stage == 2)


def new_encoder(sequences):
    """An encoder with visible differences between items."""
    torch.manual_seed(1)
    encoder = build_encoder(sequences.n_items, STAGE1, DropoutBits(0)).eval()
    torch.nn.init.normal_(encoder.item_embedding)
    return encoder


def check_gather() -> None:
    """Rows in rank order whatever their numbers; gradients of all ranks reach their owner."""
    for counts in ((2, 3), (0, 4), (3, 0)):
        mine = (torch.arange(counts[rank()] * 2.0).view(-1, 2) + 100 * rank()).requires_grad_()
        rows, first = gather_rows(mine)
        expected = torch.cat([torch.arange(n * 2.0).view(-1, 2) + 100 * r for r, n in enumerate(counts)])
        assert torch.equal(rows, expected)
        assert first == (0, counts[0])[rank()]
        weight = torch.arange(1.0, len(rows) + 1)[:, None]
        (rows * weight * (rank() + 1)).sum().backward()  # rank r asks for (r + 1) times the row's number
        own = weight[first : first + len(mine)].expand(-1, 2)
        assert torch.equal(mine.grad, 3 * own)
        assert float(all_sum(torch.tensor(float(rank() + 1)))) == 3


if __name__ == "__main__":
    both_stages(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)  # as `worker_main` does: gloo's threads may abort an interpreter that shuts down under them
