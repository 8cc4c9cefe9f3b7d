"""A small artifact to write into a store and find again."""

from resources.artifacts.identity import fingerprint

CONFIG = {"k": 10, "split": {"seed": 1}}
INPUTS = {"interactions": "abc"}
FP = fingerprint("memory_bank", "1", CONFIG, INPUTS)
OTHER = {**CONFIG, "k": 11}
OTHER_FP = fingerprint("memory_bank", "1", OTHER, INPUTS)


def write(store, content="hello", replace=False, config=CONFIG, metadata=None):
    with draft(store, config, replace) as draft_:
        (draft_.path / "vectors").mkdir()
        (draft_.path / "vectors" / "a.txt").write_text(content)
        (draft_.path / "b.txt").write_text("same")
        draft_.metadata.update(metadata or {"rows": 3})
    return draft_.artifact


def draft(store, config=CONFIG, replace=False):
    fp = fingerprint("memory_bank", "1", config, INPUTS)
    return store.write("memory_bank", "demo", fp, inputs=INPUTS, config=config, code_version="1", replace=replace)


def find(store, fp=FP):
    return store.find("memory_bank", "demo", fp)
