"""The house itself: the packages are twins, imports run one way, and the port stands without torch."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.meta
ROOT = Path(__file__).parents[1]

# Folders of the port whose files have no twin, with what they hold.
WITHOUT_TWINS = {
    "stream": "what a stream keeps between chunks, and where it is kept",
    "fast": "fast forms of plain layers",
    "files": "all that reads or writes a disk",
    "app": "all that talks to a person or a client",
}
# Files that only one side has, with the reason.
ONE_SIDED = {
    "port": {
        "config.py": "both sides use it",
        "noise.py": "the original's noise without torch; the reference draws from torch",
        "__main__.py": "the command line",
        "frontend/normalizer.py": "framework-free, both sides use it",
        "frontend/recording.py": "framework-free, both sides use it",
        "frontend/text.py": "framework-free, both sides use it",
        "frontend/tokenizer.py": "framework-free, both sides use it",
        "frontend/special_tokens.py": "framework-free, both sides use it",
    },
    "reference": {
        "synthesize.py": "writes a checkpoint for tests",
        "export_onnx.py": "writes the two ONNX files for tests",
        "tiny_tokenizer.py": "writes a tokenizer for tests",
        "official_layout.py": "writes a checkpoint for tests",
    },
}
# Functions and methods that differ between twin files, each with the reason.
METHOD_DIFFERENCES = {
    ("flow/dit.py", "DiT", "bake"): "a fast path of the port",
    ("flow/matching.py", "CausalConditionalCFM", "bake"): "a fast path of the port",
    ("llm/speech_lm.py", "CosyVoice3LM", "qwen2"): "the reference keeps llm.pt's deeper nesting and needs a short cut",
    ("flow/dit.py", "DiT", "modulation"): "a fast path makes what a time steers once, for all norms",
    ("model.py", "CosyVoice3Model", "tts"): "options of incremental streams",
    ("cosyvoice3.py", "CosyVoice3", "from_pretrained"): "a converted folder or hub id against the official files",
    ("vocoder/convolution.py", "", "causal_conv"): "the pitch predictor of the port calls it with float64 weights",
    ("vocoder/stft.py", "", "analyse"): "a stream transforms what it holds, without the edges",
    ("vocoder/stft.py", "", "overlap_add"): "a stream carries the overlap on",
    ("vocoder/stft.py", "", "envelope"): "torch.istft has its own",
}
# Arguments whose meaning is the framework's, and what the port's streams carry from chunk to chunk.
FRAMEWORK_ARGUMENTS = {"self", "device", "dtype", "rand_ini", "state", "kept", "tail", "start"}
FORBIDDEN = {
    "port": ("torch", "transformers", "onnx", "onnxruntime", "reference", "convert", "parity_tests", "reports"),
    "reference": ("mlx", "transformers", "convert", "parity_tests", "reports"),
    "convert": ("parity_tests", "reports", "benchmarks"),
    "reports": ("mlx", "torch", "port", "reference", "convert", "parity_tests"),
}
# Commands stand on the top floor and may reach the harness.
TOP_FLOOR = {"convert/verify.py", "convert/publish.py", "reference/export_onnx.py", "reports/card.py"}


def sources(package: str) -> dict[str, Path]:
    folder = ROOT / package
    return {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*.py")) if p.name != "__init__.py"}


def shared_files() -> list[str]:
    return sorted(sources("port").keys() & sources("reference").keys())


def public(body: list[ast.stmt], kind: type | tuple[type, ...]) -> list:
    return [node for node in body if isinstance(node, kind) and not node.name.startswith("_")]


def arguments(function: ast.FunctionDef) -> list[str]:
    every = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return [a.arg for a in every if a.arg not in FRAMEWORK_ARGUMENTS]


def test_every_file_has_its_twin():
    port, reference = set(sources("port")), set(sources("reference"))
    port = {file for file in port if file.split("/")[0] not in WITHOUT_TWINS}
    assert port - reference <= set(ONE_SIDED["port"]), "port files without a twin or a reason"
    assert reference - port <= set(ONE_SIDED["reference"]), "reference files without a twin or a reason"


@pytest.mark.parametrize("file", shared_files())
def test_twins_have_the_same_classes_in_the_same_order(file):
    trees = [ast.parse(sources(package)[file].read_text("utf-8")).body for package in ("port", "reference")]
    classes = [[node.name for node in public(tree, ast.ClassDef)] for tree in trees]
    assert classes[0] == classes[1]


@pytest.mark.parametrize("file", shared_files())
def test_twins_have_the_same_methods_and_arguments(file):
    trees = [ast.parse(sources(package)[file].read_text("utf-8")).body for package in ("port", "reference")]
    sides = []
    for tree in trees:
        found = {}
        for owner in public(tree, ast.ClassDef):
            for method in owner.body:
                if isinstance(method, ast.FunctionDef):
                    name = "__call__" if method.name == "forward" else method.name
                    if name in ("__init__", "__call__") or not name.startswith("_"):
                        found[owner.name, name] = arguments(method)
        for function in public(tree, ast.FunctionDef):
            found["", function.name] = arguments(function)
        sides.append(found)
    allowed = {(owner, name) for (f, owner, name) in METHOD_DIFFERENCES if f == file}
    different = {k for k in sides[0].keys() | sides[1].keys() if sides[0].get(k) != sides[1].get(k)}
    assert different <= allowed, {k: (sides[0].get(k), sides[1].get(k)) for k in different - allowed}
    assert allowed <= different, f"no longer different: {allowed - different}"


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_imports_run_one_way(package):
    for file, path in sources(package).items():
        if f"{package}/{file}" in TOP_FLOOR:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] not in FORBIDDEN[package], f"{package}/{file} imports {name}"


def test_no_print_below_the_command_line():
    for package in ("port", "reference", "convert"):
        for file, path in sources(package).items():
            tree = ast.parse(path.read_text("utf-8"))
            commands = {
                n for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) and _is_command(f) for n in ast.walk(f)
            }
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                    assert node in commands or file in ("__main__.py", "app/cli.py"), f"{package}/{file}: print"


def _is_command(function: ast.FunctionDef) -> bool:
    return function.name == "main" or function.name.startswith("_say")


@pytest.mark.parametrize(
    "command",
    [
        "benchmarks.run",
        "convert.run",
        "parity_tests.adapters.audit",
        "parity_tests.harness.trace",
        "port.app.cli",
        "reports.build",
        "reports.drift",
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
