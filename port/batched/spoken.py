"""A request that is checked and prepared: spoken alone while it is iterated, or with others by `together`.

s samples
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from ..llm.sampling import SeededDraws
from ..model import CosyVoice3Model
from ..request import Options, Prompt

Speech = Iterator[dict[str, Any]]


@dataclass(frozen=True)
class Piece:
    """A part of a request that is spoken in one go.

    Attributes:
        inputs: of `CosyVoice3Model.tts`, `text` or `source_speech_token`; None for a pause.
        said: its words, as far as they are known.
    """

    inputs: Mapping[str, Any] | None
    said: str = ""


class Spoken(Iterator[dict[str, Any]]):
    """Speech of one request: `{"tts_speech": (1, s) float32, "piece": int, "text": str}`, made while it is iterated.

    Any thread may ask for the next result. With `Options.decoder` the first piece takes its place there at once, and of
    a whole request the next piece before a result is given, so that requests that take turns decode together.

    Args:
        model: speaks.
        prompt: whose voice.
        pieces: in order.
        chosen: how; all pieces draw from one stream of numbers.
        enter: called before a thread computes.
    """

    def __init__(
        self,
        model: CosyVoice3Model,
        prompt: Prompt,
        pieces: Sequence[Piece],
        chosen: Options,
        enter: Callable[[], None],
    ) -> None:
        self.model, self.prompt, self.pieces = model, prompt, pieces
        self.chosen, self.enter = chosen, enter
        self.draws = SeededDraws(secrets.randbits(32) if chosen.seed is None else chosen.seed)
        self._begun: Speech = iter(())
        self._results = self._speak(self._begin(0))

    def __next__(self) -> dict[str, Any]:
        return next(self._results)

    def close(self) -> None:
        """End it where it is; its rows are free."""
        for results in (self._results, self._begun):
            if isinstance(results, Generator):
                results.close()
        self._begun = iter(())

    def result(self, at: int, speech: mx.array) -> dict[str, Any]:
        """What is given of piece `at`."""
        return {"tts_speech": speech, "piece": at, "text": self.pieces[at].said}

    def pause(self) -> mx.array:
        """The silence that a piece without inputs stands for, (1, s)."""
        return mx.array(np.zeros((1, round(self.chosen.pause * self.model.config.sample_rate)), np.float32))

    def _begin(self, at: int) -> Speech:
        """Results of piece `at`, of which nothing is computed yet."""
        if at == len(self.pieces):
            return iter(())
        inputs = self.pieces[at].inputs
        if inputs is None:
            return iter([{"tts_speech": self.pause()}])
        self._begun = self.model.tts(self.prompt, **inputs, **self.chosen.of_model(self.draws))
        return self._begun

    def _speak(self, results: Speech) -> Speech:
        for at in range(len(self.pieces)):
            following = None
            self.enter()
            for made in results:
                if not self.chosen.stream:  # whose pieces have one result each
                    following = self._begin(at + 1)
                yield self.result(at, made["tts_speech"])
                self.enter()
            results = following or self._begin(at + 1)
