"""`CosyVoice3`, the class users call: every way to make it speak (`CosyVoice3` in cosyvoice/cli/cosyvoice.py).

s samples

Each `inference_*` method yields `{"tts_speech": (1, s)}`, samples within +-1 at `sample_rate`: one for each
piece of the text, or with `stream=True` one for each chunk of each piece. Prompt and text are checked when the method
is called. The speech is made while the result is iterated; stopping early is safe.

Which parts of a prompt each network gets (LM: language model, flow: flow decoder):

    zero_shot      LM: prompt text, prompt speech    flow: prompt speech, speaker
    cross_lingual  LM: nothing                       flow: prompt speech, speaker
    instruct2      LM: instruction                   flow: prompt speech, speaker
    sft            LM: nothing                       flow: speaker
    vc             (no LM)                           flow: prompt speech, speaker
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from port.config import CosyVoice3Config
from port.files.errors import Refused
from port.files.voices import Voice, check_name, load_voices, save_voice
from port.frontend.normalizer import load_normalizer
from port.frontend.special_tokens import END_OF_PROMPT, require_end_of_prompt
from port.frontend.tokenizer import CosyVoice3Tokenizer
from port.request import Options, Prompt, Stream
from reference.frontend.frontend import CosyVoiceFrontEnd
from reference.llm.sampling import SeededDraws
from reference.model import CosyVoice3Model

FILES = {"llm.pt": "llm", "flow.pt": "flow", "hift.pt": "vocoder"}
TOKENIZER_FOLDER = "CosyVoice-BlankEN"

Speech = Iterator[dict[str, Tensor]]
Wav = str | Path

logger = logging.getLogger(__name__)


class CosyVoice3:
    """A model and its front end.

    Args:
        model: with its weights.
        frontend: makes the model's inputs.
        folder: where `save_spkinfo` writes by default; None requires its `path`.

    Common arguments of the `inference_*` methods:

        tts_text: what to say; where the prompt holds `<|endofprompt|>` also an iterator of strings, for text that is
            still arriving (neither split nor normalised).
        zero_shot_spk_id: a saved voice instead of the prompt.
        stream, speed: as in `Options`.
        text_frontend: normalise and split the text. A text with `<|...|>` in it is spoken as it is, in one piece.
        options: the other fields of `Options`: `seed`, `split_long`, ...

    They raise `Refused`, a ValueError of one line.
    """

    def __init__(self, model: CosyVoice3Model, frontend: CosyVoiceFrontEnd, folder: str | Path | None = None) -> None:
        self.model = model
        self.frontend = frontend
        self.folder = None if folder is None else Path(folder)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        config: CosyVoice3Config,
        onnx: Mapping[str, Mapping[str, Tensor]],
        dtype: torch.dtype = torch.float32,
    ) -> CosyVoice3:
        """Load the official folder.

        Args:
            folder: holds llm.pt, flow.pt, hift.pt and CosyVoice-BlankEN/.
            config: sizes, as cosyvoice3.yaml has them; reading that file is the converter's task.
            onnx: weights of `speech_tokenizer` and `speaker` by module name; the caller reads the ONNX files.
            dtype: float32 as the original, or float64.

        Raises:
            OSError, RuntimeError: missing files; missing, unknown or misshapen tensors.
            Refused: anything else that cannot be used.
        """
        folder = Path(folder)
        model = CosyVoice3Model(config)
        for name, module in FILES.items():
            state = torch.load(folder / name, map_location="cpu", weights_only=True, mmap=True)
            # Training leaves counters beside the weights, and `generator.` before the vocoder's names.
            state = {k.removeprefix("generator."): v for k, v in state.items() if isinstance(v, Tensor)}
            model.get_submodule(module).load_state_dict(state, strict=True)
        for module in ("speech_tokenizer", "speaker"):
            model.get_submodule(module).load_state_dict(onnx[module], strict=True)
        model.to(dtype).eval()
        frontend = CosyVoiceFrontEnd(
            CosyVoice3Tokenizer.from_folder(folder / TOKENIZER_FOLDER),
            model.speech_tokenizer,
            model.speaker,
            config,
            load_normalizer(),
            load_voices(folder, config),
        )
        return cls(model, frontend, folder)

    @property
    def sample_rate(self) -> int:
        """Sample rate of the speech, Hz."""
        return self.model.config.sample_rate

    def list_available_spks(self) -> list[str]:
        """Names of the saved voices."""
        return list(self.frontend.spk2info)

    def add_zero_shot_spk(self, prompt_text: str, prompt_wav: Wav, zero_shot_spk_id: str) -> bool:
        """Keep a prompt as a voice, replacing one of that name; `save_spkinfo` writes it to disk. Returns True.

        Args:
            prompt_text, prompt_wav: as for `inference_zero_shot`; the text is taken as it is.

        Raises:
            Refused: an unusable name.
            ValueError: `prompt_text` has no `<|endofprompt|>`, without which the voice could not speak.
        """
        name = check_name(zero_shot_spk_id)
        require_end_of_prompt(prompt_text)
        prompt = self.frontend.frontend_zero_shot(prompt_text, prompt_wav)
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
    ) -> Speech:
        """Speak with a saved voice by its embedding alone; the text must hold `<|endofprompt|>`."""
        chosen = self._options(stream, speed, options)
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
    ) -> Speech:
        """Speak with the voice of a recording.

        Args:
            prompt_text: an instruction, `<|endofprompt|>`, and what is said in the recording.
            prompt_wav: the recording, 30 s at most, 16 kHz at least.
        """
        chosen = self._options(stream, speed, options)
        prompt_text = self.frontend.text_normalize(prompt_text, split=False, text_frontend=text_frontend)
        pieces = self._pieces(tts_text, None if zero_shot_spk_id else prompt_text, text_frontend, chosen)
        said = prompt_text.rpartition(END_OF_PROMPT)[2]
        for piece in pieces:
            if isinstance(piece, str) and 2 * len(piece) < len(said):
                logger.warning("the text %.40r is much shorter than the prompt text; this may sound poor", piece)
        prompt = self.frontend.frontend_zero_shot(prompt_text, prompt_wav, zero_shot_spk_id)
        return self._speak(pieces, prompt, chosen)

    def inference_cross_lingual(
        self,
        tts_text: str,
        prompt_wav: Wav,
        zero_shot_spk_id: str = "",
        stream: bool | Stream = False,
        speed: float = 1.0,
        text_frontend: bool = True,
        **options: Any,
    ) -> Speech:
        """Speak with the voice of a recording in any language; `tts_text` itself must hold `<|endofprompt|>`."""
        chosen = self._options(stream, speed, options)
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
    ) -> Speech:
        """Speak with the voice of a recording, in the way that an instruction describes.

        Args:
            instruct_text: how to speak, ending with `<|endofprompt|>`; ignored for a saved voice, as in the original.
        """
        if zero_shot_spk_id:
            logger.warning("the instruction is not read: a saved voice brings its own prompt text")
        chosen = self._options(stream, speed, options)
        pieces = self._pieces(tts_text, None if zero_shot_spk_id else instruct_text, text_frontend, chosen)
        prompt = self.frontend.frontend_instruct2(instruct_text, prompt_wav, zero_shot_spk_id)
        return self._speak(pieces, prompt, chosen)

    def inference_vc(
        self,
        source_wav: Wav,
        prompt_wav: Wav,
        stream: bool | Stream = False,
        speed: float = 1.0,
        align_prompt: bool = False,
        **options: Any,
    ) -> Speech:
        """Say what `source_wav` says with the voice of `prompt_wav`, each 30 s at most; no random draws.

        Args:
            align_prompt: as for `CosyVoiceFrontEnd.frontend_vc`.
        """
        chosen = self._options(stream, speed, options)
        source, prompt = self.frontend.frontend_vc(source_wav, prompt_wav, align_prompt)
        return self.model.tts(prompt, source_speech_token=source, **chosen.of_model())

    def _pieces(
        self, tts_text: str | Iterator[str], prompt_text: str | None, text_frontend: bool, chosen: Options
    ) -> list[Any]:
        """Split a text. `prompt_text` precedes it in the language model; None if that is a saved voice's."""
        if isinstance(tts_text, str):
            if not tts_text.strip():
                raise ValueError("the text is empty: nothing to speak")
            if prompt_text is not None:
                require_end_of_prompt(prompt_text + tts_text)
        elif prompt_text is not None:
            require_end_of_prompt(prompt_text)
        return self.frontend.text_normalize(tts_text, True, text_frontend, chosen.split_long)

    @staticmethod
    def _options(stream: bool | Stream, speed: float, options: dict[str, Any]) -> Options:
        return Options(stream=stream, speed=speed, **options)

    def _speak(self, pieces: list[Any], prompt: Prompt, chosen: Options) -> Speech:
        draws = SeededDraws(secrets.randbits(32) if chosen.seed is None else chosen.seed)

        def pieces_spoken() -> Speech:
            for piece in pieces:
                text = self.frontend.extract_text_token(piece)
                yield from self.model.tts(prompt, text, **chosen.of_model(draws))

        return pieces_spoken()
