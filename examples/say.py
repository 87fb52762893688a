"""Say a text with the voice of a recording, and write a sound file.

python examples/say.py mlx-model me.wav 'What I say in the recording.' 'Good morning.' out.wav
"""

import sys

import numpy as np
import soundfile
from cosyvoice3_mlx.cosyvoice3 import CosyVoice3


def main(model: str, ref_audio: str, ref_text: str, text: str, out: str) -> None:
    voice = CosyVoice3.from_pretrained(model)
    # One result for each piece of the text; the seed makes the same speech again.
    pieces = [result["tts_speech"] for result in voice.inference_zero_shot(text, ref_text, ref_audio, seed=0)]
    soundfile.write(out, np.concatenate(pieces, axis=1)[0], voice.sample_rate)


if __name__ == "__main__":
    main(*sys.argv[1:])
