"""No module runs what it reads: no pickles, no evaluated text, no code beside a model, no shell."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import xwin

ROOT = Path(xwin.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "torch.jit.load", "torch.hub.load", "pandas.read_pickle"}
LOADERS = {"yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "yaml.unsafe_load_all", "yaml.full_load_all"}


def dangers(source: str) -> Iterator[str]:
    """What in a module could run what it reads."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (f"import {name.name}" for name in node.names if name.name.partition(".")[0] in UNPICKLERS)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in UNPICKLERS:
            yield f"from {node.module}"
        elif isinstance(node, ast.Call):
            yield from _dangers_of_call(node)


def _dangers_of_call(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func)
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    if name in CALLS | LOADERS:
        yield name
    if name.startswith("yaml.") and given.get("Loader", "yaml.SafeLoader") != "yaml.SafeLoader":
        yield f"{name}(Loader={given['Loader']})"
    if name in {"np.load", "numpy.load"} and given.get("allow_pickle") != "False":
        yield f"{name} without allow_pickle=False"
    if given.get("shell", "False") != "False":
        yield f"{name}(shell=...)"
    if given.get("trust_remote_code", "False") != "False":
        yield f"{name}(trust_remote_code=...)"
    if name.startswith("Auto") and name.endswith(".from_pretrained") and given.get("trust_remote_code") != "False":
        yield f"{name} without trust_remote_code=False"  # left out, transformers asks on the terminal


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_module_runs_nothing_that_it_reads(path: Path) -> None:
    assert list(dangers(path.read_text(encoding="utf-8"))) == []


PLANTED = {
    "import pickle": "import pickle",
    "from joblib import load": "from joblib",
    "torch.load(path)": "torch.load",
    "eval(text)": "eval",
    "yaml.load(text)": "yaml.load",
    "yaml.compose(text, Loader=yaml.Loader)": "yaml.compose(Loader=yaml.Loader)",
    "np.load(path)": "np.load without allow_pickle=False",
    "subprocess.run(line, shell=True)": "subprocess.run(shell=...)",
    "AutoConfig.from_pretrained(folder)": "AutoConfig.from_pretrained without trust_remote_code=False",
    "family.from_pretrained(folder, trust_remote_code=yes)": "family.from_pretrained(trust_remote_code=...)",
}


@pytest.mark.parametrize(("source", "found"), PLANTED.items())
def test_each_danger_would_be_found(source: str, found: str) -> None:
    assert list(dangers(source)) == [found]


SAFE = ("model.eval()", "np.load(path, allow_pickle=False)", "yaml.compose(text, Loader=yaml.SafeLoader)", "ast.literal_eval(text)", "re.compile(x)")


@pytest.mark.parametrize("source", SAFE)
def test_what_is_safe_passes(source: str) -> None:
    assert list(dangers(source)) == []
