"""Hear a text while it is made. Needs sounddevice.

python examples/stream_to_speaker.py mlx-model me.wav 'What I say in the recording.' 'Good morning.'
"""

import sys
from queue import Queue
from threading import Thread

import numpy as np
import sounddevice
from cosyvoice3_mlx.cosyvoice3 import CosyVoice3
from cosyvoice3_mlx.request import Stream


def play(chunks: Queue, sample_rate: int) -> None:
    """Play what comes; writing waits for the speaker, so it has a thread of its own."""
    with sounddevice.OutputStream(sample_rate, channels=1, dtype="float32") as speaker:
        while (samples := chunks.get()) is not None:
            speaker.write(samples)


def main(model: str, ref_audio: str, ref_text: str, text: str) -> None:
    voice = CosyVoice3.from_pretrained(model)
    chunks: Queue = Queue()
    player = Thread(target=play, args=(chunks, voice.sample_rate))
    player.start()
    try:
        # reset_hop starts each piece with a short chunk, so that the first is heard at once.
        for result in voice.inference_zero_shot(text, ref_text, ref_audio, stream=Stream(reset_hop=True)):
            chunks.put(np.array(result["tts_speech"]).T)  # (samples, 1)
    finally:
        chunks.put(None)
        player.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
