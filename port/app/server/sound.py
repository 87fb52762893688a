"""Speech as bytes that a client can decode: a whole file, or a stream of unknown length.

s samples
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import soundfile

from ...files.errors import Refused
from ..output import wav_header

# By `response_format`: libsndfile's format and subtype, and the media type. Raw samples are 16-bit little-endian mono.
FORMATS = {
    "wav": ("WAV", "PCM_16", "audio/wav"),
    "pcm": ("RAW", "PCM_16", "audio/pcm"),
    "mp3": ("MP3", "MPEG_LAYER_III", "audio/mpeg"),
    "flac": ("FLAC", "PCM_16", "audio/flac"),
    "opus": ("OGG", "OPUS", "audio/ogg"),
}


def formats() -> list[str]:
    """The formats that this libsndfile can write."""
    return [name for name, (kind, subtype, _) in FORMATS.items() if soundfile.check_format(kind, subtype)]


def media_type(name: str) -> str:
    """Media type of a format, for the header Content-Type."""
    return FORMATS[name][2]


class Encoder:
    """Speech in, bytes of a file out.

    Args:
        name: of a format, one of `formats()`.
        sample_rate: Hz.
        stream: return bytes as soon as possible; otherwise all at the end, with the length in their header.
    """

    def __init__(self, name: str, sample_rate: int, stream: bool) -> None:
        kind, subtype, _ = FORMATS[name]
        self._file: _Forward | io.BytesIO = _Forward() if stream else io.BytesIO()
        if stream and name == "wav":
            self._file.write(wav_header(sample_rate))
            kind = "RAW"
        # At a constant bit rate a player computes the length of an mp3 from its size.
        how = {"bitrate_mode": "CONSTANT", "compression_level": 0.5} if name == "mp3" else {}
        endian = "LITTLE" if kind == "RAW" else "FILE"
        self._sound = soundfile.SoundFile(
            self._file, "w", sample_rate, channels=1, subtype=subtype, format=kind, endian=endian, **how
        )

    def __enter__(self) -> Encoder:
        return self

    def __exit__(self, *_: object) -> None:
        self._sound.close()  # before the file in memory, because libsndfile writes the end there

    def write(self, wave: np.ndarray) -> bytes:
        """Encode (s,) float32 within +-1; returns the bytes to send, possibly none yet."""
        self._sound.write(wave)
        return self._file.take() if isinstance(self._file, _Forward) else b""

    def end(self) -> bytes:
        """The rest."""
        self._sound.close()
        return self._file.take() if isinstance(self._file, _Forward) else self._file.getvalue()


class _Forward(io.RawIOBase):
    """A file whose bytes are sent as they are written. Later changes to bytes already sent are dropped, such as lengths
    in a header."""

    def __init__(self) -> None:
        self._position = self._end = 0
        self._written = bytearray()

    def write(self, data: Any) -> int:
        start = max(self._end - self._position, 0)
        self._written += bytes(data)[start:]
        self._position += len(data)
        self._end = max(self._end, self._position)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + (0, self._position, self._end)[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def take(self) -> bytes:
        """The bytes written since the last call."""
        written, self._written = bytes(self._written), bytearray()
        return written


def check_format(name: str) -> str:
    """The format, if it can be written here.

    Raises:
        Refused: it cannot be written.
    """
    if name not in (known := formats()):
        raise Refused(f"response_format {name!r:.40} cannot be written here; choose {', '.join(known)}")
    return name
