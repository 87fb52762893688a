"""`CosyVoice3Model`: all parts of CosyVoice 3 under one roof, and the driver that turns tokens into audio.

b batch (1), L text tokens, P prompt tokens, F prompt frames, T speech tokens, n mel frames, C mel bins, s samples
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .config import CosyVoice3Config, StreamingConfig
from .flow.decoder import CausalMaskedDiffWithDiT
from .frontend.speaker import CAMPPlus
from .frontend.speech_tokenizer import S3TokenizerV3
from .llm.sampling import Draws, ras_sampling
from .llm.speech_lm import CosyVoice3LM, Sampling, Tokens
from .stream.flow import StreamingFlow, Work
from .stream.memory import Memory
from .stream.vocoder import StreamingVocoder
from .vocoder.generator import CausalHiFTGenerator

SPEED_IN_STREAM = "speed {:g}: only a whole utterance can change its tempo; leave out stream or speed"


@dataclass
class SynthesisCache:
    """What one request has made so far.

    Attributes:
        mel: of its chunks, (1, n, C).
        speech_offset: samples given out.
        incremental: let both networks go on from their own state instead of running over everything from the start.
        max_cache_bytes: as for `CosyVoice3Model.tts`.
        work: what the flow decoder's transformer has computed.
        flow, vocoder: state of the networks, from the first chunk to the last.
    """

    mel: mx.array | None = None
    speech_offset: int = 0
    incremental: bool = False
    max_cache_bytes: int | None = None
    work: Work = field(default_factory=Work)
    flow: StreamingFlow | None = None
    vocoder: StreamingVocoder | None = None


def drop_silence(tokens: Iterable[int], config: StreamingConfig) -> Iterator[int]:
    """Pass speech tokens on; of a run of silent ones only the first `max_silent_tokens` (`llm_job`)."""
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

    The original lets a thread per request fill a list of tokens and looks at it every 0.1 s. Here the driver asks the
    language model for the tokens that the next chunk needs, so chunks do not depend on timing; all state of a request
    lives in its generator. Requests may overlap, from one thread or several.

    Args:
        config: sizes of all parts; parameters are lazy until evaluated or loaded. Evaluate them before a second thread
            uses the model.

    Attributes:
        token_hop_len: tokens in the next chunk. As in the original it grows while a request streams and is not reset,
            so that a second request starts with a longer chunk; see `reset_hop` of `tts`.
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
    ) -> Iterator[int]:
        """Speech tokens of a text, or of a text that still arrives, without long silences; arguments as for `tts`."""
        job = self.llm.inference_bistream if isinstance(text, Iterator) else self.llm.inference
        tokens = job(text, prompt_text, llm_prompt_speech_token, draws, sampling, strict_min_length)
        # The language model goes on from the dropped tokens too.
        return drop_silence(tokens, self.config.streaming)

    def token2wav(
        self,
        token: Tokens,
        prompt_token: Tokens,
        prompt_feat: mx.array,
        embedding: mx.array,
        token_offset: int,
        cache: SynthesisCache,
        stream: bool = False,
        finalize: bool = False,
        speed: float = 1.0,
        noise: mx.array | None = None,
        sine_waves: mx.array | None = None,
    ) -> mx.array:
        """Audio of the tokens from `token_offset` on.

        Both networks run over everything from the start, and what the request already has is cut off afterwards; with
        an `incremental` cache over what is new, but for the flow decoder without the chunk mask.

        Args:
            token: (1, T), all tokens of the request so far.
            prompt_token, prompt_feat, embedding: (1, P), (1, F, C), (1, spk_embed_dim).
            token_offset: tokens whose mel is in the cache.
            cache: of this request, extended in place.
            stream: chunk mask in the flow decoder.
            finalize: no tokens follow; otherwise the last ones are context only.
            speed: factor by which the mel is shortened; only for a request made in one go.
            noise, sine_waves: as for `CausalMaskedDiffWithDiT.inference` and `CausalHiFTGenerator.inference`.

        Returns:
            (1, s) float32 within +-audio_limit, s >= 0.

        Raises:
            ValueError: another `speed` than 1 in a chunk, or one that leaves no frame or too many; and what the two
                inference methods raise.
        """
        voice = prompt_token, prompt_feat, embedding
        if cache.incremental and stream and not finalize and cache.flow is None:
            memory, limit = self.stream_memory, cache.max_cache_bytes
            cache.flow = StreamingFlow(self.flow, *voice, noise, memory, limit, cache.work)
            cache.vocoder = StreamingVocoder(self.vocoder, sine_waves)
        if cache.flow is not None and stream:
            new = cache.flow.push(token, finalize)
        else:
            if cache.flow is not None:
                cache.flow.close()  # the whole run can use its memory
            new = self.flow.inference(token, *voice, streaming=stream, finalize=finalize, noise=noise)
            cache.work.add(prompt_feat.shape[1] + new.shape[1], self.config.flow.dit.static_chunk_size if stream else 0)
            new = new[:, token_offset * self.config.flow.token_mel_ratio :]
        cache.mel = mel = new if cache.mel is None else mx.concatenate([cache.mel, new], axis=1)
        if speed != 1.0:
            if token_offset or not finalize:
                raise ValueError(SPEED_IN_STREAM.format(speed))
            mel = interpolate(mel, _frames_at_speed(self.config, mel.shape[1], speed))
        if cache.vocoder is not None:
            speech = cache.vocoder.push(new, finalize)
        else:
            speech, _ = self.vocoder.inference(mel, finalize=finalize, sine_waves=sine_waves)
            speech = speech[:, cache.speech_offset :]
        cache.speech_offset += speech.shape[1]
        # A lazy array could be evaluated by this thread only; a server may ask for the next chunk from another.
        mx.eval(speech, cache.mel)
        return speech

    def tts(
        self,
        *,
        flow_embedding: mx.array,
        text: Tokens | Iterator[Tokens] | None = None,
        prompt_text: Tokens | None = None,
        llm_prompt_speech_token: Tokens | None = None,
        flow_prompt_speech_token: Tokens | None = None,
        prompt_speech_feat: mx.array | None = None,
        source_speech_token: Tokens | None = None,
        stream: bool = False,
        speed: float = 1.0,
        draws: Draws | None = None,
        sampling: Sampling = ras_sampling,
        noise: mx.array | None = None,
        sine_waves: mx.array | None = None,
        strict_min_length: bool = False,
        reset_hop: bool = False,
        causal_final: bool = False,
        incremental: bool = True,
        max_cache_bytes: int | None = None,
    ) -> Iterator[dict[str, mx.array]]:
        """Speak a text, or say source tokens with another voice; yields `{"tts_speech": (1, s) float32}`.

        Args:
            flow_embedding: (1, spk_embed_dim) speaker x-vector.
            text: (1, L) token ids, or an iterator of such chunks (text that still arrives).
            prompt_text: (1, L) token ids before the text.
            llm_prompt_speech_token: (1, P) speech that the language model continues.
            flow_prompt_speech_token, prompt_speech_feat: (1, P) and (1, F, C), speech that the flow decoder continues.
            source_speech_token: (1, T) tokens to say; when given, no text is read.
            stream: yield chunks as soon as their tokens are there, instead of one array.
            speed: factor of the tempo; not for a stream.
            draws: random numbers of the language model; needed unless `sampling` draws nothing.
            sampling: as for `CosyVoice3LM.inference`.
            noise, sine_waves: as for `token2wav`.
            strict_min_length: as for `CosyVoice3LM.inference`.
            reset_hop: start with the shortest chunk and leave `token_hop_len` alone.
            causal_final: keep the chunk mask in the last chunk too, so that a stream's mel is that of one long
                streaming run. The original drops it there.
            incremental: compute only what is new in a chunk, the same up to rounding; otherwise both networks run over
                everything again, as in the original. In the last chunk the flow decoder does, unless `causal_final`.
            max_cache_bytes: what all streams of this model and the prompts kept for later ones may hold together, see
                stream/memory.py; beyond it chunks are computed again. None takes a quarter of the device's memory.

        Raises:
            ValueError: no speech tokens at all, a `speed` that cannot be; and what the parts raise.
        """
        if stream and speed != 1.0:
            raise ValueError(SPEED_IN_STREAM.format(speed))
        nothing = np.zeros((1, 0), np.int32)
        ended = source_speech_token is not None and source_speech_token.shape[1] > 0
        tokens: list[int] = np.array(source_speech_token).reshape(-1).tolist() if ended else []
        arriving: Iterator[int] = iter(())
        if not ended:
            arriving = self.llm_job(
                nothing if text is None else text,
                nothing if prompt_text is None else prompt_text,
                nothing if llm_prompt_speech_token is None else llm_prompt_speech_token,
                draws,
                sampling,
                strict_min_length,
            )
        if prompt_speech_feat is None:
            prompt_speech_feat = mx.zeros((1, 0, self.config.flow.output_size))
        voice = {
            "prompt_token": nothing if flow_prompt_speech_token is None else flow_prompt_speech_token,
            "prompt_feat": prompt_speech_feat,
            "embedding": flow_embedding,
            "cache": SynthesisCache(incremental=stream and incremental, max_cache_bytes=max_cache_bytes),
            "noise": noise,
            "sine_waves": sine_waves,
        }
        token_offset = 0
        if stream:
            token_offset = yield from self._chunks(tokens, arriving, ended, voice, reset_hop)
        tokens += arriving
        if not tokens:
            raise ValueError("the language model ended at once: no speech tokens; try another seed or a longer text")
        last = np.array([tokens], np.int32)
        full = not (stream and causal_final)
        speech = self.token2wav(last, token_offset=token_offset, stream=not full, finalize=True, speed=speed, **voice)
        yield {"tts_speech": speech}

    def _chunks(
        self, tokens: list[int], arriving: Iterator[int], ended: bool, voice: dict[str, Any], reset_hop: bool
    ) -> Generator[dict[str, mx.array], None, int]:
        """Yield all chunks but the last; fills `tokens` from `arriving` and returns how many of them are spoken."""
        config, ahead = self.config.streaming, self.config.flow.pre_lookahead_len
        token_hop_len = config.token_hop_len if reset_hop else self.token_hop_len
        # Prompt and first chunk together end where a chunk of the flow decoder's mask ends.
        prompt_token_pad = -voice["prompt_token"].shape[1] % token_hop_len
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
                speech = self.token2wav(ready, token_offset=token_offset, stream=True, finalize=False, **voice)
                token_offset += hop
                longest = config.max_hop_factor * config.token_hop_len
                token_hop_len = min(longest, config.stream_scale_factor * token_hop_len)
                if not reset_hop:
                    self.token_hop_len = token_hop_len
                yield {"tts_speech": speech}
            # By the length of the chunk just made, padding included, as in the original: once all tokens are there, a
            # rest that is longer than the next chunk would be may still join the last one.
            if ended and len(tokens) - token_offset < hop + ahead:
                return token_offset


def _frames_at_speed(config: CosyVoice3Config, frames: int, speed: float) -> int:
    """Mel frames at another tempo, within what the vocoder's fixed noise covers."""
    limit = config.flow.cfm.max_frames
    if not speed > 0 or not 1 <= frames / speed <= limit:
        raise ValueError(f"speed {speed:g} would turn {frames} mel frames into other than 1 to {limit}")
    return int(frames / speed)
