// The page of the server: speak a text, keep voices. All sound goes through sound.js.

import { Player, Recorder, asWav } from "./sound.js";

const LONGEST = 30; // seconds of a recording
const at = Object.fromEntries([...document.querySelectorAll("[id]")].map((element) => [element.id, element]));
let key = sessionStorage.getItem("key") ?? "";
let speech = null; // what sounds, or sounded last: its player, and how to break it off
let recorder = null;
let recording = null; // the wav to save as a voice

/** Fetch, and turn an answer that says what is wrong into an Error. */
async function call(path, options = {}) {
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  if (response.status === 401) {
    at.access.hidden = false;
    at.key.focus();
  }
  const content = await response.json().catch(() => null);
  throw new Error(content?.error?.message ?? `the server answered ${response.status}`);
}

function say(place, message, bad = false) {
  place.textContent = message;
  place.classList.toggle("bad", bad);
}

async function load(chosen) {
  const [models, voices] = await Promise.all(
    ["v1/models", "v1/audio/voices"].map(async (path) => (await (await call(path)).json()).data),
  );
  at.access.hidden = true;
  at.model.textContent = models[0].id;
  const before = chosen ?? at.voice.value;
  at.voice.replaceChildren(...voices.map(({ name }) => new Option(name, name)));
  if (voices.some(({ name }) => name === before)) at.voice.value = before;
  at.remove.disabled = at.go.disabled = !voices.length;
  if (!voices.length) say(at.said, "There is no voice yet. Add one below.");
}

const start = () => load().then(() => at.voice.value && say(at.said, ""), (error) => say(at.said, error.message, true));

at.access.addEventListener("submit", (event) => {
  event.preventDefault();
  key = at.key.value.trim();
  sessionStorage.setItem("key", key);
  start();
});

// ---- speak

at.speak.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (at.go.disabled) return;
  stop();
  const abort = new AbortController();
  const body = { model: at.model.textContent, input: at.text.value, voice: at.voice.value };
  if (at.instructions.value.trim()) body.instructions = at.instructions.value;
  if (at.seed.value) body.seed = Number(at.seed.value);
  const started = performance.now();
  const own = (speech = { abort, player: null });
  busy(true);
  say(at.said, "Waiting for the first sound …");
  try {
    const response = await call("v1/audio/speech", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ ...body, response_format: "pcm", stream: true }),
      signal: abort.signal,
    });
    const player = (own.player = new Player(Number(response.headers.get("X-Sample-Rate"))));
    const seed = response.headers.get("X-Seed");
    meter(own);
    let first = 0;
    for (const reader = response.body.getReader(); ; ) {
      const { done, value } = await reader.read();
      if (done) break;
      first ||= performance.now() - started;
      player.push(value);
      say(at.said, `${player.seconds.toFixed(1)} s so far, the first after ${(first / 1000).toFixed(2)} s`);
    }
    const took = (performance.now() - started) / 1000;
    const dry = player.ranDry ? `; playback waited ${player.ranDry} times` : "";
    at.save.disabled = !player.samples;
    say(at.said, `${player.seconds.toFixed(1)} s of speech, made in ${took.toFixed(1)} s, seed ${seed}${dry}`);
    await new Promise((resolve) => setTimeout(resolve, 1000 * player.left));
  } catch (error) {
    if (speech === own) say(at.said, abort.signal.aborted ? "Stopped." : error.message, !abort.signal.aborted);
  }
  if (speech === own) busy(false);
});

function busy(is) {
  at.stop.disabled = !is;
  at.save.disabled = is || !speech?.player?.samples;
}

function stop() {
  speech?.abort.abort();
  speech?.player?.stop();
  busy(false);
}

function meter(own) {
  const sounding = speech === own && own.player.context.state !== "closed";
  at.level.value = sounding ? own.player.level() : 0;
  if (sounding && !at.stop.disabled) requestAnimationFrame(() => meter(own));
  else at.level.value = 0;
}

at.stop.addEventListener("click", stop);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stop();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && at.speak.contains(event.target)) {
    event.preventDefault();
    at.speak.requestSubmit();
  }
});

at.save.addEventListener("click", () => {
  const link = Object.assign(document.createElement("a"), {
    href: URL.createObjectURL(speech.player.wav()),
    download: "speech.wav",
  });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
});

// ---- voices

at.remove.addEventListener("click", async () => {
  const name = at.voice.value;
  if (!confirm(`Delete the voice ${name}? Its file is removed.`)) return;
  try {
    await call(`v1/audio/voices/${encodeURIComponent(name)}`, { method: "DELETE" });
    say(at.said, `${name} is deleted.`);
    await load();
  } catch (error) {
    say(at.said, error.message, true);
  }
});

async function take(blob) {
  recording = null;
  at.heard.hidden = true;
  try {
    const made = await asWav(blob);
    if (made.seconds > LONGEST) throw new Error(`${made.seconds.toFixed(1)} s are too long; ${LONGEST} s at most.`);
    recording = made.blob;
    URL.revokeObjectURL(at.heard.src);
    at.heard.src = URL.createObjectURL(made.blob);
    at.heard.hidden = false;
    say(at.saved, `${made.seconds.toFixed(1)} s recorded.`);
  } catch (error) {
    const unreadable = error instanceof DOMException;
    say(at.saved, unreadable ? "This file holds no sound that the browser can read." : error.message, true);
  }
}

at.file.addEventListener("change", () => at.file.files[0] && take(at.file.files[0]));

if (!navigator.mediaDevices || !window.MediaRecorder) {
  at.record.disabled = true;
  at.record.title = "Recording needs https, or this page at localhost.";
}
at.record.addEventListener("click", async () => {
  try {
    if (recorder) {
      const ended = recorder;
      recorder = null;
      pressed(false);
      await take(await ended.stop());
    } else {
      recorder = await Recorder.start();
      pressed(true);
      say(at.saved, "Recording …");
    }
  } catch (error) {
    pressed(false);
    say(at.saved, `No recording: ${error.message}`, true);
  }
});

function pressed(is) {
  at.record.setAttribute("aria-pressed", is);
  at.record.textContent = is ? "Stop recording" : "Record";
}

at.add.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (!recording) return say(at.saved, "Record something, or choose a sound file.", true);
  const form = new FormData();
  form.append("name", at.name.value);
  form.append("text", at.words.value);
  form.append("audio", recording, "recording.wav");
  say(at.saved, "Saving …");
  try {
    const { name } = await (await call("v1/audio/voices", { method: "POST", body: form })).json();
    say(at.saved, `${name} is saved.`);
    at.add.reset();
    at.heard.hidden = true;
    recording = null;
    await load(name);
    say(at.said, "");
  } catch (error) {
    say(at.saved, error.message, true);
  }
});

start();
