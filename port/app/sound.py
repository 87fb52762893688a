"""Speech as sound: the formats, files that appear complete or not at all, and streams of unknown length.

s samples
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from ..files.disk import beside
from ..files.errors import Refused

# libsndfile's format and subtype, and the media type. Raw samples are 16-bit little-endian mono.
FORMATS = {
    "wav": ("WAV", "PCM_16", "audio/wav"),
    "flac": ("FLAC", "PCM_16", "audio/flac"),
    "mp3": ("MP3", "MPEG_LAYER_III", "audio/mpeg"),
    "ogg": ("OGG", "VORBIS", "audio/ogg"),
    "opus": ("OGG", "OPUS", "audio/ogg"),
    "pcm": ("RAW", "PCM_16", "audio/pcm"),
}
KEPT_SECONDS = 1  # interrupted runs keep audio from this length on
UNKNOWN_LENGTH = 0xFFFFFFFF  # in the header of an unfinished wav; players read to the end


def formats() -> list[str]:
    """The formats that this libsndfile can write."""
    return [name for name in FORMATS if sound_format(name)]


def sound_format(name: str) -> dict[str, Any] | None:
    """Arguments of SoundFile for one of `FORMATS`, or for another ending that libsndfile knows.

    None if it cannot write that.
    """
    kind, subtype, _ = FORMATS.get(name, (name.upper(), None, ""))
    if not kind or not soundfile.check_format(kind, subtype):
        return None
    # At a constant bit rate a player computes the length of an mp3 from its size.
    how = {"bitrate_mode": "CONSTANT", "compression_level": 0.5} if name == "mp3" else {}
    return {"format": kind, "subtype": subtype, "endian": "LITTLE" if kind == "RAW" else "FILE", **how}


def ending(path: Path) -> str:
    """Format that the name of a file asks for."""
    return path.suffix[1:].lower()


@contextmanager
def sound_file(path: Path, sample_rate: int, keep_unfinished: bool = False) -> Iterator[soundfile.SoundFile]:
    """A mono file of the format that its name ends in, 16-bit where possible; renamed to `path` at the end.

    On an error it is removed. With `keep_unfinished` it is kept as NAME.partial.wav if it has at least a second of
    audio, and a note on the error says so.

    Raises:
        Refused: the disk does not take it.
    """
    unfinished = path.with_name(f"{path.stem}.partial{path.suffix}")
    with beside(path) as partial:
        file = None
        try:
            how = sound_format(ending(path)) or {}
            with soundfile.SoundFile(partial, "w", sample_rate, channels=1, **how) as file:
                yield file
        except BaseException as error:
            told: BaseException = error
            if isinstance(error, soundfile.LibsndfileError):  # its message is just "System error"
                told = Refused(f"{path}: cannot be written (is the disk full?)")
            # By the frames written: libsndfile reports 2^63 samples for an unfinished flac.
            seconds = file.frames / sample_rate if keep_unfinished and file is not None else 0.0
            if seconds >= KEPT_SECONDS:
                partial.replace(unfinished)
                told.add_note(f"the first {seconds:.1f} s are kept in {unfinished}")
            raise told from error.__cause__


class Encoder:
    """Speech in, bytes of a file out.

    Args:
        name: of a format, one of `formats()`.
        sample_rate: Hz.
        stream: return bytes as soon as possible; otherwise all at the end, with the length in their header.
    """

    def __init__(self, name: str, sample_rate: int, stream: bool) -> None:
        self._file: _Forward | io.BytesIO = _Forward() if stream else io.BytesIO()
        if stream and name == "wav":
            self._file.write(wav_header(sample_rate))
            name = "pcm"
        how = sound_format(name) or {}
        self._sound = soundfile.SoundFile(self._file, "w", sample_rate, channels=1, **how)

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


def wav_header(rate: int) -> bytes:
    """Header of a 16-bit mono wav of unknown length."""
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16)
    length = struct.pack("<I", UNKNOWN_LENGTH)
    return b"RIFF" + length + b"WAVE" + form + b"data" + length
