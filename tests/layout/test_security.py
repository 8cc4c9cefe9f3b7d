"""What is read from artifacts, uploads and data can run no code: judged by reading the source, all of it."""

import ast

import pytest
from places import ROOT

MODULES = [
    path.relative_to(ROOT)
    for layer in ("rarec", "assets", "resources", "pipelines")
    for path in sorted((ROOT / layer).rglob("*.py"))
]
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "skops"}
RUNS_CODE = {"eval", "exec", "os.system", "os.popen", "subprocess.getoutput", "yaml.load", "yaml.unsafe_load"}


def faults(source: str) -> set[str]:
    """What a module does that loads a pickle, or gives text to a shell or an interpreter."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found |= {f"imports {name}" for name in names if name.split(".")[0] in PICKLES}
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        values = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        last = called.split(".")[-1]
        if called in RUNS_CODE or last in ("read_pickle", "to_pickle"):
            found.add(f"calls {called}")
        if called == "torch.load" and values.get("weights_only") != "True":
            found.add("torch.load without weights_only=True")
        if values.get("allow_pickle", "False") != "False":
            found.add("allow_pickle")
        if values.get("shell", "False") != "False":
            found.add("shell")
        if values.get("trust_remote_code", "False") != "False":
            found.add("trust_remote_code")
        # A model given as a path is logged as code; an object would be pickled.
        if "python_model" in values and not values["python_model"].startswith("str("):
            found.add("a pickled MLflow model")
        if last in ("log_model", "save_model") and "python_model" not in values and called.startswith("mlflow"):
            found.add(f"calls {called}")
        if last == "Environment" and values.get("autoescape") != "True":
            found.add("a template that does not escape")
    return found


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_nothing_read_can_run_code(path):
    assert faults((ROOT / path).read_text()) == set()


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "import subprocess\nsubprocess.run(text, shell=True)",
        "import os\nos.system(text)",
        "import yaml\nyaml.load(text)",
        "import pandas as pd\npd.read_pickle(path)",
        "model.from_pretrained(name, trust_remote_code=True)",
        "import mlflow\nmlflow.pyfunc.log_model(python_model=Model())",
        "import mlflow\nmlflow.sklearn.log_model(model)",
        "import jinja2\njinja2.Environment(loader=loader)",
        "eval(text)",
    ],
)
def test_the_inspection_finds_what_it_looks_for(source):
    assert len(faults(source)) == 1


def test_harmless_calls_are_left_alone():
    source = (
        "import numpy as np, torch, yaml\nnp.load(p)\ntorch.load(p, weights_only=True)\nyaml.safe_load(t)\nm.eval()"
    )
    assert faults(source) == set()
    assert len(MODULES) > 80
