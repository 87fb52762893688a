"""The rules of the house: packages are twins, imports run one way, and the port runs without torch."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.meta, pytest.mark.house]
ROOT = Path(__file__).parents[2]

# Folders of the port whose files have no twin, with what they hold.
WITHOUT_TWINS = {
    "stream": "what a stream keeps between chunks, and where it is kept",
    "fast": "fast forms of plain layers",
    "batched": "what many requests share",
    "files": "all that reads or writes a disk",
    "app": "all that talks to a person or a client",
}
# Files that only one side has, with the reason.
ONE_SIDED = {
    "port": {
        "config.py": "both sides use it",
        "noise.py": "the original's noise without torch; the reference draws from torch",
        "request.py": "framework-free, both sides use it",
        "generate.py": "the shape of another library",
        "__main__.py": "the command line",
        "frontend/normalizer.py": "framework-free, both sides use it",
        "frontend/text.py": "framework-free, both sides use it",
        "frontend/tokenizer.py": "framework-free, both sides use it",
        "frontend/special_tokens.py": "framework-free, both sides use it",
        "frontend/written.py": "how people write; the original takes one text",
        "frontend/transcript.py": "warns of prompts; the original does not",
    },
    "reference": {
        "synthesize.py": "writes a checkpoint for tests",
        "export_onnx.py": "writes the two ONNX files for tests",
        "tiny_tokenizer.py": "writes a tokenizer for tests",
        "official_layout.py": "writes a checkpoint for tests",
    },
}
# Classes and functions that differ between twin files, each with the reason; few, and for the whole port.
DIFFERENCES = {
    ("llm/speech_lm.py", "CosyVoice3LM.qwen2"): "the reference keeps llm.pt's deeper nesting and needs a short cut",
    ("cosyvoice3.py", "CosyVoice3.from_pretrained"): "a converted folder or hub id against the official files",
    ("cosyvoice3.py", "CosyVoice3.add_zero_shot_spk"): "the port puts the model's preamble in unless raw_prompt",
    ("vocoder/f0.py", "DoubleConv1d"): "torch has float64 convolutions",
    ("vocoder/stft.py", "analyse"): "a stream transforms what it holds, without the edges",
    ("vocoder/stft.py", "overlap_add"): "a stream carries the overlap on",
    ("vocoder/stft.py", "envelope"): "torch.istft has its own",
}
MOST_DIFFERENCES = 8
# What a stream carries from chunk to chunk, and what requests share, which only the port has; last, and left out by
# default.
CARRIED = {"state", "kept", "tail", "start", "decoder"}
# Arguments that belong to the framework.
OF_FRAMEWORK = {"device", "dtype", "rand_ini"}
OURS = ("benchmarks", "convert", "parity_tests", "port", "reference", "reports", "tests")
FORBIDDEN = {
    "mlx_parity": OURS,
    "port": ("torch", "transformers", "onnx", "onnxruntime", "mlx_parity", *(p for p in OURS if p != "port")),
    "reference": ("mlx", "transformers", "mlx_parity", "convert", "parity_tests", "reports"),
    "convert": ("mlx_parity", "parity_tests", "reports", "benchmarks"),
    "reports": ("mlx", "torch", "port", "reference", "convert", "parity_tests"),
    "mlx_parity/faults": ("mlx", "torch", "port", "reference", "convert", "parity_tests", "reports", "benchmarks"),
}
# Commands stand on the top floor and may reach the suite.
TOP_FLOOR = {"convert/run.py", "convert/publish.py", "reference/export_onnx.py", "reports/card.py"}


def sources(package: str) -> dict[str, Path]:
    folder = ROOT / package
    found = {p.relative_to(folder): p for p in sorted(folder.rglob("*.py")) if p.name != "__init__.py"}
    return {str(name): p for name, p in found.items() if name.parts[0] != "build"}  # which `pip install` leaves


def shared_files() -> list[str]:
    return sorted(sources("port").keys() & sources("reference").keys())


def public(body: list[ast.stmt], kind: type | tuple[type, ...]) -> list[Any]:
    return [node for node in body if isinstance(node, kind) and not getattr(node, "name", "_").startswith("_")]


def arguments(function: ast.FunctionDef) -> list[str]:
    """Each as it is written, without its type: `name` or `name=default`, `*` before those that need their name."""
    given = function.args
    plain = [*given.posonlyargs, *given.args]
    pairs = [*zip(plain, [*[None] * (len(plain) - len(given.defaults)), *given.defaults], strict=True)]
    named = [*zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    found = [a.arg if default is None else f"{a.arg}={ast.unparse(default)}" for a, default in pairs]
    return [*found, *["*"] * bool(named), *(a.arg if d is None else f"{a.arg}={ast.unparse(d)}" for a, d in named)]


def surface(file: str, package: str) -> dict[str, list[str]]:
    """Public classes, methods and functions of a file in their order, with their arguments."""
    found: dict[str, list[str]] = {}
    tree = ast.parse(sources(package)[file].read_text("utf-8")).body
    for node in public(tree, (ast.ClassDef, ast.FunctionDef)):
        if isinstance(node, ast.FunctionDef):
            found[node.name] = arguments(node)
            continue
        found[node.name] = []
        for method in node.body:
            name = "__call__" if getattr(method, "name", "") == "forward" else getattr(method, "name", "_")
            if isinstance(method, ast.FunctionDef) and (name in ("__init__", "__call__") or name[0] != "_"):
                found[f"{node.name}.{name}"] = arguments(method)
    return found


def test_every_file_has_its_twin():
    port, reference = set(sources("port")), set(sources("reference"))
    port = {file for file in port if file.split("/")[0] not in WITHOUT_TWINS}
    assert port - reference <= set(ONE_SIDED["port"]), "port files without a twin or a reason"
    assert reference - port <= set(ONE_SIDED["reference"]), "reference files without a twin or a reason"


@pytest.mark.parametrize("file", shared_files())
def test_twins_have_the_same_classes_methods_and_arguments(file):
    """In the same order and with the same defaults, but for what streams carry and the framework's own."""
    allowed = {name for of, name in DIFFERENCES if of == file}
    port, reference = (surface(file, package) for package in ("port", "reference"))
    for name, given in port.items():
        carried = [a.partition("=")[0] in CARRIED for a in given]
        assert name in allowed or carried == sorted(carried), f"{name}: what a stream carries comes last"
        assert name in allowed or all("=" in a for a, c in zip(given, carried, strict=True) if c)
    port, reference = (
        {name: [a for a in given if a.partition("=")[0] not in CARRIED | OF_FRAMEWORK] for name, given in side.items()}
        for side in (port, reference)
    )

    def kept(found: dict[str, list[str]]) -> list[tuple[str, list[str]]]:
        return [(name, found[name]) for name in found if not {name, name.partition(".")[0]} & allowed]

    assert kept(port) == kept(reference)
    assert all(port.get(name) != reference.get(name) for name in allowed), "no longer different"


