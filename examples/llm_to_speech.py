"""Speak what a language model answers, while it still writes. Needs mlx-lm.

python examples/llm_to_speech.py mlx-model me.wav 'What I say in the recording.' 'Why is the sky blue?' out.wav
"""

import sys
from collections.abc import Iterator

import mlx_lm
import numpy as np
import soundfile
from cosyvoice3_mlx.cosyvoice3 import CosyVoice3

LLM = "mlx-community/Qwen2.5-0.5B-Instruct-4bit"


def answer(question: str) -> Iterator[str]:
    """The answer in the parts that it comes in."""
    llm, tokenizer = mlx_lm.load(LLM)[:2]
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)
    for part in mlx_lm.stream_generate(llm, tokenizer, prompt, max_tokens=200):
        yield part.text


def main(model: str, ref_audio: str, ref_text: str, question: str, out: str) -> None:
    voice = CosyVoice3.from_pretrained(model)
    with soundfile.SoundFile(out, "w", voice.sample_rate, channels=1) as file:
        # An iterator in the place of a text is spoken as it arrives: the first audio does not wait for its end.
        for result in voice.inference_zero_shot(answer(question), ref_text, ref_audio, stream=True):
            file.write(np.array(result["tts_speech"])[0])


if __name__ == "__main__":
    main(*sys.argv[1:])
