"""`serve`: a bad request is answered by a clear status and one line, and leaves nothing behind."""

import json
import socket
import tempfile

import httpx
import pytest

from parity_tests.speech_support import WORDS
from port.app import cli
from port.app.server import settings
from port.app.server.settings import Limits, Settings
from port.files.errors import Misused
from tests.support.server_support import VOICE, serving

pytestmark = [pytest.mark.part("app"), pytest.mark.robust]
QUIET = ("python_multipart", "httpx", "httpcore")  # loggers of other packages, which may write
SPEECH, VOICES = "/v1/audio/speech", "/v1/audio/voices"
KEY = "a-key-of-24-characters-x"


def speech(**changed):
    """A request with some fields changed; with None, left out."""
    fields = {"input": WORDS, "voice": VOICE, "response_format": "pcm"} | changed
    return {"json": {name: value for name, value in fields.items() if value is not None}}


def raw(content, kind="application/json"):
    return {"content": content, "headers": {"Content-Type": kind}}


# Name: arguments of the request, status, words of the answer.
SPEECHES = {
    "no JSON": (raw(b"{"), 400, "the body is no JSON"),
    "no UTF-8": (raw(b'{"input": "\xff"}'), 400, "the body is no JSON"),
    "NaN": (raw(b'{"speed": NaN}'), 400, "the body is no JSON"),
    "nested": (raw(b"[" * 100_000), 400, "the body is no JSON"),
    "endless number": (raw(b'{"seed": ' + b"9" * 10_000 + b"}"), 400, "the body is no JSON"),
    "a list": (raw(b"[1]"), 400, "the body is a list; send a JSON object"),
    "empty": (raw(b""), 400, "the body is no JSON"),
    "no input": (speech(input=None), 400, "input is missing"),
    "empty input": (speech(input=""), 400, "input is missing"),
    "no voice": (speech(voice=None), 400, "voice is missing"),
    "input of another type": (speech(input=3), 400, "input: 3 cannot stand here; give a string"),
    "voice of another type": (speech(voice=["me"]), 400, "voice: a list cannot stand here"),
    "seed of another type": (speech(seed="1"), 400, "seed: '1' cannot stand here; give a whole number"),
    "seed true": (speech(seed=True), 400, "seed: True cannot stand here"),
    "stream of another type": (speech(stream="yes"), 400, "give true or false"),
    "an unknown field": (speech(inptu="x"), 400, "unknown field 'inptu'; fields are input, voice"),
    "half a character": (raw(b'{"input": "\\ud800", "voice": "me"}'), 400, "half of a surrogate pair"),
    "nothing to say": (speech(input=" ...\n"), 400, "nothing to speak"),
    "long text": (speech(input="a" * 4097), 400, "input has more than 4096 characters"),
    "long instructions": (speech(instructions="a" * 4097), 400, "instructions has more than 4096 characters"),
    "10 MB of text": (speech(input="a" * 10_000_000), 413, "the body is larger than"),
    "unknown format": (speech(response_format="aac"), 400, "response_format 'aac' cannot be written here; choose wav"),
    "speed 0": (speech(speed=0), 400, "speed 0 is not in 0.25 to 4.0"),
    "speed too high": (raw(b'{"input": "Hi", "voice": "me", "speed": 1e999}'), 400, "speed inf is not in"),
    "speed in a stream": (speech(speed=2, stream=True), 400, "speed changes whole answers only"),
    "unknown stream_format": (speech(stream_format="x"), 400, "stream_format 'x' is unknown"),
    "events of a whole": (speech(stream_format="sse", stream=False), 400, "sse needs stream"),
    "negative seed": (speech(seed=-1), 400, "seed is not in 0..2^64-1"),
    "large seed": (speech(seed=1 << 64), 400, "seed is not in 0..2^64-1"),
    "voice ../x": (speech(voice="../x"), 400, "voice '../x' is not known; known voices: me"),
    "voice with NUL": (speech(voice="me\0"), 400, "voice 'me\\x00' is not known"),
    "voice of 300 characters": (speech(voice="v" * 300), 400, "is not known"),
    "voice that is a URL": (speech(voice="http://127.0.0.1:1/x"), 400, "is not known"),
    "form": (raw(b"input=a", "application/x-www-form-urlencoded"), 415, "the body must be application/json"),
    "plain text": (raw(b"{}", "text/plain"), 415, "the body must be application/json"),
}
SOUND = ("me.wav", b"RIFF no sound", "audio/wav")


