"""Say a text through a server (`cosyvoice3-mlx serve`) with OpenAI's client, and write the chunks as they come.

python examples/openai_client.py http://127.0.0.1:8000/v1 me 'Good morning.' out.wav
"""

import sys

from openai import OpenAI


def main(url: str, voice: str, text: str, out: str) -> None:
    # The key is the server's --api-key; without one any will do.
    client = OpenAI(base_url=url, api_key="none")
    # `stream` and `seed` are this server's own fields; without `stream` the whole answer comes at once.
    with client.audio.speech.with_streaming_response.create(
        model="cosyvoice3", voice=voice, input=text, response_format="wav", extra_body={"stream": True, "seed": 0}
    ) as answer:
        answer.stream_to_file(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
