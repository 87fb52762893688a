"""`python -m port`: every mode writes a sound file, and whatever cannot be used ends in one line."""

import json
import re
import secrets
import shlex
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from parity_tests.speech_support import LONGER, PROMPT_WORDS, SYSTEM, WORDS
from port.app.arguments import EXAMPLES, PROGRAM
from port.config import CosyVoice3Config
from port.cosyvoice3 import CosyVoice3
from port.files.voices import Voice, load_voices, save_voice
from tests.support.cli_support import MODES, assert_one_line, heard, say
from tests.support.null_device import NullDevice

pytestmark = pytest.mark.part("app")

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("mode", MODES)
def test_say(run, model, wavs, tmp_path, mode):
    waves = []
    for name in ("a.wav", "b.wav"):
        code, out, err = run(*say(model, wavs, *MODES[mode], "--seed", 3, "-o", tmp_path / name))
        assert (code, err) == (0, "")
        figures = r"s of audio, real-time factor \d+\.\d\d, first audio after \d+\.\d\d s, peak memory \d+\.\d\d GB"
        assert re.fullmatch(rf"\S+{name}: \d+\.\d\d {figures}, seed 3\n", out)
        waves.append(heard(tmp_path / name))
    assert np.array_equal(waves[0], waves[1])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.wav", "b.wav"]


def test_modes_differ(run, model, wavs, tmp_path):
    for i, arguments in enumerate(MODES.values()):
        assert run(*say(model, wavs, *arguments, "--seed", 1, "-o", tmp_path / f"{i}.wav"))[0] == 0
    assert len({heard(tmp_path / f"{i}.wav").tobytes() for i in range(len(MODES))}) == len(MODES)


def test_stream_reports_when_the_first_audio_came(run, model, wavs, tmp_path):
    arguments = say(model, wavs, *MODES["cross-lingual"], "--seed", 1, "--strict-min-length", "-o", tmp_path / "o.wav")
    for more in (["--stream"], ["--stream", "--reset-hop", "--causal-final"]):
        code, out, _ = run(*arguments, *more, "--json")
        found = json.loads(out)
        assert code == 0
        assert 0 < found["first_audio_s"] < found["time_s"]
        heard(tmp_path / "o.wav")


def test_a_stream_is_written_as_it_goes(run, model, wavs, tmp_path, monkeypatch):
    """The temporary file holds the first chunk before the last is made."""
    sizes, original = [], CosyVoice3.inference_cross_lingual

    def watched(self, *arguments, **options):
        for result in original(self, *arguments, **options):
            yield result
            sizes.append([p.stat().st_size for p in tmp_path.glob(".*.wav")])

    monkeypatch.setattr(CosyVoice3, "inference_cross_lingual", watched)
    arguments = say(
        model, wavs, "--text", SYSTEM + LONGER, "--strict-min-length", "--seed", 1, "-o", tmp_path / "o.wav"
    )
    assert run(*arguments, "--stream")[0] == 0
    assert len(sizes) > 1
    assert all(len(found) == 1 for found in sizes)
    assert 44 < sizes[0][0] < sizes[-1][0]
    assert [p.name for p in tmp_path.iterdir()] == ["o.wav"]


def test_text_from_standard_input_and_from_a_file(run, model, wavs, tmp_path):
    (tmp_path / "text.txt").write_text(f"{SYSTEM}{WORDS}\n", encoding="utf-8")
    common = say(model, wavs, "--seed", 2, "-o")
    assert run(*common, tmp_path / "a.wav", "--text-file", tmp_path / "text.txt")[0] == 0
    assert run(*common, tmp_path / "b.wav", stdin=f"{SYSTEM}{WORDS}\n")[0] == 0
    assert run(*common, tmp_path / "c.wav", "--text", SYSTEM + WORDS)[0] == 0
    assert len({heard(tmp_path / f"{name}.wav").tobytes() for name in "abc"}) == 1


