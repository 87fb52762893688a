"""Recordings from users: a path, the bytes of a file, an open file, or samples with their rate.

s samples, c channels
"""

from __future__ import annotations

import io
import numbers
import os
import shlex
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, Union, cast

import numpy as np
import soundfile

from .errors import Refused

Recording = Union[str, Path, bytes, BinaryIO, tuple[Any, int], "Heard"]
T = TypeVar("T")

LONGEST, SHORTEST = 30.0, 0.1  # seconds: the limit of the speech tokenizer's training, and too short for a voice
SILENCE = 2.0**-12  # range of the samples; room noise of a 16-bit recording exceeds it
MAX_RATE = 768_000  # Hz; no audio converter samples faster
MAX_SECONDS = 60  # longest that is read at all; between LONGEST and this, the error can state the length
MAX_SAMPLES = 1 << 24  # of all channels: nearly three minutes of stereo at 48 kHz
MAX_BYTES = 256 << 20
UNKNOWN = 1 << 62  # libsndfile gives a flac without a length 2^63 - 1 samples
FORMATS = ("WAV", "FLAC", "OGG", "MP3", "AIFF")


class _Forward(soundfile.SoundFile):
    """Read once from start to end: soundfile would seek after each read, which fails in a flac without a length."""

    def seekable(self) -> bool:
        return False


def name_of(source: Recording) -> str:
    """Name of a recording in messages."""
    if isinstance(source, Heard):
        return source.name
    if isinstance(source, str | Path):
        name = str(source)
        return name if name.isprintable() and len(name) <= 400 else f"{name!a:.400}"
    if isinstance(source, bytes | bytearray | memoryview):
        return f"audio of {len(source)} bytes"
    if isinstance(source, tuple):
        return "array of samples"
    said = getattr(source, "name", None)
    return f"open file {said!a:.400}" if isinstance(said, str) else type(source).__name__


@contextmanager
def about(source: Recording) -> Iterator[None]:
    """Put the recording's name before a `Refused`."""
    try:
        yield
    except Refused as error:
        raise Refused(f"{name_of(source)}: {error}") from None


class Heard:
    """A recording, opened and decoded once for all its readers.

    Raises:
        Refused: see `read`.

    Attributes:
        name: its name in messages.
        samples, rate: (s, c) float32, Hz.
        resampled: by rate, (1, s) in the arrays of the reading side.
        made: results of `once`, by reader; methods of two front ends are two readers.
    """

    def __init__(self, source: Recording, min_sr: int = 16000) -> None:
        self.name = name_of(source)
        self.samples, self.rate = read(source, min_sr)
        self.resampled: dict[int, Any] = {}
        self.made: dict[Callable[[Heard], Any], Any] = {}

    def once(self, reader: Callable[[Heard], T]) -> T:
        """The result of `reader` for this recording; only the first call computes it."""
        if reader not in self.made:
            self.made[reader] = reader(self)
        return self.made[reader]


def at_hand(source: Recording, min_sr: int = 16000) -> Heard:
    """The recording; decodes it if needed.

    Raises:
        Refused: see `read`.
    """
    if not isinstance(source, Heard):
        return Heard(source, min_sr)
    with about(source):
        _check_rate(source.rate, min_sr)
    return source


def read(source: Recording, min_sr: int = 16000) -> tuple[np.ndarray, int]:
    """Samples and sample rate of a recording.

    Args:
        source: a path, the bytes of a file, a file open for reading in binary mode, or samples with their rate: (s,),
            (s, c) or (c, s) of floats in [-1, 1] or of integers over their range.
        min_sr: lowest rate accepted, Hz.

    Returns:
        (s, c) float32, and the rate in Hz.

    Raises:
        Refused: no such file, unreadable, empty, not finite, longer than `MAX_SECONDS` or `MAX_SAMPLES`, or below
            `min_sr`.
    """
    with about(source):
        if isinstance(source, tuple):
            speech, sample_rate = _from_array(source, min_sr)
        elif isinstance(source, bytes | bytearray | memoryview):
            speech, sample_rate = _from_file(io.BytesIO(source), "INPUT", min_sr)
        elif hasattr(source, "read"):
            speech, sample_rate = _from_file(io.BytesIO(_content(cast(BinaryIO, source))), "INPUT", min_sr)
        elif isinstance(source, str | Path):
            _check_path(source)
            speech, sample_rate = _from_file(str(source), shlex.quote(name_of(source)), min_sr)
        else:
            raise Refused("is not a recording; give a path, bytes, an open file or (samples, sample rate)")
        if not speech.shape[0]:
            raise Refused("holds no samples")
        if not np.isfinite(speech).all():
            raise Refused("holds NaN or infinite samples")
    return speech, sample_rate


