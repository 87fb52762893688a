"""The page of `serve` in a browser: type, choose or record a voice, hear the speech while it is made, save it."""

import shutil

import numpy as np
import pytest
import soundfile

from parity_tests.speech_support import LONGER, PROMPT_WORDS
from port.app.server.api import FILES, PAGE
from port.app.server.settings import Settings
from port.files.voices import voice_files
from port.request import Stream
from reports.picture import BROWSERS
from tests.support.server_support import SEED, VOICE, pcm, serving

sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = [pytest.mark.part("app"), pytest.mark.meta]
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
KEY = "a-key-of-24-characters-x"


@pytest.fixture(scope="module")
def browser():
    """With a fake microphone."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    fake = "--use-fake-device-for-media-stream --use-fake-ui-for-media-stream --no-sandbox"
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=fake.split())
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """An error on the page, or a request to another server, fails the test."""
    wrong = []
    context = browser.new_context(permissions=["microphone"], accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(20_000)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("request", lambda sent: wrong.append(sent.url) if not sent.url.startswith(OWN) else None)
    yield page
    context.close()
    assert [said for said in wrong if "401 (Unauthorized)" not in said] == []


OWN = ("http://127.0.0.1:", "blob:http://127.0.0.1:", "data:")


def test_type_hear_and_save(page, running, served_voice, tmp_path):
    """By the keyboard alone; the saved samples are those that the class makes."""
    expect = sync_api.expect
    page.goto(running.url)
    expect(page.get_by_label("Voice", exact=True)).to_have_value(VOICE)
    page.get_by_label("Seed").fill(str(SEED))
    page.get_by_label("Text").fill(LONGER)
    page.keyboard.press("Control+Enter")
    expect(page.get_by_label("Level")).not_to_have_js_property("value", 0)
    expect(page.locator("#said")).to_contain_text("made in")
    save = page.get_by_role("button", name="Save WAV")
    expect(save).to_be_enabled()
    with page.expect_download() as download:
        save.press("Enter")
    download.value.save_as(tmp_path / "speech.wav")
    samples, rate = soundfile.read(tmp_path / "speech.wav", dtype="int16")
    made = served_voice.inference_zero_shot(
        LONGER, "", "", VOICE, seed=SEED, stream=Stream(reset_hop=True), split_long=True
    )
    assert rate == served_voice.sample_rate
    assert np.array_equal(samples, pcm([np.array(r["tts_speech"])[0] for r in made]))


def test_stop_ends_the_work(page, running):
    page.goto(running.url)
    page.get_by_label("Text").fill(" ".join([LONGER] * 60))
    page.get_by_role("button", name="Speak").click()
    sync_api.expect(page.locator("#said")).to_contain_text("s so far")
    page.keyboard.press("Escape")
    sync_api.expect(page.locator("#said")).to_have_text("Stopped.")
    running.idle()
    sync_api.expect(page.get_by_role("button", name="Save WAV")).to_be_enabled()


def test_record_save_and_delete_a_voice(page, running, served_voice):
    page.goto(running.url)
    page.get_by_role("button", name="Record").click()
    page.wait_for_timeout(1200)
    page.get_by_role("button", name="Stop recording").click()
    sync_api.expect(page.locator("#saved")).to_contain_text("s recorded")
    page.get_by_label("Words of the recording").fill(PROMPT_WORDS)
    page.get_by_label("Name of the voice").fill("recorded")
    page.get_by_role("button", name="Save voice").click()
    sync_api.expect(page.locator("#saved")).to_have_text("recorded is saved.")
    sync_api.expect(page.get_by_label("Voice", exact=True)).to_have_value("recorded")
    assert "recorded" in voice_files(served_voice.folder)
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete voice").click()
    sync_api.expect(page.locator("#said")).to_have_text("recorded is deleted.")
    assert list(voice_files(served_voice.folder)) == [VOICE]


def test_a_file_as_a_voice(page, running, wavs):
    page.goto(running.url)
    for name, words in (("text", "no sound that the browser can read"), ("long", "30.1 s are too long"),
                        ("source", "2.6 s recorded")):  # fmt: skip
        page.get_by_label("or a sound file").set_input_files(wavs[name])
        sync_api.expect(page.locator("#saved")).to_contain_text(words)


def test_a_key_is_asked_for(page, served_voice):
    with serving(served_voice, Settings(api_key=KEY)) as guarded:
        page.goto(guarded.url)
        page.get_by_label("Key").fill(KEY)
        page.get_by_role("button", name="Use key").click()
        sync_api.expect(page.get_by_label("Voice", exact=True)).to_have_value(VOICE)
        sync_api.expect(page.locator("#access")).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_its_screen(page, running, width, scheme):
    """Nothing is cut off, every field has a name, and text contrasts with its background (WCAG's 4.5)."""
    page.set_viewport_size({"width": width, "height": 844})
    page.emulate_media(color_scheme=scheme)
    page.goto(running.url)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.querySelectorAll('input,select,textarea,meter')].every(e => e.labels.length)")
    names = ["ink", "soft", "bad", "ground", "card", "main", "on-main"]
    shown = dict(zip(names, (colour(page, name) for name in names), strict=True))
    pairs = [(front, behind) for front in ("ink", "soft", "bad") for behind in ("ground", "card")]
    for front, behind in [*pairs, ("on-main", "main")]:
        assert contrast(shown[front], shown[behind]) >= 4.5, front


def colour(page, name):
    style = "getComputedStyle(document.documentElement)"
    text = page.evaluate(f"{style}.getPropertyValue('--{name}')").strip().removeprefix("#")
    return [int(text[i : i + 2], 16) / 255 for i in (0, 2, 4)]


def contrast(one, other):
    def light(parts):
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return np.dot(linear, (0.2126, 0.7152, 0.0722))

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


def test_every_file_of_the_page_is_served(running):
    assert {path.name for path in PAGE.iterdir()} == set(FILES.values())
    for path in FILES:
        got = running.http.get(path)
        assert got.status_code == 200
        assert "default-src 'none'" in got.headers["content-security-policy"]