def test_text_without_a_flag(run, model, wavs, tmp_path):
    """`say TEXT`, and `clone TEXT`, which is the same."""
    here = ("--model", model, "--prompt-wav", wavs["prompt"], "--seed", 2)
    assert run("say", *here, "--text", SYSTEM + WORDS, "-o", tmp_path / "a.wav")[0] == 0
    assert run("say", SYSTEM + WORDS, *here, "-o", tmp_path / "b.wav")[0] == 0
    assert run("clone", *here, "-o", tmp_path / "c.wav", SYSTEM + WORDS)[0] == 0
    assert len({heard(tmp_path / f"{name}.wav").tobytes() for name in "abc"}) == 1
    twice = run("say", WORDS, *here, "--text", WORDS, "-o", tmp_path / "d.wav")
    assert_one_line(twice, 2, "not allowed with")


def test_a_byte_order_mark_is_not_spoken(run, model, wavs, tmp_path):
    """Windows puts one in front of UTF-8."""
    common = say(model, wavs, "--seed", 2, "-o")
    (tmp_path / "text.txt").write_text(f"{SYSTEM}{WORDS}\r\n", encoding="utf-8-sig")
    assert run(*common, tmp_path / "a.wav", "--text", SYSTEM + WORDS)[0] == 0
    assert run(*common, tmp_path / "b.wav", "--text-file", tmp_path / "text.txt")[0] == 0
    assert run(*common, tmp_path / "c.wav", stdin=f"\ufeff{SYSTEM}{WORDS}\n")[0] == 0
    assert run(*common, tmp_path / "d.wav", "--text", f"\ufeff{SYSTEM}{WORDS}")[0] == 0
    assert len({heard(tmp_path / f"{name}.wav").tobytes() for name in "abcd"}) == 1


def test_every_text_is_cut_unless_the_original_is_asked_for(run, model, wavs, tmp_path):
    common = say(model, wavs, "--text", SYSTEM + "It is late. " * 40, "--seed", 2, "-o")
    assert run(*common, tmp_path / "a.wav")[0] == 0
    assert run(*common, tmp_path / "b.wav", "--raw-prompt")[0] == 0
    assert not np.array_equal(heard(tmp_path / "a.wav"), heard(tmp_path / "b.wav"))
    assert "piece however long" in " ".join(run("say", "--help")[1].split())


def test_speed(run, model, wavs, tmp_path):
    for name, speed in (("a.wav", 1.0), ("b.wav", 2.0)):
        arguments = say(model, wavs, *MODES["cross-lingual"], "--seed", 2, "--speed", speed, "-o", tmp_path / name)
        assert run(*arguments)[0] == 0
    assert len(heard(tmp_path / "a.wav")) == 2 * len(heard(tmp_path / "b.wav"))


def test_flac_and_replacing_a_file(run, model, wavs, tmp_path):
    out = tmp_path / "o.flac"
    out.write_text("old")
    assert run(*say(model, wavs, *MODES["cross-lingual"], "--no-text-frontend", "-o", out))[0] == 0
    heard(out)


def test_vc(run, model, wavs, tmp_path):
    common = ("vc", "--model", model, "--source-wav", wavs["source"], "--prompt-wav", wavs["prompt"])
    lengths = []
    for name, more in (("a.wav", []), ("b.wav", ["--align-prompt"]), ("c.wav", ["--stream", "--align-prompt"])):
        code, _, err = run(*common, *more, "-o", tmp_path / name)
        assert (code, err) == (0, "")
        lengths.append(len(heard(tmp_path / name)))
    assert lengths == [65 * 960 + 480, 65 * 960, 65 * 960]


