// Plays samples that may still be arriving, without gaps: each part is scheduled for the sample after the last one.

import { RATE } from "./samples.js";

const LEAD = 0.06; // seconds from now to the first sample, so that it is not late
const LEAD_WHEN_DRY = 0.3; // after the stream was too slow once; twice that the next time, and so on
const MOST_DOUBLED = 4; // times

export class Player extends EventTarget {
  /** Fires "change" when it starts, pauses, ends or runs dry. */
  constructor() {
    super();
    this.samples = null; // a Growing of int16
    this.complete = false;
    this.playing = false;
    this.dry = 0; // times that the next part came too late
    this.sources = new Set();
    this.place = 0; // where it stands while it does not play, in samples
  }

  /** Take other samples; `complete` tells whether more will come. */
  load(samples, complete) {
    this.pause();
    this.samples = samples;
    this.complete = complete;
    this.dry = 0;
    this.place = 0;
  }

  /** Make the browser's audio ready. Call it while the user presses something: else browsers refuse. */
  async wake() {
    if (!this.context) {
      this.context = new AudioContext({ sampleRate: RATE, latencyHint: "interactive" });
      this.context.addEventListener("statechange", () => this.more());
    }
    if (this.context.state !== "running") await this.context.resume();
  }

  /** Where it is, in samples. */
  get position() {
    if (!this.playing || this.startedAt === null) return this.place;
    const heard = this.from + Math.floor((this.context.currentTime - this.startedAt) * RATE);
    return Math.max(this.from, Math.min(heard, this.scheduled));
  }

  /** Play from here; at the end from the start. @throws {Error} the browser has no way to */
  async play() {
    if (this.playing || !this.samples) return;
    this.playing = true;
    if (this.complete && this.place >= this.samples.length) this.place = 0;
    this.from = this.scheduled = this.place;
    this.startedAt = null;
    try {
      await this.wake();
      this.more();
    } catch (error) {
      this.playing = false;
      throw error;
    } finally {
      this.#changed();
    }
  }

  pause() {
    if (!this.playing) return;
    this.place = this.position;
    this.playing = false;
    this.#silence();
    this.#changed();
  }

  seek(sample) {
    const wasPlaying = this.playing;
    this.playing = false;
    this.#silence();
    this.place = Math.max(0, Math.min(sample, this.samples?.length ?? 0));
    if (wasPlaying) this.play();
  }

  /** Schedule what has arrived since. */
  more() {
    if (!this.playing || this.context?.state !== "running") return;
    const part = this.samples.part(this.scheduled);
    if (part.length) {
      this.#schedule(part);
    } else if (this.complete && !this.sources.size) {
      this.#end();
    }
  }

  /** No more samples will come. */
  finish() {
    this.complete = true;
    this.more();
  }

  #schedule(part) {
    const now = this.context.currentTime;
    const isFirst = this.startedAt === null;
    let at = isFirst ? now + LEAD : this.startedAt + (this.scheduled - this.from) / RATE;
    const isDry = at < now;
    if (isDry) {
      at = now + LEAD_WHEN_DRY * 2 ** Math.min(this.dry, MOST_DOUBLED);
      this.dry += 1;
    }
    if (isFirst || isDry) {
      this.startedAt = at;
      this.from = this.scheduled;
    }
    const buffer = this.context.createBuffer(1, part.length, RATE);
    buffer.getChannelData(0).set(Float32Array.from(part, (sample) => sample / 32768));
    const source = new AudioBufferSourceNode(this.context, { buffer });
    source.connect(this.context.destination);
    source.onended = () => {
      this.sources.delete(source);
      this.more();
    };
    source.start(at);
    this.sources.add(source);
    this.scheduled += part.length;
  }

  #silence() {
    for (const source of this.sources) {
      source.onended = null;
      source.stop();
    }
    this.sources.clear();
  }

  #end() {
    this.playing = false;
    this.place = this.samples.length;
    this.#changed();
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}
