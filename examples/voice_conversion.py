"""Say what one recording says with the voice of another.

python examples/voice_conversion.py mlx-model you.wav me.wav out.wav
"""

import sys

import numpy as np
import soundfile
from cosyvoice3_mlx.cosyvoice3 import CosyVoice3


def main(model: str, source: str, ref_audio: str, out: str) -> None:
    voice = CosyVoice3.from_pretrained(model)
    # align_prompt leaves nothing of the voice's recording in front, which the original does.
    (result,) = voice.inference_vc(source, ref_audio, align_prompt=True)
    soundfile.write(out, np.array(result["tts_speech"])[0], voice.sample_rate)


if __name__ == "__main__":
    main(*sys.argv[1:])
