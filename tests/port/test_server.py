"""`serve`: OpenAI's client gets the speech that the class makes, whole or streamed, whatever other clients do."""

import asyncio
import base64
import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import openai
import pytest
import soundfile

from parity_tests.speech_support import LONGER, PROMPT_WORDS, WORDS
from port.app.server.api import Server
from port.app.server.asked import Asked
from port.app.server.settings import Limits, Settings
from port.app.server.speech import spoken
from port.app.sound import FORMATS, formats
from port.files.voices import VOICES, voice_files
from port.request import Stream
from tests.support.server_support import SEED, VOICE, pcm, samples_of, serving, wait_until

pytestmark = pytest.mark.part("app")
LONG = " ".join(["The morning train is late, and the rain stopped."] * 80)  # a minute of work


@pytest.fixture(scope="module")
def client(running):
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client:
        yield client.audio.speech


def alone(voice, text, stream=False, seed=SEED, kind="RAW", **more):
    """16-bit samples of a request, made by the class without a server."""
    how = {"stream": Stream(reset_hop=True) if stream else False, "seed": seed, "split_long": True} | more
    return pcm([np.array(r["tts_speech"])[0] for r in voice.inference_zero_shot(text, "", "", VOICE, **how)], kind)


def asked(text, **more):
    """Arguments of OpenAI's client; what it does not know goes in as `extra_body`."""
    own = {name: more.pop(name) for name in ("seed", "stream") if name in more}
    return {"input": text, "voice": VOICE, "model": "any", "extra_body": {"seed": SEED} | own} | more


def test_openai_client_gets_the_whole_speech(client, served_voice):
    got = client.create(**asked(WORDS, response_format="wav"))
    assert got.response.headers["content-type"] == "audio/wav"
    assert np.array_equal(samples_of(got.content), alone(served_voice, WORDS))
    slow = client.create(**asked(WORDS, response_format="wav", speed=0.5))
    assert np.array_equal(samples_of(slow.content), alone(served_voice, WORDS, speed=0.5))


def test_openai_client_gets_chunks_as_they_are_made(client, served_voice):
    expected = alone(served_voice, LONGER, stream=True)
    with client.with_streaming_response.create(**asked(LONGER, response_format="wav", stream=True)) as got:
        assert "content-length" not in got.headers
        parts = list(got.iter_bytes())
    assert len(parts) > 1
    assert parts[0][:4] == b"RIFF"
    assert b"".join(parts).count(b"RIFF") == 1
    assert np.array_equal(samples_of(b"".join(parts)), expected)
    with client.with_streaming_response.create(**asked(LONGER, response_format="pcm", stream_format="audio")) as got:
        assert np.array_equal(np.frombuffer(b"".join(got.iter_bytes()), "<i2"), expected)


def test_the_first_chunk_comes_before_the_last_is_made(client, running):
    with client.with_streaming_response.create(**asked(LONG, response_format="pcm", stream=True)) as got:
        parts = got.iter_bytes()
        next(parts)
        assert running.server.worker.busy == (1, 0)
    running.idle()


def test_speech_as_server_sent_events(running, served_voice):
    got = running.speech(LONGER, response_format="pcm", stream_format="sse")
    assert got.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(event.removeprefix("data: ")) for event in got.text.strip().split("\n\n")]
    assert [event["type"] for event in events[-2:]] == ["speech.audio.delta", "speech.audio.done"]
    sound = b"".join(base64.b64decode(event["audio"]) for event in events[:-1])
    assert np.array_equal(np.frombuffer(sound, "<i2"), alone(served_voice, LONGER, stream=True))


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("wav", "pcm")])
def test_formats(running, served_voice, name, stream):
    """Each decodes to as many samples, plus what the coder adds at the ends; flac to the same samples."""
    if name not in formats():
        pytest.skip(f"this libsndfile writes no {name}")
    kind = "FLAC" if name == "flac" else "RAW"
    expected = alone(served_voice, LONGER, stream, kind=kind)
    got = running.speech(LONGER, response_format=name, stream=stream)
    assert got.headers["content-type"] == FORMATS[name][2]
    with Forward(io.BytesIO(got.content)) as file:
        decoded = file.read(10 * len(expected), dtype="int16")
    assert 0 <= len(decoded) - len(expected) < 3000
    assert name != "flac" or np.array_equal(decoded, expected)
    assert np.abs(decoded).max() > 0.5 * np.abs(expected).max()


class Forward(soundfile.SoundFile):
    """Read from start to end, as a player does with a stream."""

    def seekable(self):
        return False


def test_a_seed_is_drawn_and_returned(running):
    first = running.speech(WORDS, seed=None)
    again = running.speech(WORDS, seed=int(first.headers["x-seed"]))
    assert first.content == again.content != running.speech(WORDS, seed=None).content


def test_instructions(running, served_voice):
    how = {"stream": False, "seed": SEED, "split_long": True}
    made = served_voice.inference_instruct2(WORDS, "Please speak slowly.", "", VOICE, **how)
    got = samples_of(running.speech(WORDS, instructions="Please speak slowly.").content)
    assert np.array_equal(got, pcm([np.array(r["tts_speech"])[0] for r in made]))
    assert not np.array_equal(got, alone(served_voice, WORDS))