def form(audio=SOUND, **changed):
    fields = {"name": "new", "text": "How many people?"} | changed
    return {"data": {n: v for n, v in fields.items() if v is not None}, "files": {"audio": audio} if audio else None}


UPLOADS = {
    "a wav that is text": (form(), 400, "audio of 13 bytes: cannot be read as audio"),
    "an empty file": (form(("me.wav", b"")), 400, "audio is missing"),
    "no name": (form(name=None), 400, "name is missing"),
    "no text": (form(text=" "), 400, "text is missing"),
    "no audio": (form(None) | {"files": {"other": SOUND}}, 400, "unknown field 'other'"),
    "audio that is no file": ({"data": {"audio": "x"}, "files": {"name": SOUND}}, 400, "must be"),
    "name ../x": (form(name="../x"), 400, "voice name '../x' must be"),
    "name with NUL": (form(name="a\0b"), 400, "must be printable"),
    "name of 300 characters": (form(name="n" * 300), 400, "more than 200 bytes"),
    "name that hides": (form(name=".x"), 400, "must be"),
    "name of a device": (form(name="con"), 400, "must be"),
    "a voice that is there": (form(name="ME"), 409, "a voice named 'ME' is there"),
    "long text": (form(text="a" * 2001), 400, "text has more than 2000 characters"),
    "two files": (form() | {"files": [("audio", SOUND), ("audio", SOUND)]}, 400, "Too many files"),
    "17 MB": (form(("me.wav", bytes(17 << 20))), 413, "the body is larger than"),
    "JSON": (speech(), 415, "the body must be multipart/form-data"),
    "no boundary": (raw(b"x", "multipart/form-data"), 400, "the form cannot be read"),
    "a broken form": (raw(b"--b\r\nx\r\n\r\n--c", "multipart/form-data; boundary=b"), 400, "the form cannot be read"),
}
OTHERS = {
    "another host": ("GET", "/health", {"headers": {"Host": "evil.example"}}, 403, "Host 'evil.example' is not"),
    "no port": ("GET", "/health", {"headers": {"Host": "localhost:x"}}, 403, "is not this server's name"),
    "a user": ("GET", "/health", {"headers": {"Host": "localhost@evil.example"}}, 403, "is not this server's name"),
    "another origin": ("POST", SPEECH, {"headers": {"Origin": "http://evil.example"}}, 403, "may not call"),
    "a null origin": ("POST", VOICES, {"headers": {"Origin": "null"}}, 403, "may not call this server"),
    "a preflight": ("OPTIONS", SPEECH, {"headers": {"Origin": "http://evil.example"}}, 403, "may not call"),
    "another path": ("GET", "/etc/passwd", {}, 404, "no such path"),
    "a way out": ("GET", "/%2e%2e/%2e%2e/etc/passwd", {}, 404, "no such path"),
    "another method": ("PUT", SPEECH, {}, 405, "no such method"),
    "GET for speech": ("GET", SPEECH, {}, 405, "no such method"),
    "an unknown voice": ("DELETE", f"{VOICES}/x", {}, 404, "voice 'x' is not known"),
    "a voice outside": ("DELETE", f"{VOICES}/..%2F..%2Fconfig", {}, 404, "is not known"),
}
CASES = {f"speech: {name}": ("POST", SPEECH, *case) for name, case in SPEECHES.items()}
CASES |= {f"upload: {name}": ("POST", VOICES, *case) for name, case in UPLOADS.items()}
CASES |= OTHERS


def assert_refused(got, status, words):
    assert got.status_code == status, got.text
    assert got.headers["content-type"] == "application/json"
    assert got.text.count("\n") == 1
    error = json.loads(got.text)["error"]
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"
    assert error["message"].isprintable()