@pytest.mark.float32
def test_saved_voices(run, model, wavs, tmp_path, no_voices_left):
    here = ("--model", model)
    prompt = ("--ref-audio", wavs["prompt"], "--ref-text", SYSTEM + PROMPT_WORDS)
    assert run("voice", "list", *here) == (0, "", "")
    for name in ("bob", "anna"):
        code, out, err = run("voice", "add", name, *here, *prompt, "--licence", "mine alone")
        assert (code, err) == (0, "")
        assert out == f"{name}: saved in {model / 'voices' / name}.safetensors\n"
    assert run("voice", "list", *here) == (0, "anna\nbob\n", "")
    shown = run("voice", "show", "anna", *here)[1]
    assert shown.startswith(f"name: anna\nprompt: 1.08 s\ntext: {SYSTEM}{PROMPT_WORDS}\nlicence: mine alone\nfile: ")
    seeded = ("--seed", 4, "-o")
    prompt = ("--prompt-wav", wavs["prompt"], "--prompt-text", SYSTEM + PROMPT_WORDS)
    assert run("say", *here, "--spk", "anna", "--text", WORDS, *seeded, tmp_path / "a.wav")[0] == 0
    assert run("say", *here, *prompt, "--text", WORDS, *seeded, tmp_path / "b.wav")[0] == 0
    assert run("say", *here, "--spk", "bob", "--text", SYSTEM + WORDS, *seeded, tmp_path / "c.wav")[0] == 0
    assert run(*say(model, wavs, "--text", SYSTEM + WORDS, *seeded, tmp_path / "d.wav"))[0] == 0
    assert np.array_equal(heard(tmp_path / "a.wav"), heard(tmp_path / "b.wav"))
    assert np.array_equal(heard(tmp_path / "c.wav"), heard(tmp_path / "d.wav"))
    slowly = ("--instruct", "Slowly.", "--text", WORDS, *seeded)
    assert run("say", *here, "--voice", "anna", *slowly, tmp_path / "e.wav")[0] == 0
    assert run("say", *here, "--ref-audio", wavs["prompt"], *slowly, tmp_path / "f.wav")[0] == 0
    assert np.array_equal(heard(tmp_path / "e.wav"), heard(tmp_path / "f.wav"))
    assert run("voice", "remove", "anna", *here)[0] == 0
    assert run("voice", "list", *here) == (0, "bob\n", "")
    assert_one_line(run("voice", "remove", "anna", *here), 1, "'anna' is not known; known voices: bob")
    assert_one_line(run("say", *here, "--spk", "anna", "--text", WORDS, "-o", tmp_path / "x.wav"), 1, "is not known")


def test_voices_travel_as_files(run, parity, model, tmp_path, no_voices_left):
    """Exported from one folder and imported into another; an imported file never replaces a voice."""
    here, config, file = ("--model", model), parity.models.config, tmp_path / "alt.safetensors"
    made = Voice(np.ones((1, config.flow.spk_embed_dim), np.float32), text="Hello.", licence="CC0")
    save_voice(model, "me", made, config)
    assert run("voice", "export", "me", *here, "-o", file) == (0, f"me: written to {file}\n", "")
    for name, more in (("alt", ()), ("安娜", ("--name", "安娜"))):
        code, out, _ = run("voice", "import", file, *here, *more)
        assert (code, out) == (0, f"{name}: saved in {model / 'voices' / name}.safetensors; licence: CC0\n")
        assert load_voices(model, config)[name].text == "Hello."
    assert_one_line(run("voice", "import", file, *here, "--name", "me"), 1, "'me' is there already; give --name")
    assert_one_line(run("voice", "import", file, *here, "--name", "../me"), 1, "voice name '../me'")
    assert_one_line(run("voice", "import", file, *here, "--name", "ME"), 1, "many file systems treat it as 'me'")
    assert_one_line(run("voice", "export", "me", *here, "-o", tmp_path / "no" / "x"), 1, "cannot be written")
    assert run("voice", "list", *here)[1] == "alt\nme\n安娜\n"


def test_a_voice_of_an_embedding_alone(run, parity, model, tmp_path, no_voices_left):
    config = parity.models.config
    save_voice(model, "bare", Voice(np.ones((1, config.flow.spk_embed_dim), np.float32)), config)
    arguments = ("say", "--model", model, "--spk", "bare", "-o", tmp_path / "o.wav", "--text")
    assert run(*arguments, SYSTEM + WORDS)[0] == 0
    heard(tmp_path / "o.wav")
    assert_one_line(run(*arguments, WORDS, "--raw-prompt"), 1, "no <|endofprompt|>")