def test_models_and_health(running):
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none") as client:
        assert [model.id for model in client.models.list()] == ["tiny"]
    assert running.http.get("/health").json() == {"status": "ok", "active": 0, "waiting": 0}


def test_voices_come_and_go(running, served_voice, wavs):
    with wavs["source"].open("rb") as audio:
        form = {"name": "anna é", "text": PROMPT_WORDS, "licence": "mine"}
        got = running.http.post("/v1/audio/voices", data=form, files={"audio": audio})
    assert got.status_code == 201, got.text
    assert got.json() == {"id": "anna é", "object": "audio.voice", "name": "anna é", "licence": "mine"} | {
        "text": served_voice.frontend.spk2info["anna é"].text
    }
    assert [voice["name"] for voice in running.http.get("/v1/audio/voices").json()["data"]] == [VOICE, "anna é"]
    assert "anna é" in voice_files(served_voice.folder)
    assert running.speech(WORDS, voice="anna é").content != running.speech(WORDS).content
    again = running.http.post("/v1/audio/voices", data=form | {"name": "ANNA É"}, files={"audio": b"RIFF"})
    assert (again.status_code, again.json()["error"]["param"]) == (409, "name")
    assert running.http.delete("/v1/audio/voices/anna é").json()["deleted"] is True
    assert list(voice_files(served_voice.folder)) == [VOICE]
    assert running.http.delete("/v1/audio/voices/anna é").status_code == 404
    assert [path.name for path in (served_voice.folder / VOICES).iterdir()] == [f"{VOICE}.safetensors"]


def test_requests_at_once_equal_each_alone(running, served_voice):
    """Four clients, streams and whole, one voice: none changes another's samples."""
    kinds = [(WORDS, False, 1), (WORDS, True, 2), (LONGER, True, 1), ("How many people?", False, 2)]
    expected = {kind: alone(served_voice, *kind) for kind in kinds}

    def ask(kind):
        text, stream, seed = kind
        return samples_of(running.speech(text, stream=stream, seed=seed).content)

    with ThreadPoolExecutor(4) as clients:
        for kind, got in zip(kinds * 4, clients.map(ask, kinds * 4), strict=True):
            assert np.array_equal(got, expected[kind]), kind
    running.idle()


def test_whole_answers_decode_together_and_a_client_that_leaves_frees_its_row(served_voice):
    """At once, while the other is still at its first piece."""
    server, asked = Server(served_voice, "tiny", Settings()), Asked(WORDS * 20, VOICE)
    work = [partial(spoken, served_voice, server.decoder, asked, seed) for seed in range(2)]

    async def rows(count):
        async with asyncio.timeout(30):
            while len(server.decoder._active) != count:
                await asyncio.sleep(0.01)

    async def ask():
        async with server.worker.results(work[0]):
            async with server.worker.results(work[1]):
                await rows(2)
            await rows(1)
            assert server.worker.busy == (1, 0)
        await rows(0)

    server.worker.start()
    asyncio.run(ask())
    server.worker.stop()


def test_a_short_request_does_not_wait_for_the_end_of_a_long_one(running):
    with running.http.stream("POST", "/v1/audio/speech", json=body(LONG, stream=True)) as long:
        parts = long.iter_raw()
        next(parts)
        assert running.speech(WORDS).status_code == 200
        wait_until(lambda: running.server.worker.busy == (1, 0))
    running.idle()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_client_that_hangs_up_ends_its_work(running, stream):
    """The text would take a minute; the work ends at the next token."""
    with (
        pytest.raises(Exception, match="timed out"),
        running.http.stream("POST", "/v1/audio/speech", json=body(LONG, stream=stream), timeout=0.5) as got,
    ):
        for _ in got.iter_raw():
            pass
        raise TimeoutError("timed out")  # a stream, whose parts came in time
    running.idle()


def body(text, **more):
    return {"input": text, "voice": VOICE, "response_format": "pcm", "seed": SEED} | more


def test_a_full_queue_refuses_and_a_waiting_client_can_leave(served_voice):
    """One active, one waiting: the third is refused; when the second hangs up, its place is free."""
    with serving(served_voice, Settings(limits=Limits(active=1, waiting=1))) as tight:

        def wait_and_leave():
            with pytest.raises(Exception, match="timed out"):
                tight.http.post("/v1/audio/speech", json=body(WORDS), timeout=1)

        with tight.http.stream("POST", "/v1/audio/speech", json=body(LONG, stream=True)) as first:
            parts = first.iter_raw()
            next(parts)
            second = threading.Thread(target=wait_and_leave)
            second.start()
            wait_until(lambda: tight.server.worker._places == 2)
            third = tight.speech(WORDS)
            assert (third.status_code, third.headers["retry-after"]) == (429, "5")
            second.join()
            wait_until(lambda: tight.server.worker._places == 1 and tight.server.worker.busy == (1, 0))
        tight.idle()


def test_a_client_that_reads_nothing_keeps_nobody_waiting(served_voice):
    """It loses its turn after some results, and another is served meanwhile."""
    with serving(served_voice, Settings(limits=Limits(active=1, waiting=3, ahead=1))) as tight:
        worker = tight.server.worker
        with tight.http.stream("POST", "/v1/audio/speech", json=body(LONG, stream=True)):
            wait_until(lambda: worker.busy == (1, 0))
            assert tight.speech(WORDS).status_code == 200
        tight.idle()