@pytest.fixture
def nothing_left(served_voice, monkeypatch, tmp_path):
    """No file appears in the model's folder, and no voice in memory. No temporary file can be written."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))

    def seen():
        return {*served_voice.folder.rglob("*"), *served_voice.frontend.spk2info}

    before = seen()
    yield
    assert seen() == before


@pytest.mark.parametrize("name", CASES)
def test_refused_by_one_line(running, nothing_left, name, caplog):
    method, path, arguments, status, words = CASES[name]
    assert_refused(running.http.request(method, path, **arguments), status, words)
    assert running.http.get("/health").json()["active"] == 0
    assert [record for record in caplog.records if not record.name.startswith(QUIET)] == []


def test_requests_without_the_right_key(served_voice, nothing_left):
    """Without the right key only the page and the health are served; only an allowed origin may call."""
    allowed = Settings(api_key=KEY, names=["speech.example"], origins=["https://app.example"])
    with serving(served_voice, allowed) as guarded:
        for given in (None, "", KEY, f"Basic {KEY}", "Bearer", "Bearer x", f"Bearer {KEY}x", "Bearer é"):
            headers = {} if given is None else {b"Authorization": given.encode()}
            for path in ("/v1/models", VOICES, "/v1", "/openapi.json"):
                with httpx.Client(base_url=guarded.url) as stranger:
                    assert_refused(stranger.get(path, headers=headers), 401, "API key; send the header Authorization")
                    assert stranger.get("/health").status_code == stranger.get("/").status_code == 200
        assert guarded.http.get("/v1/models").status_code == 200
        assert guarded.http.get("/v1/models", headers={"Host": "speech.example"}).status_code == 200
        preflight = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
        got = httpx.options(guarded.url + SPEECH, headers=preflight)
        assert (got.status_code, got.headers["access-control-allow-origin"]) == (200, "https://app.example")
        assert_refused(
            httpx.options(guarded.url + SPEECH, headers=preflight | {"Origin": "https://b.example"}), 403, ""
        )


def test_a_page_of_the_server_itself_may_call_it(running):
    host = running.url.removeprefix("http://")
    got = running.http.post(SPEECH, headers={"Origin": f"http://{host}"}, **speech())
    assert got.status_code == 200
    assert "access-control-allow-origin" not in got.headers
    assert_refused(running.http.post(SPEECH, headers={"Origin": f"http://{host}1"}, **speech()), 403, "may not call")


def test_a_body_that_does_not_come(served_voice):
    with serving(served_voice, Settings(limits=Limits(body_seconds=0.3))) as hasty:
        address = hasty.url.removeprefix("http://").split(":")
        with socket.create_connection((address[0], int(address[1])), timeout=20) as slow:
            head = f"POST {SPEECH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            slow.sendall(f"{head}Content-Length: 100\r\nConnection: close\r\n\r\n{{".encode())
            answer = b"".join(iter(lambda: slow.recv(1000), b""))
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"the body did not come within 0.3 s" in answer
        hasty.idle()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (dict(host="0.0.0.0"), "--host 0.0.0.0 can be reached from outside: give --api-key"),
        (dict(host="::"), "can be reached from outside"),
        (dict(host="example.org"), "can be reached from outside"),
        (dict(api_key=""), "--api-key needs 16 or more"),
        (dict(api_key="short"), "--api-key needs 16 or more"),
        (dict(api_key="ä" * 20), "--api-key needs 16 or more"),
        (dict(origins=["*"]), "--cors-origin '*': give scheme and name"),
        (dict(origins=["https://a.example/x"]), "give scheme and name"),
    ],
)
def test_settings_that_would_open_the_server(given, words):
    with pytest.raises(Misused) as error:
        Settings(**given)
    assert words in str(error.value)


def test_addresses():
    assert all(map(settings.is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(settings.is_loopback, ("0.0.0.0", "::", "10.0.0.1", "localhost.example", "")))


def test_the_command_refuses_before_it_loads(capsys):
    """A taken port, a foreign address, an open one without a key: one line each, before any model is loaded."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, code, words in (
            (["--port", port], 1, f"127.0.0.1:{port} cannot be bound (Address already in use); choose another --port"),
            (["--host", "192.0.2.1", "--api-key", KEY], 1, "cannot be bound"),
            (["--host", "0.0.0.0"], 2, "give --api-key KEY"),
        ):
            assert cli.main(["serve", "--model", "nowhere", *arguments]) == code
            err = capsys.readouterr().err
            assert words in err
            assert err.count("\n") == 1
