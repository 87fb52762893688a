"""`CosyVoiceFrontEnd`: text and prompt audio in, a `Prompt` for `CosyVoice3Model.tts` out, for every mode.

b batch (1), L text tokens, P prompt tokens, F prompt frames, C mel bins, s samples

Source: cosyvoice/cli/frontend.py. The original returns the text's tokens together with the prompt, and reads the
prompt's file again for every piece of text; here each prompt is read once, and the text is tokenized on its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

import mlx.core as mx
import numpy as np

from ..config import CosyVoice3Config
from ..files.errors import Refused
from ..files.recording import Recording, about, check_recording
from ..files.voices import FIELDS, Voice
from ..request import Prompt
from .audio import check_prompt_length, fbank, load_wav, log_mel_spectrogram, mel_spectrogram
from .normalizer import Normalizer
from .speaker import CAMPPlus
from .speech_tokenizer import S3TokenizerV3
from .text import text_normalize
from .tokenizer import CosyVoice3Tokenizer

PROMPT_RATE = 16000  # Hz, of the speech tokenizer and the speaker encoder


class CosyVoiceFrontEnd:
    """Makes model inputs.

    Args:
        tokenizer: of the text.
        speech_tokenizer, speaker: the networks that read the prompt, with their weights.
        config: sizes of the model.
        normalizer: as for `text_normalize`.
        voices: saved voices, as `load_voices` gives them.
    """

    def __init__(
        self,
        tokenizer: CosyVoice3Tokenizer,
        speech_tokenizer: S3TokenizerV3,
        speaker: CAMPPlus,
        config: CosyVoice3Config,
        normalizer: Normalizer | None = None,
        voices: Mapping[str, Voice] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.speech_tokenizer = speech_tokenizer
        self.speaker = speaker
        self.config = config
        self.normalizer = normalizer
        self.spk2info = {
            name: replace(voice, **cast(dict[str, Any], {f: self._tensor(array) for f, array in voice.given().items()}))
            for name, voice in (voices or {}).items()
        }

    def text_normalize(
        self, text: str | Iterator[str], split: bool = True, text_frontend: bool = True, split_long: bool = False
    ) -> Any:
        """Pieces of a text, or one string; see `port.frontend.text.text_normalize`."""
        return text_normalize(text, self.tokenizer.encode, split, text_frontend, self.normalizer, split_long)

    def extract_text_token(self, text: str | Iterator[str]) -> np.ndarray | Iterator[np.ndarray]:
        """Token ids (1, L) int32; for an iterator of strings an iterator of single tokens (1, 1)."""
        if isinstance(text, Iterator):
            # Token by token, as in the original: where the arriving text is cut must not matter.
            return (ids[:, i : i + 1] for part in text for ids in [self._encode(part)] for i in range(ids.shape[1]))
        return self._encode(text)

    def _encode(self, text: str) -> np.ndarray:
        return np.array(self.tokenizer.encode(text), np.int32).reshape(1, -1)

    def extract_speech_token(self, prompt_wav: Recording) -> np.ndarray:
        """Speech tokens (1, P) int32 of a file, 25 a second.

        Raises:
            Refused: see `load_wav`; longer than 30 s.
        """
        speech = load_wav(prompt_wav, PROMPT_RATE)
        with about(prompt_wav):
            check_prompt_length(speech, PROMPT_RATE)
            mel = log_mel_spectrogram(speech, self.config.speech_tokenizer.n_mels)
        tokens, lengths = self.speech_tokenizer(mel, mx.array([mel.shape[1]]))
        return np.array(tokens[:, : int(np.array(lengths).item())], np.int32)

    def extract_spk_embedding(self, prompt_wav: Recording) -> mx.array:
        """Speaker embedding (1, spk_embed_dim) of a file.

        Raises:
            Refused: see `load_wav`.
        """
        speech = load_wav(prompt_wav, PROMPT_RATE)
        with about(prompt_wav):
            feat = fbank(speech, self.config.speaker.n_mels, PROMPT_RATE, subtract_mean=True)
        embedding = self.speaker(feat[None])
        mx.eval(embedding)  # a lazy array could be evaluated by this thread only
        return embedding

    def extract_speech_feat(self, prompt_wav: Recording) -> mx.array:
        """Log-mel (1, F, C) of a file, 50 frames a second.

        Raises:
            Refused: see `load_wav`.
        """
        speech = load_wav(prompt_wav, self.config.sample_rate)
        rate, bins = self.config.sample_rate, self.config.flow.output_size
        with about(prompt_wav):
            return mel_spectrogram(speech, num_mels=bins, sampling_rate=rate)

    def frontend_sft(self, spk_id: str) -> Prompt:
        """A saved voice by its embedding alone.

        Raises:
            Refused: no such voice.
        """
        return Prompt(self._voice(spk_id).flow_embedding)

    def frontend_zero_shot(self, prompt_text: str, prompt_wav: Recording, zero_shot_spk_id: str = "") -> Prompt:
        """A recording and what is said in it, or a saved voice.

        Args:
            prompt_text: instruction, `<|endofprompt|>`, transcript of the recording.
            prompt_wav: the recording, 30 s at most, see `recording.read`.
            zero_shot_spk_id: a saved voice instead of the text and the recording.

        Raises:
            Refused: see `check_recording`; no such voice, or one without a prompt.
        """
        if zero_shot_spk_id:
            saved = self._voice(zero_shot_spk_id)
            if saved.given().keys() != FIELDS.keys():
                raise Refused(f"voice {zero_shot_spk_id!r} has no prompt; use it with inference_sft")
            return saved
        prompt_wav = check_recording(prompt_wav)
        speech_token = prompt_wav.once(self.extract_speech_token)
        speech_feat = prompt_wav.once(self.extract_speech_feat)
        speech_token, speech_feat = self._align(speech_token, speech_feat)
        embedding = prompt_wav.once(self.extract_spk_embedding)
        return Prompt(embedding, self._encode(prompt_text), speech_token, speech_token, speech_feat)

    def frontend_cross_lingual(self, prompt_wav: Recording, zero_shot_spk_id: str = "") -> Prompt:
        """A recording in any language: the language model gets neither its words nor its sound.

        Args and Raises as for `frontend_zero_shot`.
        """
        prompt = self.frontend_zero_shot("", prompt_wav, zero_shot_spk_id)
        return replace(prompt, prompt_text=None, llm_prompt_speech_token=None)

    def frontend_instruct2(self, instruct_text: str, prompt_wav: Recording, zero_shot_spk_id: str = "") -> Prompt:
        """An instruction for the language model, which does not get the recording's sound.

        Args:
            instruct_text: how to speak, closed by `<|endofprompt|>`. A saved voice brings its own prompt text instead,
                as in the original.
            prompt_wav, zero_shot_spk_id: as for `frontend_zero_shot`.

        Raises:
            Refused: as for `frontend_zero_shot`.
        """
        prompt = self.frontend_zero_shot(instruct_text, prompt_wav, zero_shot_spk_id)
        return replace(prompt, llm_prompt_speech_token=None)

    def frontend_vc(
        self, source_wav: Recording, prompt_wav: Recording, align_prompt: bool = False
    ) -> tuple[np.ndarray, Prompt]:
        """What is said in one recording, (1, T) tokens, and the voice of another.

        Args:
            source_wav, prompt_wav: 30 s at most each.
            align_prompt: cut the prompt to whole tokens like the other modes. The original does not (`frontend_vc`):
                up to 2 frames of the prompt start the result, and as many are doubled where chunks of a stream meet.

        Raises:
            Refused: see `check_recording`.
        """
        source_wav, prompt_wav = check_recording(source_wav, voice=False), check_recording(prompt_wav)
        source_token = source_wav.once(self.extract_speech_token)
        prompt_token = prompt_wav.once(self.extract_speech_token)
        prompt_feat = prompt_wav.once(self.extract_speech_feat)
        if align_prompt:
            prompt_token, prompt_feat = self._align(prompt_token, prompt_feat)
        embedding = prompt_wav.once(self.extract_spk_embedding)
        prompt = Prompt(embedding, flow_prompt_speech_token=prompt_token, prompt_speech_feat=prompt_feat)
        return source_token, prompt

    def _tensor(self, array: np.ndarray) -> np.ndarray | mx.array:
        return mx.array(array) if array.dtype.kind == "f" else array

    def _align(self, speech_token: np.ndarray, speech_feat: mx.array) -> tuple[np.ndarray, mx.array]:
        """Keep the tokens that have all their frames, and those frames; either side may be slightly longer."""
        ratio = self.config.flow.token_mel_ratio
        token_len = min(speech_feat.shape[1] // ratio, speech_token.shape[1])
        speech_token, speech_feat = speech_token[:, :token_len], speech_feat[:, : ratio * token_len]
        mx.eval(speech_feat)
        return speech_token, speech_feat

    def _voice(self, spk_id: str) -> Prompt:
        if not isinstance(spk_id, str) or spk_id not in self.spk2info:
            known = ", ".join(self.spk2info) or "none"
            raise Refused(f"voice {spk_id!r:.80} is not known; known voices: {known}")
        return self.spk2info[spk_id]
