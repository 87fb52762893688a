"""The programs in `examples/`: each runs as it stands, with the tests' model and stand-ins for what else it needs."""

import re
import secrets
import shlex
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mlx_parity.compare import BUDGET
from parity_tests.speech_support import PROMPT_WORDS, WORDS
from port.cosyvoice3 import CosyVoice3
from tests.support.cli_support import heard

pytestmark = pytest.mark.part("app")
ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SPOKEN = "Good morning, it is late."


@pytest.fixture
def example(monkeypatch, model, wavs, tmp_path):
    """Run a program with the arguments that its docstring shows, but with files of the tests."""
    monkeypatch.setattr("port.cosyvoice3.load_normalizer", lambda: None)
    for name in [name for name in sys.modules if name.partition(".")[0] == "port"]:
        monkeypatch.setitem(sys.modules, name.replace("port", "cosyvoice3_mlx", 1), sys.modules[name])
    here = {"mlx-model": model, "me.wav": wavs["prompt"], "you.wav": wavs["source"], "out.wav": tmp_path / "out.wav"}
    here |= {"What I say in the recording.": PROMPT_WORDS, "Good morning.": WORDS}

    def run(name):
        path = next(path for path in EXAMPLES if path.stem == name)
        spec = spec_from_file_location(name, path)
        program = module_from_spec(spec)
        spec.loader.exec_module(program)
        shown = shlex.split(re.search(rf"^python examples/{name}\.py (.*)$", program.__doc__, re.M)[1])
        program.main(*(str(here.get(word, word)) for word in shown))
        return tmp_path / "out.wav"

    return run


def test_say(example, model, wavs):
    voice = CosyVoice3.from_pretrained(model)
    (made,) = voice.inference_zero_shot(WORDS, PROMPT_WORDS, wavs["prompt"], seed=0)
    # A file has 16 bits: half a step of rounding, and one of the scale.
    assert np.allclose(heard(example("say")), np.array(made["tts_speech"])[0], atol=2**-14)


def test_voice_conversion(example):
    assert len(heard(example("voice_conversion"))) == 65 * 960  # 2.6 s, in whole tokens


def test_stream_to_speaker(example, monkeypatch):
    """All chunks are played, in order, on a speaker that is opened once and closed."""
    played: list[np.ndarray] = []
    opened: list[object] = []

    class OutputStream:
        def __init__(self, rate, channels, dtype):
            opened.append((rate, channels, dtype))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            opened.append("closed")

        def write(self, samples):
            played.append(samples)

    monkeypatch.setitem(sys.modules, "sounddevice", SimpleNamespace(OutputStream=OutputStream))
    monkeypatch.setattr(secrets, "randbits", lambda bits: 3)  # with some seeds a small model ends at once
    example("stream_to_speaker")
    assert opened == [(24000, 1, "float32"), "closed"]
    assert all(samples.dtype == np.float32 and samples.shape[1] == 1 for samples in played)
    assert np.abs(np.concatenate(played)).max() > 0


def test_llm_to_speech(example, voices, monkeypatch):
    """What the language model writes is what is spoken, part by part."""
    asked, tokenizer = [], SimpleNamespace(apply_chat_template=lambda messages, add_generation_prompt: messages)

    def stream_generate(llm, given, prompt, max_tokens):
        asked.append((llm, given, prompt[0]["content"]))
        return (SimpleNamespace(text=part) for part in re.findall(r"\W*\w+|\W+$", SPOKEN))

    fake = SimpleNamespace(load=lambda name: (name, tokenizer), stream_generate=stream_generate)
    monkeypatch.setitem(sys.modules, "mlx_lm", fake)
    # With random weights, text that arrives may end at any time or never.
    end, last = voices.port.model.config.llm.eos, voices.port.model.config.llm.speech_token_size

    def sample(scores, decoded, draws, config):
        return end if len(decoded) >= 150 else int(scores[:last].argmax())

    monkeypatch.setattr("port.model.ras_sampling", sample)
    said = []
    monkeypatch.setattr("port.frontend.written.arriving", lambda parts: (said.append(part) or part for part in parts))
    assert len(heard(example("llm_to_speech"))) > 960
    assert len(said) > 4 and "".join(said) == SPOKEN
    assert asked == [("mlx-community/Qwen2.5-0.5B-Instruct-4bit", tokenizer, "Why is the sky blue?")]


def test_equal():
    """As the README says it: without torch, and within the budget of the suite."""
    shown = re.search(r"^python (examples/equal\.py) (.*)$", (ROOT / "examples/equal.py").read_text("utf-8"), re.M)
    program = f"import runpy, sys; sys.argv = {list(shown.groups())}; runpy.run_path(sys.argv[0], run_name='__main__')"
    program += "; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    port, own = (float(line.split()[-2]) for line in done.stdout.splitlines())
    assert port > own - 20 * np.log10(BUDGET) > 60
    said = re.findall(r"(\d+\.\d) dB down", (ROOT / "README.md").read_text("utf-8"))
    assert np.allclose([port, own], [float(number) for number in said], atol=3)  # another machine rounds otherwise


def test_every_example_is_run():
    tests = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in EXAMPLES} - {"openai_client"} <= tests  # which the server's tests run
    assert all(len(path.read_text("utf-8").splitlines()) <= 45 for path in EXAMPLES)
