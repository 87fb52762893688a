"""What is fuzzed: every reader of untrusted files, each with a valid file to start from."""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from zipfile import ZipFile

import mlx.core as mx
import numpy as np
import soundfile
import torch

from convert.checkpoint import read_state_dict
from convert.conversion import convert_folder
from convert.hub import Source
from convert.official import text_config
from convert.onnx_weights import read_speaker, read_speech_tokenizer
from mlx_parity.report.codec import ReportError, plain
from mlx_parity.report.model import load as load_report
from port.app.manifest import Utterance, read_manifest
from port.config import CosyVoice3Config
from port.files import community, weights
from port.files.disk import read_text
from port.files.errors import Refused
from port.files.storage import Writer, describe, read_headers
from port.files.voices import FIELDS, Voice, read_voice, write_voice
from port.frontend.audio import load_wav
from port.frontend.normalizer import load_normalizer
from port.frontend.text import text_normalize
from port.frontend.tokenizer import CosyVoice3Tokenizer
from port.model import CosyVoice3Model
from reference.export_onnx import export_speaker, export_speech_tokenizer, live_speaker, live_speech_tokenizer
from reference.synthesize import synthesize
from tests.support.onnx_support import SPEAKER, TOKENIZER

REFUSALS = (Refused, ReportError)


@dataclass(frozen=True)
class Reader:
    """One reader.

    Args:
        name: unique.
        file: the file, in the folder that `write` fills, whose bytes are changed.
        write: writes a folder that `read` accepts.
        read: reads the folder as the product does; may raise `REFUSALS` only.
    """

    name: str
    file: str
    write: Callable[[Path], object]
    read: Callable[[Path], object]


@cache
def _checkpoint() -> Path:
    """A tiny official checkpoint; the text files are copied from it."""
    folder = Path(mkdtemp(prefix="fuzz-")) / "checkpoint"
    synthesize(folder, "tiny", 0)
    return folder