def check_recording(source: Recording, voice: bool = True) -> Heard:
    """Decode a recording and check it before any model is loaded or run.

    Args:
        source: as for `read`.
        voice: it is used as a voice: silence is refused too.

    Raises:
        Refused: see `read`; longer than `LONGEST`, shorter than `SHORTEST`, or silent.
    """
    heard = at_hand(source)
    with about(heard):
        seconds = len(heard.samples) / heard.rate
        if seconds > LONGEST:
            raise _too_long(seconds)
        if seconds < SHORTEST:
            raise Refused(f"{seconds:.3f} s is too short; some seconds of speech are needed")
        if voice and np.ptp(heard.samples.mean(axis=1, dtype=np.float64)) < SILENCE:
            raise Refused("is silent: there is no voice in it")
    return heard


def _check_path(path: str | Path) -> None:
    try:
        status = Path(path).stat()
    except FileNotFoundError:
        raise Refused("no such file") from None
    except (OSError, ValueError) as error:
        raise Refused(f"cannot be read as audio ({_one_line(getattr(error, 'strerror', error))})") from None
    # A pipe or a device might never end.
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
        raise Refused(f"cannot be read as audio ({kind}); give a sound file")
    if not os.access(path, os.R_OK):
        raise Refused("cannot be read as audio (no permission)")
    if not status.st_size:
        raise Refused("cannot be read as audio (the file is empty)")


def _content(file: BinaryIO) -> bytes:
    try:
        data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise Refused(f"cannot be read ({_one_line(error)})") from None
    if not isinstance(data, bytes):
        raise Refused("is not open in binary mode; use mode 'rb'")
    if len(data) > MAX_BYTES:
        raise Refused(f"holds more than {MAX_BYTES >> 20} MB; cut it")
    return data


def _from_file(file: str | io.BytesIO, shown: str, min_sr: int) -> tuple[np.ndarray, int]:
    try:
        with _Forward(file) as sound:
            _check_rate(sound.samplerate, min_sr)
            limit = min(MAX_SAMPLES // sound.channels, MAX_SECONDS * sound.samplerate)
            # A few bytes of flac or ogg can hold hours of silence.
            if limit < sound.frames < UNKNOWN:
                raise _too_long(sound.frames / sound.samplerate)
            speech = sound.read(min(sound.frames, limit + 1), dtype="float32", always_2d=True)
            if len(speech) > limit:
                raise _too_long(len(speech) / sound.samplerate)
            return speech, sound.samplerate
    except Refused:
        raise
    except (OSError, RuntimeError, MemoryError, TypeError, ValueError) as error:
        why = _one_line(getattr(error, "error_string", error))
        known = ", ".join(name.lower() for name in FORMATS if name in soundfile.available_formats())
        convert = f"ffmpeg -i {shown} new.wav"
        if sys.platform == "darwin":
            convert = f"afconvert -f WAVE -d LEI16 {shown} new.wav"
        raise Refused(
            f"cannot be read as audio ({why}); give {known}, or convert m4a and others with: {convert}"
        ) from None


def _from_array(source: tuple[Any, Any], min_sr: int) -> tuple[np.ndarray, int]:
    if len(source) != 2:
        raise Refused(f"a tuple of {len(source)} is not a recording; give (samples, sample rate)")
    samples, rate = source[::-1] if isinstance(source[0], numbers.Real) else source
    if not isinstance(rate, numbers.Real) or isinstance(rate, bool) or rate != rate // 1 or rate <= 0:
        raise Refused("the second of (samples, sample rate) must be a number of Hz")
    rate = int(cast(int, rate))
    _check_rate(rate, min_sr)
    try:
        if "bfloat16" in str(getattr(samples, "dtype", "")):  # of torch or MLX; numpy has no bfloat16
            samples = samples.tolist()
        speech = np.asarray(samples)
    except Exception as error:
        raise Refused(f"cannot be read as samples ({_one_line(error):.200})") from None
    if speech.dtype.kind not in "iuf" or speech.ndim not in (1, 2):
        raise Refused(f"samples are {speech.dtype} {list(speech.shape)}; give floats or integers, (s,) or (s, c)")
    if speech.size > MAX_SAMPLES or max(speech.shape) > MAX_SECONDS * rate:
        raise _too_long(max(speech.shape) / rate)
    if speech.ndim == 2 and speech.shape[0] < speech.shape[1]:
        speech = speech.T
    speech, kind = speech.reshape(len(speech), -1) if speech.size else np.zeros((0, 1)), speech.dtype
    if kind.kind != "f":
        half = 2.0 ** (8 * kind.itemsize - 1)
        speech = speech / half - (kind.kind == "u")
    return speech.astype(np.float32), rate


def _check_rate(sample_rate: int, min_sr: int) -> None:
    if sample_rate > MAX_RATE:
        raise Refused(f"sample rate {sample_rate} Hz is above {MAX_RATE} Hz; its header is wrong")
    if sample_rate < min_sr:
        raise Refused(f"sample rate {sample_rate} Hz is below {min_sr} Hz; give a better recording")


def _too_long(seconds: float) -> Refused:
    return Refused(f"{seconds:.1f} s is longer than {LONGEST:g} s; cut it")


def _one_line(error: object) -> str:
    return " ".join(str(error).split()).rstrip(".")
