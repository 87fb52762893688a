"""`CosyVoice3LM`: text tokens and a spoken prompt in, speech tokens out, one at a time.

b batch (1), L positions, D hidden width, v speech vocabulary with its special tokens
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn

from ..config import LLMConfig, SamplingConfig
from .qwen2 import KVCache, Qwen2Model
from .sampling import Draws, ras_sampling

Tokens = mx.array | np.ndarray
Sampling = Callable[[np.ndarray, Sequence[int], Any, SamplingConfig], int]  # `Draws`, or None


class CosyVoice3LM(nn.Module):
    """Language model over speech tokens. Source: `CosyVoice3LM` in cosyvoice/llm/llm.py.

    Args:
        config: sizes, ratios and special tokens.
    """

    def __init__(self, config: LLMConfig) -> None:
        super().__init__()
        self.config = config
        width = config.qwen2.hidden_size
        self.qwen2 = Qwen2Model(config.qwen2)
        self.llm_decoder = nn.Linear(width, config.num_speech_embeddings, bias=False)
        self.speech_embedding = nn.Embedding(config.num_speech_embeddings, width)

    def embed_text(self, tokens: Tokens) -> mx.array:
        """Text token ids (1, L) -> embeddings (1, L, D).

        Raises:
            ValueError: the ids are not a (1, L) array of integers inside the vocabulary.
        """
        return self.qwen2.embed_tokens(self._checked(tokens, self.config.qwen2.vocab_size, "text"))

    def embed_speech(self, tokens: Tokens) -> mx.array:
        """Speech token ids (1, L), special tokens included -> embeddings (1, L, D).

        Raises:
            ValueError: as for `embed_text`.
        """
        return self.speech_embedding(self._checked(tokens, self.config.num_speech_embeddings, "speech"))

    def prepare_input(self, text: Tokens, prompt_text: Tokens, prompt_speech_token: Tokens) -> mx.array:
        """The sequence that generation continues: sos, prompt text, text, task, prompt speech.

        Args:
            text, prompt_text: (1, L) text token ids; one of them must hold `<|endofprompt|>`.
            prompt_speech_token: (1, L) speech token ids, may be empty.

        Returns:
            (1, L, D) embeddings.

        Raises:
            ValueError: no `<|endofprompt|>`, or ids that are not a (1, L) array of integers inside their vocabulary.
        """
        instruction, words = self.embed_text(prompt_text), self.embed_text(text)
        self._find_end_of_prompt(prompt_text, text)
        # Start and task embeddings are rows of the speech table: CosyVoice 3 has no `llm_embedding`.
        parts = [
            self._special(self.config.sos),
            instruction,
            words,
            self._special(self.config.task_id),
            self.embed_speech(prompt_speech_token),
        ]
        return mx.concatenate(parts, axis=1)

    def length_limits(self, text: Tokens) -> tuple[int, int]:
        """Fewest and most speech tokens of a text (1, L)."""
        length, config = text.shape[1], self.config
        return int(length * config.min_token_text_ratio), int(length * config.max_token_text_ratio)

    def scores(self, hidden: mx.array) -> mx.array:
        """Log-probabilities of the next speech token: hidden (..., D) -> (..., v) float32."""
        # Float32 whatever the weights are: the norm below sums over thousands of terms.
        logits = self.llm_decoder(hidden).astype(mx.float32)
        return logits - mx.logsumexp(logits, axis=-1, keepdims=True)

    def step(self, lm_input: mx.array, cache: list[KVCache]) -> mx.array:
        """Run `lm_input` (1, L, D) behind the cache, extending it; scores (v,) after its last position."""
        return self.scores(self.qwen2(lm_input, cache)[0, -1])

    def sampling_ids(
        self,
        scores: np.ndarray,
        decoded_tokens: Sequence[int],
        draws: Draws | None,
        sampling: Sampling,
        ignore_eos: bool,
        strict_min_length: bool = False,
        keep: int | None = None,
    ) -> int:
        """Choose the next token from `scores` (v,), which is changed in place.

        Args:
            ignore_eos: the minimum length is not reached, so the end should not come.
            strict_min_length: make `ignore_eos` forbid every stop token, `keep` excepted.

        Raises:
            ValueError: scores that are no numbers.
        """
        if np.isnan(scores).any():
            raise ValueError("the language model's scores are no numbers; convert it again with another --dtype")
        if ignore_eos and strict_min_length:
            kept = None if keep is None else float(scores[keep])
            scores[self.config.speech_token_size :] = -np.inf
            if kept is not None:
                scores[keep] = kept
        elif ignore_eos:
            # The original masks id `speech_token_size`, the end token of CosyVoice 2; here that is sos, so the end
            # stays possible: `sampling_ids` of Qwen2LM in cosyvoice/llm/llm.py.
            scores[self.config.sos] = -np.inf
        return sampling(scores, decoded_tokens, draws, self.config.sampling)

    def inference(
        self,
        text: Tokens,
        prompt_text: Tokens,
        prompt_speech_token: Tokens,
        draws: Draws | None,
        sampling: Sampling = ras_sampling,
        strict_min_length: bool = False,
    ) -> Iterator[int]:
        """Yield speech tokens until a stop token or the maximum length; the stop token is not yielded.

        Args:
            text, prompt_text, prompt_speech_token: as for `prepare_input`.
            draws: random numbers for `sampling`.
            sampling: `ras_sampling`, `greedy_sampling` or a function with their arguments.
            strict_min_length: forbid stop tokens until the minimum length. The original intends to, and does not:
                see `sampling_ids`.

        Raises:
            ValueError: as for `prepare_input`.
        """
        lm_input = self.prepare_input(text, prompt_text, prompt_speech_token)
        min_len, max_len = self.length_limits(text)
        cache, tokens = self.qwen2.make_cache(), list[int]()
        for i in range(max_len):
            scores = np.array(self.step(lm_input, cache))
            token = self.sampling_ids(scores, tokens, draws, sampling, i < min_len, strict_min_length)
            if token >= self.config.speech_token_size:
                break
            yield token
            tokens.append(token)
            lm_input = self._special(token)

    def inference_bistream(
        self,
        text: Iterable[Tokens],
        prompt_text: Tokens,
        prompt_speech_token: Tokens,
        draws: Draws | None,
        sampling: Sampling = ras_sampling,
        strict_min_length: bool = False,
    ) -> Iterator[int]:
        """Yield speech tokens while the text still arrives: rounds of `mix_ratio` text and speech tokens.

        A round ends with the fill token, chosen or forced, which asks for more text. There is no maximum length.
        Source: `inference_bistream` of Qwen2LM in cosyvoice/llm/llm.py, its quirks included.

        Args:
            text: chunks of text token ids, each (1, L).
            prompt_text: (1, L) text token ids; the instruction up to `<|endofprompt|>` stands before the first round.
            prompt_speech_token, draws, sampling: as for `inference`.
            strict_min_length: forbid the end until all text has come; else an early end raises, as in the original.

        Raises:
            ValueError: as for `prepare_input` (for the prompt text alone), or a stop token at the wrong time.
        """
        config = self.config
        n_text, n_speech = config.mix_ratio
        prompt, speech = self.embed_text(prompt_text), self.embed_speech(prompt_speech_token)
        start = self._find_end_of_prompt(prompt_text) + 1
        lm_input = mx.concatenate([self._special(config.sos), prompt[:, :start]], axis=1)
        pending = prompt[:, start:]
        next_fill = n_speech - prompt_speech_token.shape[1] % n_speech
        cache, tokens = self.qwen2.make_cache(), list[int]()

        for chunk in text:
            pending = mx.concatenate([pending, self.embed_text(chunk)], axis=1)
            while speech.shape[1] and pending.shape[1] >= n_text:
                lm_input = mx.concatenate([lm_input, pending[:, :n_text], speech[:, :n_speech]], axis=1)
                pending, speech = pending[:, n_text:], speech[:, n_speech:]
            if speech.shape[1]:
                continue
            # Only later rounds wait for text. The original's first round would wait if it held nothing but sos, but it
            # always holds the instruction. So without prompt speech it is spoken from the instruction alone.
            if tokens:
                if pending.shape[1] < n_text:
                    continue
                lm_input, pending = pending[:, :n_text], pending[:, n_text:]
            while True:
                scores = np.array(self.step(lm_input, cache))
                if len(tokens) == next_fill:
                    token = config.fill_token
                else:
                    token = self.sampling_ids(
                        scores, tokens, draws, sampling, True, strict_min_length, keep=config.fill_token
                    )
                tokens.append(token)
                if token == config.fill_token:
                    # `lm_input` stays: the fill token is never fed, and the last token is fed again at the very end.
                    next_fill = len(tokens) + n_speech
                    break
                self._refuse_stop(token)
                yield token
                lm_input = self._special(token)

        lm_input = mx.concatenate([lm_input, pending, self._special(config.task_id)], axis=1)
        while True:
            token = self.sampling_ids(np.array(self.step(lm_input, cache)), tokens, draws, sampling, False)
            if token == config.eos:
                break
            self._refuse_stop(token)
            tokens.append(token)
            yield token
            lm_input = self._special(token)

    def _special(self, token: int) -> mx.array:
        """Embedding (1, 1, D) of one speech token."""
        return self.speech_embedding(mx.array([[token]]))

    def _find_end_of_prompt(self, *texts: Tokens) -> int:
        tokens = [token for text in texts for token in np.array(text[0]).tolist()]
        if self.config.end_of_prompt not in tokens:
            raise ValueError(
                f"the text has no <|endofprompt|> (token {self.config.end_of_prompt}); "
                "CosyVoice 3 needs an instruction that ends with it before the words to speak"
            )
        return tokens.index(self.config.end_of_prompt)

    def _refuse_stop(self, token: int) -> None:
        if token >= self.config.speech_token_size:
            raise ValueError(f"the language model chose stop token {token} where speech had to follow")

    def _checked(self, tokens: Tokens, limit: int, kind: str) -> mx.array:
        # MLX gathers zeros for an id out of range and says nothing.
        ids = np.array(tokens)
        if ids.ndim != 2 or ids.shape[0] != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"{kind} tokens: expected (1, L) integers, found {ids.shape} {ids.dtype}")
        if ids.size and not 0 <= ids.min() <= ids.max() < limit:
            raise ValueError(f"{kind} tokens: ids {ids.min()}..{ids.max()} leave 0..{limit - 1}")
        return mx.array(ids.astype(np.int32))
