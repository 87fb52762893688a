"""Subtitles of speech in SubRip format."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..batched.spoken import Speech
from ..files.disk import beside
from ..files.errors import Refused
from ..frontend.special_tokens import TOKEN


def subtitled(speech: Speech, sample_rate: int, path: Path) -> Speech:
    """Pass the speech on; at its end, write `path` with an entry for each piece.

    Raises:
        Refused: the file cannot be written.
    """
    pieces: dict[int, tuple[str, int]] = {}
    for result in speech:
        text, samples = pieces.get(result["piece"], (result["text"], 0))
        pieces[result["piece"]] = text, samples + result["tts_speech"].shape[1]
        yield result
    try:
        with beside(path) as file:
            file.write_text(srt(pieces.values(), sample_rate), "utf-8")
    except OSError as error:
        raise Refused(f"{path}: cannot be written ({error.strerror})") from None


def srt(pieces: Iterable[tuple[str, int]], sample_rate: int) -> str:
    """The content for pieces, each a text with its number of samples; a piece without text is a pause."""
    entries: list[str] = []
    end = 0
    for text, samples in pieces:
        start, end = end, end + samples
        if shown := " ".join(TOKEN.sub("", text).split()):
            times = f"{clock(start / sample_rate, ',')} --> {clock(end / sample_rate, ',')}"
            entries.append(f"{len(entries) + 1}\n{times}\n{shown}\n")
    return "\n".join(entries)


def clock(seconds: float, point: str = ".") -> str:
    """HH:MM:SS.mmm, with `point` before the milliseconds."""
    whole, thousandths = divmod(round(1000 * seconds), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{point}{thousandths:03}"
