"""`CosyVoice3Model`: all parts of CosyVoice 3, and the driver that turns tokens into audio.

b batch (1), L text tokens, P prompt tokens, F prompt frames, T speech tokens, n mel frames, C mel bins, s samples
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .batched.decoder import Decoder
from .config import CosyVoice3Config, StreamingConfig
from .flow.decoder import CausalMaskedDiffWithDiT
from .frontend.speaker import CAMPPlus
from .frontend.speech_tokenizer import S3TokenizerV3
from .llm.sampling import Draws, ras_sampling
from .llm.speech_lm import CosyVoice3LM, Sampling, Tokens
from .request import NO_DRAWS, NO_TOKENS, SPEED_IN_STREAM, Chance, Prompt, Stream
from .stream.flow import StreamingFlow, Work
from .stream.memory import Memory
from .stream.threads import end_streams_with_thread
from .stream.vocoder import StreamingVocoder
from .vocoder.generator import CausalHiFTGenerator


@dataclass
class SynthesisCache:
    """What one request has made so far.

    Attributes:
        mel: of its chunks, (1, n, C).
        speech_offset: samples given out.
        stream: how the request streams; None where it does not.
        work: what the flow decoder's transformer has computed.
        flow, vocoder: state of the networks, from the first chunk to the last.
    """

    mel: mx.array | None = None
    speech_offset: int = 0
    stream: Stream | None = None
    work: Work = field(default_factory=Work)
    flow: StreamingFlow | None = None
    vocoder: StreamingVocoder | None = None


def drop_silence(tokens: Iterable[int], config: StreamingConfig) -> Iterator[int]:
    """Pass speech tokens on, but at most `max_silent_tokens` silent ones in a row (`llm_job`)."""
    silent = 0
    for token in tokens:
        silent = silent + 1 if token in config.silent_tokens else 0
        if silent <= config.max_silent_tokens:
            yield token


def interpolate(mel: mx.array, size: int) -> mx.array:
    """Resample frames linearly: (b, n, C) -> (b, size, C), pixel centres aligned as `F.interpolate` does by default."""
    frames = mel.shape[1]
    # On the host in float64: a position of some thousand frames has too few digits left in float32 for its fraction.
    position = np.maximum((np.arange(size) + 0.5) * (frames / size) - 0.5, 0.0)
    below = np.minimum(position.astype(np.int32), frames - 1)
    above = mx.array(np.minimum(below + 1, frames - 1))
    weight = mx.array((position - below).astype(np.float32))[:, None]
    return mel[:, mx.array(below)] * (1 - weight) + mel[:, above] * weight


class CosyVoice3Model(nn.Module):
    """`CosyVoice3Model` of cosyvoice/cli/model.py.

    In the original a thread per request fills a list of tokens, which is polled every 0.1 s. Here the driver asks the
    language model for the tokens that the next chunk needs, so chunks do not depend on timing; all state of a request
    lives in its generator. Requests may overlap, from one thread or several.

    Args:
        config: sizes of all parts; parameters are lazy until evaluated or loaded. Evaluate them before a second thread
            uses the model.

    Attributes:
        token_hop_len: tokens in the next chunk. As in the original it grows while a request streams and is not reset,
            so that a second request starts with a longer chunk; see `Stream.reset_hop`.
        stream_memory: what streams hold, and the prompts kept for later ones; `clear` forgets those.
    """

    def __init__(self, config: CosyVoice3Config) -> None:
        super().__init__()
        self.config = config
        self.llm = CosyVoice3LM(config.llm)
        self.flow = CausalMaskedDiffWithDiT(config.flow)
        self.vocoder = CausalHiFTGenerator(config.vocoder)
        self.speech_tokenizer = S3TokenizerV3(config.speech_tokenizer)
        self.speaker = CAMPPlus(config.speaker)
        self.token_hop_len = config.streaming.token_hop_len
        self.stream_memory = Memory()

    def llm_job(
        self,
        text: Tokens | Iterator[Tokens],
        prompt_text: Tokens,
        llm_prompt_speech_token: Tokens,
        draws: Draws | None,
        sampling: Sampling = ras_sampling,
        strict_min_length: bool = False,
        decoder: Decoder | None = None,
    ) -> Iterator[int]:
        """Speech tokens of a text, or of a text that still arrives, without long silences; arguments as for `tts`."""
        whole: Callable[..., Iterator[int]] = (decoder or self.llm).inference
        job = self.llm.inference_bistream if isinstance(text, Iterator) else whole
        tokens = job(text, prompt_text, llm_prompt_speech_token, draws, sampling, strict_min_length)
        # The language model continues from the dropped tokens too.
        return drop_silence(tokens, self.config.streaming)

    def token2wav(
        self,
        token: Tokens,
        prompt: Prompt,
        token_offset: int,
        cache: SynthesisCache,
        stream: bool = False,
        finalize: bool = False,
        speed: float = 1.0,
        chance: Chance = NO_DRAWS,
    ) -> mx.array:
        """Audio of the tokens from `token_offset` on.

        Without an incremental stream both networks recompute everything, and audio that the request already has is cut
        off. With one they compute what is new, except the flow decoder without the chunk mask.

        Args:
            token: (1, T), all tokens of the request so far.
            prompt: the flow decoder's whole prompt.
            token_offset: tokens whose mel is in the cache.
            cache: of this request, extended in place.
            stream: chunk mask in the flow decoder.
            finalize: no tokens follow; otherwise the last ones are context only.
            speed: the mel becomes shorter by this factor; not for a chunk.
            chance: the noise of both networks.

        Returns:
            (1, s) float32 within +-audio_limit, s >= 0.

        Raises:
            ValueError: a chunk with a `speed` other than 1, a speed that leaves no frame or too many; and what the two
                inference methods raise.
        """
        end_streams_with_thread()  # each chunk may be asked for by another
        voice = prompt.flow_prompt_speech_token, prompt.prompt_speech_feat, prompt.flow_embedding
        chosen = cache.stream
        if chosen is not None and chosen.incremental and stream and not finalize and cache.flow is None:
            memory, limit = self.stream_memory, chosen.max_cache_bytes
            cache.flow = StreamingFlow(self.flow, *voice, chance.noise, memory, limit, cache.work)
            cache.vocoder = StreamingVocoder(self.vocoder, chance.sine_waves)
        if cache.flow is not None and stream:
            new = cache.flow.push(token, finalize)
        else:
            if cache.flow is not None:
                cache.flow.close()  # the whole run can use its memory
            new = self.flow.inference(token, *voice, streaming=stream, finalize=finalize, noise=chance.noise)
            cache.work.add(voice[1].shape[1] + new.shape[1], self.config.flow.dit.static_chunk_size if stream else 0)
            new = new[:, token_offset * self.config.flow.token_mel_ratio :]
        cache.mel = mel = new if cache.mel is None else mx.concatenate([cache.mel, new], axis=1)
        if speed != 1.0:
            if token_offset or not finalize:
                raise ValueError(SPEED_IN_STREAM.format(speed))
            mel = interpolate(mel, frames_at_speed(self.config, mel.shape[1], speed))
        if cache.vocoder is not None:
            speech = cache.vocoder.push(new, finalize)
        else:
            speech, _ = self.vocoder.inference(mel, finalize=finalize, sine_waves=chance.sine_waves)
            speech = speech[:, cache.speech_offset :]
        cache.speech_offset += speech.shape[1]
        # A lazy array could be evaluated by this thread only; a server may ask for the next chunk from another.
        mx.eval(speech, cache.mel)
        return speech

    def tts(
        self,
        prompt: Prompt,
        text: Tokens | Iterator[Tokens] | None = None,
        source_speech_token: Tokens | None = None,
        stream: Stream | None = None,
        speed: float = 1.0,
        chance: Chance = NO_DRAWS,
        sampling: Sampling | None = None,
        strict_min_length: bool = False,
        progress: Callable[[int], None] | None = None,
        decoder: Decoder | None = None,
    ) -> Iterator[dict[str, mx.array]]:
        """Speak a text, or say source tokens with another voice; yields `{"tts_speech": (1, s) float32}`.

        Args:
            prompt: the voice, and the text and speech that come before `text`.
            text: (1, L) token ids, or an iterator of such chunks (text that still arrives).
            source_speech_token: (1, T) tokens to say; when given, no text is read.
            stream: yield each chunk as soon as its tokens exist, in this way; None yields one array.
            speed: tempo, 1 as the model speaks; not for a stream.
            chance: random draws and noise.
            sampling: as for `CosyVoice3LM.inference`; None takes the original's.
            strict_min_length: as for `CosyVoice3LM.inference`.
            progress: called with the number of speech tokens so far, after each that the language model gives.
            decoder: decodes a whole text together with those of other requests, from this call on.

        Raises:
            ValueError: no speech tokens at all, an impossible `speed`; and what the parts raise.
        """
        end_streams_with_thread()
        if stream is not None and speed != 1.0:
            raise ValueError(SPEED_IN_STREAM.format(speed))
        nothing = np.zeros((1, 0), np.int32)
        ended = source_speech_token is not None and source_speech_token.shape[1] > 0
        tokens: list[int] = np.array(source_speech_token).reshape(-1).tolist() if ended else []
        prompt = prompt.filled(nothing, mx.array(np.zeros((1, 0, self.config.flow.output_size), np.float32)))
        arriving: Iterator[int] = iter(())
        if not ended:
            before = prompt.prompt_text, prompt.llm_prompt_speech_token, chance.draws
            text = nothing if text is None else text
            arriving = self.llm_job(text, *before, sampling or ras_sampling, strict_min_length, decoder)
        if progress is not None:
            arriving = _told(arriving, progress)
        speak = partial(self.token2wav, prompt=prompt, cache=SynthesisCache(stream=stream), chance=chance)

        def spoken() -> Iterator[dict[str, mx.array]]:
            token_offset = 0
            if stream is not None:
                told = prompt.flow_prompt_speech_token.shape[1]
                token_offset = yield from self._chunks(tokens, arriving, ended, speak, told, stream.reset_hop)
            tokens.extend(arriving)
            if not tokens:
                raise ValueError(NO_TOKENS)
            last = np.array([tokens], np.int32)
            full = stream is None or not stream.causal_final
            yield {"tts_speech": speak(last, token_offset=token_offset, stream=not full, finalize=True, speed=speed)}

        return spoken()

    def _chunks(
        self,
        tokens: list[int],
        arriving: Iterator[int],
        ended: bool,
        speak: Callable[..., mx.array],
        prompt_tokens: int,
        reset_hop: bool,
    ) -> Generator[dict[str, mx.array], None, int]:
        """Yield all chunks but the last; fills `tokens` from `arriving`, returns how many of them were spoken."""
        config, ahead = self.config.streaming, self.config.flow.pre_lookahead_len
        token_hop_len = config.token_hop_len if reset_hop else self.token_hop_len
        # Prompt and first chunk together end where a chunk of the flow decoder's mask ends.
        prompt_token_pad = -prompt_tokens % token_hop_len
        token_offset = 0
        while True:
            hop = token_hop_len if token_offset else token_hop_len + prompt_token_pad
            needed = token_offset + hop + ahead
            while not ended and len(tokens) < needed:
                token = next(arriving, None)
                ended = token is None
                tokens += [] if token is None else [token]
            if len(tokens) >= needed:
                ready = np.array([tokens[:needed]], np.int32)
                speech = speak(ready, token_offset=token_offset, stream=True, finalize=False)
                token_offset += hop
                longest = config.max_hop_factor * config.token_hop_len
                token_hop_len = min(longest, config.stream_scale_factor * token_hop_len)
                if not reset_hop:
                    self.token_hop_len = token_hop_len
                yield {"tts_speech": speech}
            # Compared with the chunk just made, padding included, as in the original: at the end of the tokens the last
            # chunk may so become longer than the next one would have been.
            if ended and len(tokens) - token_offset < hop + ahead:
                return token_offset


def _told(tokens: Iterable[int], progress: Callable[[int], None]) -> Iterator[int]:
    for count, token in enumerate(tokens, start=1):
        progress(count)
        yield token


def frames_at_speed(config: CosyVoice3Config, frames: int, speed: float) -> int:
    """Mel frames at another tempo, no more than the vocoder's fixed noise covers."""
    limit = config.flow.cfm.max_frames
    if not speed > 0 or not 1 <= frames / speed <= limit:
        raise ValueError(f"speed {speed:g} would turn {frames} mel frames into other than 1 to {limit}")
    return int(frames / speed)
