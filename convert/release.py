"""The official release: its repository, commit, and files with sizes and digests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

LLM_FILES = {"base": "llm.pt", "rl": "llm.rl.pt"}  # the second is the first after reinforcement learning


class Known(NamedTuple):
    """A published file: its size, and its sha256 (64 digits) or, of a small file, its git blob id (40 digits)."""

    bytes: int
    digest: str


@dataclass(frozen=True)
class Release:
    """One commit of a repository, with its files."""

    repo: str
    revision: str
    files: Mapping[str, Known]


RELEASE = Release(
    "FunAudioLLM/Fun-CosyVoice3-0.5B-2512",
    "29e01c4e8d000f4bcd70751be16fa94bf3d85a18",
    {
        "cosyvoice3.yaml": Known(6_934, "2eda7e5007d99f6b17fbe7bd751cf54e3cde29ea"),
        "llm.pt": Known(2_024_669_519, "69f43bd545131c30e98947fb360ea8b4dc9916d8e83dded7757c7ea4f5a24970"),
        "llm.rl.pt": Known(2_024_682_701, "74d34b01a80c7154670ae75ac372d1b1712c78bceae9f467eb9f1f6f61ec764f"),
        "flow.pt": Known(1_329_116_148, "a6fab32a7825e5b0bc855ddd948f8db9370b0a786fbc249caa4595e95b608e4b"),
        "hift.pt": Known(83_202_622, "b279d7641eb97ae55b3b540cfba4f953c26492a2df758328a89a4d007ab87a65"),
        "campplus.onnx": Known(28_303_423, "a6ac6a63997761ae2997373e2ee1c47040854b4b759ea41ec48e4e42df0f4d73"),
        "speech_tokenizer_v3.onnx": Known(
            969_451_503, "23236a74175dbdda47afc66dbadd5bcb41303c467a57c261cb8539ad9db9208d"
        ),
        "CosyVoice-BlankEN/config.json": Known(659, "463b055262b6c66c4629a74a4b300bfe2ed31d3c"),
        "CosyVoice-BlankEN/tokenizer_config.json": Known(1_287, "ff55d7b9eb1384e5d4d7e75dc0f564c1a8833d6e"),
        "CosyVoice-BlankEN/vocab.json": Known(2_776_833, "4783fe10ac3adce15ac8f358ef5462739852c569"),
        "CosyVoice-BlankEN/merges.txt": Known(1_402_109, "90d3d82d027eadcc6a5e77c38eb82d43fc51b53b"),
    },
)
