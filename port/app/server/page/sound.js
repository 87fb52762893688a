// Sound in the page: a player fed with samples as they arrive, a recorder, and wav files.

const AHEAD = 0.08; // seconds between the arrival of the first samples and their sound

/** Plays 16-bit samples without gaps while more arrive, and keeps them. */
export class Player {
  constructor(rate) {
    this.rate = rate;
    this.context = new AudioContext();
    this.analyser = this.context.createAnalyser();
    this.analyser.connect(this.context.destination);
    this.chunks = [];
    this.samples = 0;
    this.ranDry = 0;
    this.end = 0; // of what was scheduled, in the context's time
    this.rest = new Uint8Array(0); // half of a sample
  }

  /** Bytes as the network cuts them. */
  push(bytes) {
    const joined = new Uint8Array(this.rest.length + bytes.length);
    joined.set(this.rest);
    joined.set(bytes, this.rest.length);
    const whole = joined.length & ~1;
    this.rest = joined.slice(whole);
    if (!whole) return;
    const view = new DataView(joined.buffer, 0, whole);
    const chunk = Int16Array.from({ length: whole / 2 }, (_, i) => view.getInt16(2 * i, true));
    const buffer = this.context.createBuffer(1, chunk.length, this.rate);
    buffer.copyToChannel(Float32Array.from(chunk, (sample) => sample / 32768), 0);
    const source = this.context.createBufferSource();
    source.buffer = buffer;
    source.connect(this.analyser);
    const now = this.context.currentTime;
    if (this.end < now) {
      this.ranDry += this.samples ? 1 : 0;
      this.end = now + AHEAD;
    }
    source.start(this.end);
    this.end += buffer.duration;
    this.chunks.push(chunk);
    this.samples += chunk.length;
  }

  /** Largest sample of what sounds now, 0 to 1. */
  level() {
    const wave = new Float32Array(this.analyser.fftSize);
    this.analyser.getFloatTimeDomainData(wave);
    return wave.reduce((largest, sample) => Math.max(largest, Math.abs(sample)), 0);
  }

  get seconds() {
    return this.samples / this.rate;
  }

  get left() {
    return Math.max(0, this.end - this.context.currentTime);
  }

  stop() {
    if (this.context.state !== "closed") this.context.close();
  }

  wav() {
    return wav(this.chunks, this.rate);
  }
}

/** A wav file of 16-bit mono chunks. */
export function wav(chunks, rate) {
  const bytes = 2 * chunks.reduce((sum, chunk) => sum + chunk.length, 0);
  const view = new DataView(new ArrayBuffer(44 + bytes));
  const text = (at, letters) => [...letters].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF"), view.setUint32(4, 36 + bytes, true), text(8, "WAVEfmt ");
  view.setUint32(16, 16, true), view.setUint16(20, 1, true), view.setUint16(22, 1, true);
  view.setUint32(24, rate, true), view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true), view.setUint16(34, 16, true);
  text(36, "data"), view.setUint32(40, bytes, true);
  let at = 44;
  for (const chunk of chunks) for (const sample of chunk) view.setInt16(at, sample, true), (at += 2);
  return new Blob([view], { type: "audio/wav" });
}

/** Any sound that the browser can decode, as a mono wav; also its seconds. */
export async function asWav(blob, rate = 24000) {
  const decoder = new OfflineAudioContext(1, 1, rate); // which decodes at its own rate
  const decoded = await decoder.decodeAudioData(await blob.arrayBuffer());
  const mixed = new OfflineAudioContext(1, decoded.length, rate);
  const source = mixed.createBufferSource();
  source.buffer = decoded;
  source.connect(mixed.destination);
  source.start();
  const samples = (await mixed.startRendering()).getChannelData(0);
  const chunk = Int16Array.from(samples, (sample) => Math.round(32767 * Math.max(-1, Math.min(1, sample))));
  return { blob: wav([chunk], rate), seconds: decoded.duration };
}

/** Records the microphone until `stop`, which gives the sound as the browser packs it. */
export class Recorder {
  static async start() {
    const made = new Recorder();
    made.stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    made.recorder = new MediaRecorder(made.stream);
    made.parts = [];
    made.recorder.ondataavailable = (event) => made.parts.push(event.data);
    made.recorder.start();
    return made;
  }

  async stop() {
    const ended = new Promise((resolve) => (this.recorder.onstop = resolve));
    this.recorder.stop();
    await ended;
    this.stream.getTracks().forEach((track) => track.stop());
    return new Blob(this.parts, { type: this.recorder.mimeType });
  }
}
