"""`CosyVoice3`, the class users call: every way to make it speak (`CosyVoice3` in cosyvoice/cli/cosyvoice.py).

s samples

Each `inference_*` method yields `{"tts_speech": (1, s) float32}`, samples within +-1 at `sample_rate`: one for each
piece of the text, or with `stream=True` one for each chunk of each piece; "piece" counts the pieces, "text" is what is
said in it, if it is known. Prompt and text are checked when the method is called. The speech is made while the result
is iterated; stopping early is safe.

Which parts of a prompt each network gets (LM: language model, flow: flow decoder):

    zero_shot      LM: prompt text, prompt speech    flow: prompt speech, speaker
    cross_lingual  LM: nothing                       flow: prompt speech, speaker
    instruct2      LM: instruction                   flow: prompt speech, speaker
    sft            LM: nothing                       flow: speaker
    vc             (no LM)                           flow: prompt speech, speaker

Unlike its twin, which keeps the original's law, this class puts the model's preamble where prompt and text hold no
`<|endofprompt|>`; `raw_prompt=True` keeps the law here too.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx

from .batched.spoken import Piece, Spoken
from .files.errors import Refused
from .files.hub import find_folder
from .files.loading import Later, load_model
from .files.recording import Recording
from .files.voices import Voice, check_name, load_voices, save_voice
from .frontend.frontend import CosyVoiceFrontEnd
from .frontend.normalizer import load_normalizer
from .frontend.special_tokens import END_OF_PROMPT, as_instruction, require_end_of_prompt, with_preamble
from .frontend.tokenizer import CosyVoice3Tokenizer
from .frontend.transcript import warn_of_transcript
from .frontend.written import cut, require_string
from .model import CosyVoice3Model
from .request import Options, Prompt, Stream
from .stream.threads import end_streams_with_thread

Wav = Recording

logger = logging.getLogger(__name__)


class CosyVoice3:
    """A model and its front end.

    Args:
        model: with its weights.
        frontend: makes the model's inputs.
        folder: where `save_spkinfo` writes by default; None requires its `path`.

    Common arguments of the `inference_*` methods:

    - `tts_text`: what to say; for zero_shot and instruct2 also an iterator of strings, for text that is still
      arriving (neither split nor normalised).
    - `zero_shot_spk_id`: a saved voice instead of the prompt.
    - `stream`, `speed`: as in `Options`.
    - `text_frontend`: normalise and split the text. A text with `<|...|>` in it is spoken as it is, in one piece.
    - `options`: the other fields of `Options`: `seed`, `split_long`, `raw_prompt`, ...

    They raise `Refused`, a ValueError of one line.
    """

    def __init__(self, model: CosyVoice3Model, frontend: CosyVoiceFrontEnd, folder: str | Path | None = None) -> None:
        self.model = model
        self.frontend = frontend
        self.folder = None if folder is None else Path(folder)
        self._lazy_in: int | None = None  # the thread that may leave weights on disk
        self._lock = threading.Lock()

    @classmethod
    def from_pretrained(
        cls,
        path_or_hf_repo: str | Path,
        revision: str | None = None,
        lazy: bool = False,
        bake_timesteps: bool = False,
        plain: bool = False,
    ) -> CosyVoice3:
        """Load a converted model.

        Args:
            path_or_hf_repo: folder written by convert/run.py, or the hub id of one; also a folder of mlx-community
                (see community.py).
            revision: branch, tag or commit of a hub id.
            lazy: leave weights and tokenizer on disk until they are used; another thread reads all weights that are
                left before it computes, but only when it comes through the methods of this class.
            bake_timesteps: keep what the flow decoder makes of its fixed times instead of the weights that make it,
                with the same result; frees 0.56 GB at the official size in float32.
            plain: leave the plain layers, whose steps are those of the original; slower.

        Raises:
            Refused: what cannot be used, in one line.
        """
        end_streams_with_thread()
        folder = find_folder(str(path_or_hf_repo), revision)
        model = load_model(folder, lazy, bake_timesteps, plain)
        read = partial(CosyVoice3Tokenizer.from_folder, folder)
        tokenizer: Any = Later(read) if lazy else read()
        frontend = CosyVoiceFrontEnd(
            tokenizer,
            model.speech_tokenizer,
            model.speaker,
            model.config,
            load_normalizer(),
            load_voices(folder, model.config),
        )
        made = cls(model, frontend, folder)
        made._lazy_in = threading.get_ident() if lazy else None
        return made

    @property
    def sample_rate(self) -> int:
        """Of the speech, Hz."""
        return self.model.config.sample_rate

    def list_available_spks(self) -> list[str]:
        """Names of the saved voices."""
        return list(self.frontend.spk2info)

    def add_zero_shot_spk(
        self, prompt_text: str, prompt_wav: Wav, zero_shot_spk_id: str, raw_prompt: bool = False
    ) -> bool:
        """Keep a prompt as a voice, replacing one of that name; `save_spkinfo` writes it to disk. Returns True.

        Args:
            prompt_text, prompt_wav: as for `inference_zero_shot`.
            raw_prompt: as in `Options`: the text is taken as it is.

        Raises:
            Refused: an unusable name.
            ValueError: with `raw_prompt`, no `<|endofprompt|>` in the text, without which the voice could not speak.
        """
        self._enter_thread()
        name = check_name(zero_shot_spk_id)
        require_string("prompt_text", prompt_text)
        text = prompt_text  # read as inference_zero_shot reads it, so that the voice speaks as its prompt
        if not raw_prompt:
            text = with_preamble(self.frontend.text_normalize(prompt_text, split=False))
        require_end_of_prompt(text)
        prompt = self.frontend.frontend_zero_shot(text, prompt_wav)
        warn_of_transcript(text, prompt.llm_prompt_speech_token)
        self.frontend.spk2info[name] = Voice(**prompt.given(), text=prompt_text)
        return True

    def save_spkinfo(self, path: str | Path | None = None) -> None:
        """Write all voices below `path`, by default the model's folder, from where they are loaded again.

        Raises:
            Refused: no folder to write to, or writing failed.
        """
        folder = path or self.folder
        if folder is None:
            raise Refused("the model has no folder of its own; give save_spkinfo a path")
        for name, voice in self.frontend.spk2info.items():
            save_voice(folder, name, voice, self.model.config)

    def inference_sft(
        self,
        tts_text: str,
        spk_id: str,
        stream: bool | Stream = False,
        speed: float = 1.0,
        text_frontend: bool = True,
        **options: Any,
    ) -> Spoken:
        """Speak with a saved voice by its embedding alone; an instruction may stand before the text."""
        chosen = Options(stream=stream, speed=speed, **options)
        pieces = self._pieces(tts_text, "", text_frontend, chosen)
        return self._speak(pieces, self.frontend.frontend_sft(spk_id), chosen)

    def inference_zero_shot(
        self,
        tts_text: str | Iterator[str],
        prompt_text: str,
        prompt_wav: Wav,
        zero_shot_spk_id: str = "",
        stream: bool | Stream = False,
        speed: float = 1.0,
        text_frontend: bool = True,
        **options: Any,
    ) -> Spoken:
        """Speak with the voice of a recording.

        Args:
            prompt_text: what is said in the recording; an instruction and `<|endofprompt|>` may stand before it.
            prompt_wav: the recording, 30 s at most, 16 kHz at least.
        """
        chosen = Options(stream=stream, speed=speed, **options)
        require_string("prompt_text", prompt_text)
        prompt_text = self.frontend.text_normalize(prompt_text, split=False, text_frontend=text_frontend)
        if not chosen.raw_prompt:
            prompt_text = with_preamble(prompt_text, tts_text)
        pieces = self._pieces(tts_text, None if zero_shot_spk_id else prompt_text, text_frontend, chosen)
        prompt = self.frontend.frontend_zero_shot(prompt_text, prompt_wav, zero_shot_spk_id)
        if not zero_shot_spk_id:
            warn_of_transcript(prompt_text, prompt.llm_prompt_speech_token, pieces)
        return self._speak(pieces, prompt, chosen)

    def inference_cross_lingual(
        self,
        tts_text: str | Iterator[str],
        prompt_wav: Wav,
        zero_shot_spk_id: str = "",
        stream: bool | Stream = False,
        speed: float = 1.0,
        text_frontend: bool = True,
        **options: Any,
    ) -> Spoken:
        """Speak with the voice of a recording in any language.

        Args:
            tts_text: an instruction and `<|endofprompt|>` may stand before it.
        """
        chosen = Options(stream=stream, speed=speed, **options)
        pieces = self._pieces(tts_text, "", text_frontend, chosen)
        prompt = self.frontend.frontend_cross_lingual(prompt_wav, zero_shot_spk_id)
        return self._speak(pieces, prompt, chosen)

    def inference_instruct2(
        self,
        tts_text: str | Iterator[str],
        instruct_text: str,
        prompt_wav: Wav,
        zero_shot_spk_id: str = "",
        stream: bool | Stream = False,
        speed: float = 1.0,
        text_frontend: bool = True,
        **options: Any,
    ) -> Spoken:
        """Speak with the voice of a recording, in the way that an instruction describes.

        Args:
            instruct_text: how to speak; of a saved voice it takes the place of the prompt text. With `raw_prompt` that
                text stays and no instruction is read, as in the original.
        """
        chosen = Options(stream=stream, speed=speed, **options)
        stays = bool(zero_shot_spk_id) and chosen.raw_prompt
        if stays:
            logger.warning("the instruction is not read: a saved voice brings its own prompt text")
        else:
            require_string("instruct_text", instruct_text)
            instruct_text = instruct_text if chosen.raw_prompt else as_instruction(instruct_text, tts_text)
        pieces = self._pieces(tts_text, None if stays else instruct_text, text_frontend, chosen)
        prompt = self.frontend.frontend_instruct2(instruct_text, prompt_wav, zero_shot_spk_id)
        if not stays:
            prompt = replace(prompt, prompt_text=self.frontend.extract_text_token(instruct_text))
        return self._speak(pieces, prompt, chosen)

    def inference_vc(
        self,
        source_wav: Wav,
        prompt_wav: Wav,
        stream: bool | Stream = False,
        speed: float = 1.0,
        align_prompt: bool = False,
        **options: Any,
    ) -> Spoken:
        """Say what `source_wav` says with the voice of `prompt_wav`, each 30 s at most; no random draws.

        Args:
            align_prompt: as for `CosyVoiceFrontEnd.frontend_vc`.
        """
        chosen = Options(stream=stream, speed=speed, **options)
        self._enter_thread()
        source, prompt = self.frontend.frontend_vc(source_wav, prompt_wav, align_prompt)
        return Spoken(self.model, prompt, [Piece({"source_speech_token": source})], chosen, self._enter_thread)

    def _pieces(
        self, tts_text: str | Iterator[str], prompt_text: str | None, text_frontend: bool, chosen: Options
    ) -> list[Any]:
        """Split a text. `prompt_text` precedes it in the language model; None if that is a saved voice's."""
        self._enter_thread()
        normalize = partial(self.frontend.text_normalize, text_frontend=text_frontend, split_long=chosen.split_long)
        return cut(tts_text, prompt_text, normalize, chosen)

    def _speak(self, pieces: list[Any], prompt: Prompt, chosen: Options) -> Spoken:
        said = [piece.rpartition(END_OF_PROMPT)[2] if isinstance(piece, str) else "" for piece in pieces]
        texts = [None if piece is None else {"text": self.frontend.extract_text_token(piece)} for piece in pieces]
        return Spoken(self.model, prompt, [*map(Piece, texts, said)], chosen, self._enter_thread)

    def _enter_thread(self) -> None:
        """Before this thread computes."""
        end_streams_with_thread()
        if self._lazy_in not in (None, threading.get_ident()):
            with self._lock:
                mx.eval(self.model.parameters())
                self._lazy_in = None