def _copy(*files: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(_checkpoint() / file, folder / file)

    return write


def _write_state_dict(folder: Path) -> None:
    tensors = {"a.weight": torch.randn(3, 4), "a.bias": torch.randn(3), "b": torch.randn(2, 2, 2).half()}
    torch.save({"epoch": 3, "state_dict": tensors}, folder / "x.pt")


def _read_state_dict(folder: Path) -> None:
    for array in read_state_dict(folder / "x.pt").values():
        array.sum()


def _write_pickle(folder: Path) -> None:
    """What trainers save, unpacked into the files of the archive."""
    weights = {"a.weight": torch.randn(3, 4), "a.bias": torch.nn.Parameter(torch.randn(3)), "b": torch.ones(2).half()}
    beside = {"args": Namespace(lr=1e-4, tags={"x"}, size=1 << 70), "rng": (1, None, True, b"x"), "norm": torch.ones(1)}
    torch.save({"epoch": 3, "model": OrderedDict(weights), "steps": [1, 300, 70_000], **beside}, folder / "x.pt")
    with ZipFile(folder / "x.pt") as archive:
        archive.extractall(folder)


def _read_pickle(folder: Path) -> None:
    """Pack the files again with right checksums; damage to the archive itself would rarely get past them."""
    with ZipFile(folder / "x.pt", "w") as archive:
        for path in sorted(path for path in (folder / "x").rglob("*") if path.is_file()):
            archive.write(path, path.relative_to(folder))
    _read_state_dict(folder)


def _write_onnx(part: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        if part == "speaker":
            export_speaker(live_speaker(SPEAKER, 0), folder / "x.onnx")
        else:
            export_speech_tokenizer(live_speech_tokenizer(TOKENIZER, 0), folder / "x.onnx")

    return write


def _read_onnx(read: Callable[[Path], Mapping[str, np.ndarray]]) -> Callable[[Path], None]:
    def reader(folder: Path) -> None:
        for array in read(folder / "x.onnx").values():
            array.sum()

    return reader


def _write_weights(shard: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        types: dict[str, type] = {"a": np.float32, "b": np.float16, "c": np.uint32}
        arrays: dict[str, np.ndarray] = {name: np.ones((4, 3), dtype) for name, dtype in types.items()}
        with Writer(folder, {name: describe(name, array) for name, array in arrays.items()}, shard) as writer:
            for name, array in arrays.items():
                writer.write(name, array)

    return write


def _read_weights(folder: Path) -> None:
    for path in sorted({path for path, _ in read_headers(folder).values()}):
        mx.eval(mx.load(str(path)))


@cache
def _converted() -> Path:
    """The checkpoint, converted without the comparison."""
    folder = Path(mkdtemp(prefix="fuzz-")) / "converted"
    convert_folder(Source(_checkpoint(), "tiny"), folder)
    return folder


def _write_community(folder: Path) -> None:
    from tests.support.community_support import write

    made = folder / "made"
    write(made, weights.load(_converted()), _converted(), mx.float16, bits=8, tokenizer=False)
    for path in made.iterdir():
        path.rename(folder / path.name)
    made.rmdir()


def _write_quantized(folder: Path) -> None:
    """A model with quantized layers, one of them with its own settings."""
    model = weights.load(_converted())
    own = "llm.qwen2.layers.1.mlp.gate_proj"
    settings = {"group_size": 32, "bits": 4, "mode": "affine", own: {"group_size": 64, "bits": 8}}
    named = {f"llm.qwen2.layers.{i}.mlp.{kind}.scales": None for i in range(2) for kind in ("gate_proj", "up_proj")}
    weights.quantize(model, settings, named)
    weights.save(folder, model, model.config, quantization=settings)


def _write_config(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(CosyVoice3Config().to_dict()), encoding="utf-8")


def _read_config(folder: Path) -> None:
    CosyVoice3Model(CosyVoice3Config.load(folder))  # parameters are lazy: the sizes alone must not cost anything


def _write_voice(folder: Path) -> None:
    shapes = {"prompt_speech_feat": (1, 8, 80), "flow_embedding": (1, 192)}
    arrays = {name: np.ones(shapes.get(name, (1, 4)), dtype) for name, dtype in FIELDS.items()}
    write_voice(folder / "x", Voice(**arrays, text="Good morning.", licence="CC0"), CosyVoice3Config())


def _write_sound(kind: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        wave = np.sin(np.arange(4000) / 9).astype(np.float32) * 0.5
        soundfile.write(folder / f"x.{kind}", np.stack((wave, wave), axis=1), 22050, format=kind.upper())

    return write


def _read_sound(kind: str) -> Callable[[Path], object]:
    return lambda folder: load_wav(folder / f"x.{kind}", 16000)


def _write_manifest(folder: Path) -> None:
    lines = [
        dict(id="a", text="x", spk="me", seed=None),
        dict(id="b.2", source_wav="s.wav", prompt_wav="p.wav", speed=1.5),
        dict(id=3, mode="zero-shot", text="日\u2028本", prompt_wav="p.wav", prompt_text="y", seed=7),
    ]
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (folder / "x.jsonl").write_text(text, encoding="utf-8-sig")


def _read_manifest(folder: Path) -> None:
    for line in read_manifest(folder / "x.jsonl"):
        Utterance.from_line(line, folder)


TEXT = 'On 2024-01-15 [AH0] it cost $3.50 [12], 5€; "π" <strong>x²</strong> [Laughter] + 49 30 ①\n'


def _write_text(folder: Path) -> None:
    (folder / "x.txt").write_text(TEXT + "他有3.5只[breath]猫（２０２４年）。" * 3, encoding="utf-8")


def _read_text(folder: Path) -> None:
    text = read_text(folder / "x.txt")
    for part, split_long in ((text, False), (text.partition("他")[0], True)):  # Chinese, and English alone
        text_normalize(part, lambda words: [*map(len, words.split())], True, True, load_normalizer(), split_long)


def _write_report(folder: Path) -> None:
    from tests.support.synthetic_report import make

    (folder / "x.json").write_text(json.dumps(plain(make(broken=True))), encoding="utf-8")


TOKENIZER_FILES = tuple(f"CosyVoice-BlankEN/{name}" for name in ("vocab.json", "merges.txt", "tokenizer_config.json"))
SIZES = ("cosyvoice3.yaml", "CosyVoice-BlankEN/config.json", "CosyVoice-BlankEN/tokenizer_config.json")


def _read_tokenizer(folder: Path) -> None:
    CosyVoice3Tokenizer.from_folder(folder / "CosyVoice-BlankEN", on_mismatch="warn").encode("a b.c 1")


READERS = (
    Reader("state_dict", "x.pt", _write_state_dict, _read_state_dict),
    Reader("pickle", "x/data.pkl", _write_pickle, _read_pickle),
    Reader("yaml", SIZES[0], _copy(*SIZES), text_config),
    Reader("qwen2_config", SIZES[1], _copy(*SIZES), text_config),
    Reader("onnx_speaker", "x.onnx", _write_onnx("speaker"), _read_onnx(read_speaker)),
    Reader("onnx_speech_tokenizer", "x.onnx", _write_onnx("speech_tokenizer"), _read_onnx(read_speech_tokenizer)),
    *(Reader(f"tokenizer.{Path(f).stem}", f, _copy(*TOKENIZER_FILES), _read_tokenizer) for f in TOKENIZER_FILES),
    Reader("safetensors", "model.safetensors", _write_weights(1 << 20), _read_weights),
    Reader("safetensors_index", "model.safetensors.index.json", _write_weights(1), _read_weights),
    Reader("config_quantized", "config.json", _write_quantized, weights.load),
    Reader("community_config", "config.json", _write_community, community.load),
    Reader("community_weights", "model.safetensors", _write_community, community.load),
    Reader("config", "config.json", _write_config, _read_config),
    Reader("voice", "x", _write_voice, lambda folder: read_voice(folder / "x", CosyVoice3Config())),
    *(Reader(kind, f"x.{kind}", _write_sound(kind), _read_sound(kind)) for kind in ("wav", "flac", "ogg", "aiff")),
    Reader("text", "x.txt", _write_text, _read_text),
    Reader("manifest", "x.jsonl", _write_manifest, _read_manifest),
    Reader("report", "x.json", _write_report, lambda folder: load_report(folder / "x.json")),
)