def test_the_differences_are_few():
    assert len(DIFFERENCES) <= MOST_DIFFERENCES
    assert {file for file, _ in DIFFERENCES} <= set(shared_files())


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_imports_run_one_way(package):
    for file, path in sources(package).items():
        if f"{package}/{file}" in TOP_FLOOR:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            for name in imported(node):
                assert name not in FORBIDDEN[package], f"{package}/{file} imports {name}"


def test_the_judge_knows_the_frameworks_in_one_folder():
    """Imports under `if TYPE_CHECKING:` do not count: they never run."""
    for file, path in sources("mlx_parity").items():
        run = [node for node in ast.parse(path.read_text("utf-8")).body if not isinstance(node, ast.If)]
        names = {n for part in run for node in ast.walk(part) for n in imported(node)}
        assert file.startswith("sides/") or not names & {"torch", "mlx"}, f"mlx_parity/{file}"


def imported(node: ast.AST) -> list[str]:
    """Packages that an import statement names; none of any other node."""
    names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
    names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
    return [name.split(".")[0] for name in names]


def imports(package: str) -> dict[str, set[str]]:
    """Each file of a package, with the files of the package that it imports."""
    names = {file.removesuffix(".py").replace("/", "."): file for file in sources(package)}
    found: dict[str, set[str]] = {}
    for name, file in names.items():
        inside = name.split(".")[:-1]
        found[file] = set()
        for node in ast.walk(ast.parse(sources(package)[file].read_text("utf-8"))):
            if not isinstance(node, ast.ImportFrom):
                continue
            words = (node.module or "").split(".") if node.module else []
            if node.level:
                words = [*inside[: len(inside) - node.level + 1], *words]
            elif words[:1] == [package]:
                words = words[1:]
            else:
                continue
            found[file] |= {
                names[n] for a in node.names for n in (".".join([*words, a.name]), ".".join(words)) if n in names
            }
    return found


@pytest.mark.parametrize("package", ["port", "reference", "convert", "mlx_parity", "reports"])
def test_no_two_files_import_each_other(package):
    """Nor several in a circle: removing files that import nothing, again and again, leaves none."""
    left = imports(package)
    assert any(left.values())
    while free := [file for file, needs in left.items() if not needs & left.keys()]:
        left = {file: needs for file, needs in left.items() if file not in free}
    assert not left


def test_no_print_below_the_command_line():
    for package in ("port", "reference", "convert"):
        for file, path in sources(package).items():
            tree = ast.parse(path.read_text("utf-8"))
            commands = {
                n for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) and _is_command(f) for n in ast.walk(f)
            }
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                    assert node in commands or file == "__main__.py" or file.startswith("app/"), (
                        f"{package}/{file}: print"
                    )


def _is_command(function: ast.FunctionDef) -> bool:
    return function.name == "main" or function.name.startswith("_say")


@pytest.mark.parametrize(
    "command",
    [
        "benchmarks.run",
        "convert.run",
        "mlx_parity.__main__",
        "parity_tests.audit",
        "parity_tests.faults.__main__",
        "parity_tests.trace",
        "port.app.cli",
        "reports.build",
        "reports.drift",
        "reports.findings",
    ],
)
def test_the_help_of_each_command_teaches_by_an_example(command, capsys):
    with pytest.raises(SystemExit) as end:
        importlib.import_module(command).main(["--help"])
    said = capsys.readouterr().out
    assert end.value.code == 0
    assert "example" in said
    assert said.count("python -m") + said.count("python convert/run.py") > 1  # the example, beside the usage


def test_the_port_runs_without_torch():
    """A subprocess that refuses torch, transformers and onnxruntime imports every module and computes something."""
    modules = [f"port.{f.removesuffix('.py').replace('/', '.')}" for f in sources("port") if f != "__main__.py"]
    script = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('torch', 'transformers', 'onnxruntime', 'onnx'):
            raise ImportError(name + ' is refused here')
sys.meta_path.insert(0, Refuse())
import importlib
for name in {modules!r}:
    importlib.import_module(name)
import mlx.core as mx
from port.config import VocoderConfig
from port.vocoder.generator import CausalHiFTGenerator
wav, _ = CausalHiFTGenerator(VocoderConfig(base_channels=16, f0_cond_channels=8)).inference(mx.zeros((1, 3, 80)))
assert wav.shape == (1, 1440)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
