"""Many whole requests at once over one model, each with the speech that it has alone, up to rounding.

The language model decodes up to `batch_size` requests together; the next enters when one leaves. Pieces whose tokens
are there gather, and the flow decoder and the vocoder take those of like length together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np

from ..config import CosyVoice3Config
from ..llm.sampling import ras_sampling
from ..model import CosyVoice3Model, drop_silence, frames_at_speed, interpolate
from ..request import MOST_ROWS, NO_TOKENS, Prompt
from ..stream.memory import default_cache_bytes
from .decoder import Decoder, Row
from .flow import FlowRow, flow_row, mels
from .flow import limits as flow_limits
from .rows import groups
from .spoken import Spoken
from .vocoder import limits as vocoder_limits
from .vocoder import waves

Key = TypeVar("Key")
Made = list[dict[str, Any]] | Exception
LONGEST_ROW = 4096  # positions: a prompt of 30 s, and a long piece


def default_batch_size(config: CosyVoice3Config) -> int:
    """How many requests decode together by default: `MOST_ROWS` of the device, fewer where memory is short."""
    qwen2 = config.llm.qwen2
    row_bytes = LONGEST_ROW * qwen2.num_hidden_layers * 2 * qwen2.num_key_value_heads * qwen2.head_dim * 4
    return max(1, min(MOST_ROWS[mx.default_device().type.name], default_cache_bytes() // row_bytes))


@dataclass(eq=False)
class _Request:
    """A request under way.

    Attributes:
        prompt: all of it.
        at: the piece whose tokens come next.
        row: makes them.
        arriving: gives them, without long silences.
        tokens: of this piece so far.
        results: of the pieces that are spoken.
    """

    key: Any
    spoken: Spoken = field(init=False)
    prompt: Prompt = field(init=False)
    at: int = 0
    row: Row | None = None
    arriving: Iterator[int] = field(init=False)
    tokens: list[int] = field(default_factory=list)
    results: dict[int, dict[str, Any]] = field(default_factory=dict)
    ended: bool = False


@dataclass(eq=False)
class _Decoded:
    """A piece whose tokens are there, and later its mel (1, n, C)."""

    request: _Request
    at: int
    row: FlowRow
    mel: mx.array = field(init=False)


def together(
    model: CosyVoice3Model, requests: Iterable[tuple[Key, Callable[[], Spoken]]], batch_size: int
) -> Iterator[tuple[Key, Made]]:
    """Speak requests; yields the key of each with its results, or with the error that ended it, as they finish.

    Args:
        model: speaks.
        requests: taken one by one, as there is room. The function prepares the request, and may raise.
        batch_size: requests that decode together, and pieces that gather for the other networks; 1 speaks one request
            after the other by its own iteration. The results of a request are held until it is done.
    """
    if batch_size > 1:
        yield from _Together(model, batch_size).speak(requests)
        return
    for key, prepare in requests:
        try:
            made: Made = list(prepare())
        except Exception as error:  # of any kind: the other requests go on
            made = error
        yield key, made


class _Together:
    def __init__(self, model: CosyVoice3Model, batch_size: int) -> None:
        self.model, self.batch_size = model, batch_size
        self.decoder = Decoder(model.llm, batch_size)
        self.decoding: list[_Request] = []
        self.decoded: list[_Decoded] = []
        self.made: list[tuple[Any, Made]] = []  # and not given yet

    def speak(self, requests: Iterable[tuple[Any, Callable[[], Spoken]]]) -> Iterator[tuple[Any, Made]]:
        left = iter(requests)
        while True:
            while max(len(self.decoding), len(self.decoded)) < self.batch_size and (asked := next(left, None)):
                self._enter(*asked)
                yield from self._take()
            if not self.decoding and not self.decoded:
                return
            for request in [*self.decoding]:
                with self._error_of(request):
                    self._decode(request)
            if len(self.decoded) >= self.batch_size or not self.decoding:
                gathered, self.decoded = self.decoded, []
                for places in groups([piece.row.frames for piece in gathered], flow_limits()):
                    yield from self._sound([gathered[i] for i in places])

    def _take(self) -> list[tuple[Any, Made]]:
        made, self.made = self.made, []
        return made

    def _end(self, request: _Request, made: Made) -> None:
        if not request.ended:
            request.ended = True
            self.made.append((request.key, made))
            self.decoding = [other for other in self.decoding if other is not request]
            self.decoded = [piece for piece in self.decoded if piece.request is not request]
            if request.row is not None:
                request.row.close()

    @contextmanager
    def _error_of(self, request: _Request) -> Iterator[None]:
        """An error within ends this request, and no other."""
        try:
            yield
        except Exception as error:
            self._end(request, error)

    def _enter(self, key: Any, prepare: Callable[[], Spoken]) -> None:
        request = _Request(key)
        with self._error_of(request):
            request.spoken = prepare()
            if request.spoken.chosen.stream:
                raise ValueError("only whole requests are spoken together; leave out stream")
            request.spoken.enter()
            no_frames = mx.zeros((1, 0, self.model.config.flow.output_size))
            request.prompt = request.spoken.prompt.filled(np.zeros((1, 0), np.int32), no_frames)
            self._next_piece(request)

    def _next_piece(self, request: _Request) -> None:
        """Begin to decode the next piece; those before it that need no decoding are done with."""
        spoken = request.spoken
        while request.at < len(spoken.pieces):
            inputs = spoken.pieces[request.at].inputs
            if inputs is None:
                self._said(request, request.at, spoken.pause())
            elif "text" not in inputs:
                self._gather(request, np.array(inputs["source_speech_token"]))
            else:
                self._begin(request, inputs["text"])
                return
            request.at += 1
        if not spoken.pieces:
            self._end(request, [])

    def _begin(self, request: _Request, text: np.ndarray) -> None:
        chosen, prompt = request.spoken.chosen, request.prompt
        request.row = self.decoder.inference(
            text,
            prompt.prompt_text,
            prompt.llm_prompt_speech_token,
            request.spoken.draws,
            chosen.sampling or ras_sampling,
            chosen.strict_min_length,
        )
        request.arriving, request.tokens = drop_silence(request.row, self.model.config.streaming), []
        self.decoding.append(request)

    def _decode(self, request: _Request) -> None:
        """Take the tokens that are there, or one more of every row."""
        progress = request.spoken.chosen.progress
        while (token := next(request.arriving, None)) is not None:
            request.tokens.append(token)
            if progress is not None:
                progress(len(request.tokens))
            if request.row is not None and request.row.asked == len(request.row.tokens):
                return
        self.decoding.remove(request)
        self._gather(request, np.array([request.tokens], np.int32))
        request.at += 1
        self._next_piece(request)

    def _gather(self, request: _Request, token: np.ndarray) -> None:
        if not token.shape[1]:
            raise ValueError(NO_TOKENS)
        row = flow_row(self.model.flow, token, request.prompt, request.spoken.chosen.noise)
        self.decoded.append(_Decoded(request, request.at, row))

    def _sound(self, pieces: Sequence[_Decoded]) -> Iterator[tuple[Any, Made]]:
        """Take pieces of like length through both networks; yields requests that this ends."""
        for piece, mel in self._each(self._mels, pieces):
            piece.mel = mel
        pieces = [piece for piece in pieces if not piece.request.ended]
        for places in groups([piece.mel.shape[1] for piece in pieces], vocoder_limits()):
            for piece, speech in self._each(self._waves, [pieces[i] for i in places]):
                self._said(piece.request, piece.at, speech)
            yield from self._take()
        yield from self._take()

    def _each(
        self, make: Callable[[Sequence[_Decoded]], list[mx.array]], pieces: Sequence[_Decoded]
    ) -> list[tuple[_Decoded, mx.array]]:
        """Pieces, each with what `make` makes of it beside the others; where that fails each is tried alone."""
        pieces = [piece for piece in pieces if not piece.request.ended]
        try:
            return list(zip(pieces, make(pieces), strict=True)) if pieces else []
        except Exception as error:  # which may be the fault of any of them
            if len(pieces) > 1:
                return [pair for piece in pieces for pair in self._each(make, [piece])]
            self._end(pieces[0].request, error)
            return []

    def _mels(self, pieces: Sequence[_Decoded]) -> list[mx.array]:
        found, config = mels(self.model.flow, [piece.row for piece in pieces]), self.model.config
        for i, piece in enumerate(pieces):
            if (speed := piece.request.spoken.chosen.speed) != 1.0:
                found[i] = interpolate(found[i], frames_at_speed(config, found[i].shape[1], speed))
        mx.eval(found)
        return found

    def _waves(self, pieces: Sequence[_Decoded]) -> list[mx.array]:
        sine_waves = [piece.request.spoken.chosen.sine_waves for piece in pieces]
        made = waves(self.model.vocoder, [piece.mel for piece in pieces], sine_waves)
        mx.eval(made)
        return made

    def _said(self, request: _Request, at: int, speech: mx.array) -> None:
        request.results[at] = request.spoken.result(at, speech)
        if len(request.results) == len(request.spoken.pieces):
            self._end(request, [request.results[i] for i in sorted(request.results)])
