// One text as it is spoken: what was asked for, and what arrives.

import { Analysis } from "./analysis.js";
import { Failure, postSpeech } from "./api.js";
import { PcmReader } from "./samples.js";

const CHARACTERS_PER_SECOND = 14; // of speech; only a guess at how wide to draw

export class Utterance {
  /**
   * @param {object} fields what is posted, without the format
   * @param {string} voice its name, for people
   */
  constructor(fields, voice) {
    this.fields = fields;
    this.voice = voice;
    this.analysis = new Analysis();
    this.startedAt = performance.now();
    this.firstAudio = null; // seconds from the request to the first bytes
    this.arrival = null; // seconds from the request to the last bytes
    this.state = "waiting"; // then "streaming"; at last "whole", or "cut" where it was stopped or broke
  }

  get samples() {
    return this.analysis.samples;
  }

  get seconds() {
    return this.analysis.seconds;
  }

  /** How many seconds to expect. */
  get guess() {
    return Math.max(1.5, this.fields.input.length / CHARACTERS_PER_SECOND / (this.fields.speed ?? 1));
  }

  /** Whether no more will come. */
  get ended() {
    return this.state === "whole" || this.state === "cut";
  }

  /**
   * Fetch it, part by part.
   * @param {AbortSignal} signal ends it; the server then stops speaking
   * @param {() => void} heard is called after each part
   * @throws {Failure} it was refused, or broke on the way
   */
  async receive(signal, heard) {
    try {
      const answer = await postSpeech({ ...this.fields, response_format: "pcm", stream: true }, signal);
      this.fields = { ...this.fields, seed: answer.headers.get("x-chatterbox-seed") };
      const reader = answer.body.getReader();
      const pcm = new PcmReader();
      for (let part = await reader.read(); !part.done; part = await reader.read()) {
        this.firstAudio ??= this.#elapsed();
        this.state = "streaming";
        this.analysis.add(pcm.read(part.value));
        heard();
      }
      this.state = "whole";
    } catch (error) {
      this.state = "cut";
      if (error instanceof Failure || error.name === "AbortError") throw error;
      const rest = this.seconds ? " What has come can be heard." : "";
      throw new Failure(`The speech broke off: the server failed, or the network did.${rest}`);
    } finally {
      this.arrival = this.#elapsed();
    }
  }

  /** The same once more in another format, from the server, with the same seed. */
  async encoded(format) {
    return (await postSpeech({ ...this.fields, response_format: format, stream: true })).blob();
  }

  #elapsed() {
    return (performance.now() - this.startedAt) / 1000;
  }
}