@pytest.mark.parametrize(("how", "unread"), [("say", ("speech_tokenizer", "speaker")), ("vc", ("llm",))])
def test_what_a_request_does_not_use_stays_on_disk(
    run, model, wavs, tmp_path, monkeypatch, how, unread, no_voices_left
):
    """A voice that is only an embedding needs no prompt encoder; a conversion needs no language model and no text."""
    load, loaded = vars(CosyVoice3)["from_pretrained"].__func__, []

    def kept(*given, **named):
        loaded.append(load(*given, **named))
        return loaded[0]

    monkeypatch.setattr(CosyVoice3, "from_pretrained", classmethod(kept))
    recordings = ("--source-wav", wavs["source"], "--ref-audio", wavs["prompt"])
    words = (*recordings, "--stream") if how == "vc" else ("--voice", "bare", "--text", SYSTEM + WORDS)
    config = CosyVoice3Config.load(model)
    save_voice(model, "bare", Voice(np.ones((1, config.flow.spk_embed_dim), np.float32)), config)
    assert run(how, "--model", model, *words, "-o", tmp_path / "o.wav")[0] == 0
    (voice,) = loaded
    assert ("_made" in vars(voice.frontend.tokenizer)) is (how == "say")
    before = mx.get_active_memory()
    parameters = [array for part in unread for array in dict(tree_flatten(voice.model[part].parameters())).values()]
    mx.eval(parameters)
    assert mx.get_active_memory() - before >= sum(array.nbytes for array in parameters)


def test_help_shows_an_example_of_each_mode(run):
    for arguments in (["--help"], ["say", "--help"], ["vc", "--help"], ["voice", "--help"]):
        code, out, _ = run(*arguments)
        assert code == 0
        for words in ("zero-shot", "cross-lingual", "instruct", "saved voice", "voice conversion", "voice add"):
            assert words in out


def test_the_examples_of_the_help_are_commands(run, model, wavs, tmp_path, monkeypatch, no_voices_left):
    """Each runs as it stands, with the files that it names."""
    for name, wav in (("me.wav", "prompt"), ("you.wav", "source")):
        (tmp_path / name).write_bytes(wavs[wav].read_bytes())
    (tmp_path / "story.txt").write_text("One.\n\nTwo.")
    (tmp_path / "manifest.jsonl").write_text('{"id": "a", "source_wav": "you.wav", "prompt_wav": "me.wav"}')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "sounddevice", NullDevice())
    monkeypatch.setattr(secrets, "randbits", lambda bits: 2)  # with some seeds a small model ends at once
    text = EXAMPLES.replace("\\\n", " ").replace("MLX", str(model))
    lines = [line.strip() for line in text.splitlines() if PROGRAM in line]
    assert len(lines) == EXAMPLES.count(PROGRAM)
    lines.remove(f"{PROGRAM} serve --model {model}")  # runs until a signal: test_server_command.py
    for line in sorted(lines, key=lambda line: "voice add" not in line):  # a voice must be there before it speaks
        before, _, command = line.partition(PROGRAM)
        code, _, err = run(*shlex.split(command), stdin=before.removeprefix("echo").strip(" |'"))
        assert code == 0, f"{line}: {err}"


def without(modules, arguments):
    """Run a command that cannot import these modules."""
    script = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {modules}:
            raise ModuleNotFoundError(name + ' is refused here')
sys.meta_path.insert(0, Refuse())
from port.app.cli import main
sys.exit(main(sys.argv[1:]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done


def test_a_machine_without_torch_and_onnxruntime(model, wavs, tmp_path):
    arguments = say(model, wavs, *MODES["zero-shot"], "--stream", "--seed", "0", "-o", tmp_path / "o.wav")
    without(("torch", "transformers", "onnxruntime", "onnx"), arguments)
    heard(tmp_path / "o.wav")


def test_a_machine_without_wetext_says_so_first(model, wavs, tmp_path):
    done = without(("wetext",), say(model, wavs, *MODES["zero-shot"], "--seed", "0", "-o", tmp_path / "o.wav"))
    assert done.stderr.startswith("wetext is not installed, so plain rules read numbers and symbols; pip install")
    heard(tmp_path / "o.wav")


def test_the_module_runs(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "port", "voice", "list", "--model", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
