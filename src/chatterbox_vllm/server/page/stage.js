// What is heard at the moment: its pictures, its controls, its downloads.

import { $, clock, duration, save } from "./dom.js";
import { Pictures } from "./pictures.js";
import { Player } from "./player.js";
import * as problems from "./problems.js";
import { RATE, wavFile } from "./samples.js";

const SLOW_TICK = 250; // milliseconds between moves of the place, for people who want less motion

export class Stage {
  constructor() {
    this.utterance = null;
    this.here = null; // what the place and the clock show
    this.player = new Player();
    this.pictures = new Pictures({
      waveform: $("waveform"),
      spectrogram: $("spectrogram"),
      times: $("times"),
      pitches: $("pitches"),
    });
    this.player.addEventListener("change", () => this.#showPlaying());
    $("play").addEventListener("click", () => (this.player.playing ? this.player.pause() : this.#play()));
    $("place").addEventListener("input", () => {
      this.player.seek(Math.round($("place").valueAsNumber * RATE));
      this.#showPlace();
    });
    $("format").addEventListener("change", () => this.#showFormat());
    $("download").addEventListener("click", () => this.download(this.utterance));
    this.#showFormat();
  }

  /** Take an utterance, which may still be arriving, and play it. */
  open(utterance) {
    this.show(utterance);
    this.#play();
  }

  /** Take an utterance. */
  show(utterance) {
    this.utterance = utterance;
    this.player.load(utterance.samples, utterance.ended);
    this.pictures.show(utterance.analysis, utterance.ended ? utterance.seconds : utterance.guess);
    this.update();
  }

  /** Show what has arrived of the utterance. */
  update() {
    const { utterance, player } = this;
    $("stage").dataset.state = utterance.state;
    if (utterance.ended && !player.complete) {
      player.finish();
      this.pictures.show(utterance.analysis, Math.max(utterance.seconds, 0.1));
    } else {
      player.more();
      this.pictures.update();
    }
    $("play").disabled = !utterance.samples.length;
    $("download").disabled = !utterance.ended || !utterance.samples.length;
    this.#showPlace();
    this.#showSaid();
  }

  /** Show another utterance or nothing, if it shows this one. */
  forget(utterance, other = null) {
    if (this.utterance !== utterance) return;
    if (other) {
      this.show(other);
      return;
    }
    this.player.load(null, true);
    this.utterance = this.here = null;
    this.pictures.show(null, 1);
    $("stage").dataset.state = "empty";
    $("play").disabled = $("download").disabled = $("place").disabled = true;
    $("said").textContent = "";
    $("clock").textContent = clock(0);
  }

  /** Save an utterance in the chosen format. */
  async download(utterance) {
    problems.clear();
    const format = $("format").value;
    const button = $("download");
    button.disabled = true;
    try {
      const blob = format === "wav" ? wavFile(utterance.samples.part(0)) : await utterance.encoded(format);
      save(blob, `speech-${utterance.fields.seed}.${format}`);
    } catch (error) {
      problems.show({ ...error, param: null, message: error.message }, "download-problem");
    } finally {
      button.disabled = !this.utterance;
    }
  }

  async #play() {
    try {
      await this.player.play();
    } catch (error) {
      problems.show(
        new Error(`This browser cannot play it (${error.message}). It can be downloaded.`),
        "download-problem",
      );
    }
  }

  #showPlaying() {
    const { playing } = this.player;
    $("play").setAttribute("aria-label", playing ? "Pause" : "Play");
    $("stage").classList.toggle("playing", playing);
    if (playing) this.#follow();
    else this.#showPlace();
    if (this.utterance) this.#showSaid();
  }

  #follow() {
    if (!this.player.playing) return;
    this.#showPlace();
    const next = () => this.#follow();
    clearTimeout(this.timer);
    cancelAnimationFrame(this.frame);
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) this.timer = setTimeout(next, SLOW_TICK);
    else this.frame = requestAnimationFrame(next);
  }

  #showPlace() {
    const { utterance, player } = this;
    if (!utterance) return;
    const seconds = player.position / RATE;
    const here = `${seconds} ${utterance.seconds} ${this.pictures.span}`;
    if (here === this.here) return; // nothing to draw
    this.here = here;
    const place = $("place");
    place.disabled = !utterance.samples.length;
    place.max = this.pictures.span;
    place.value = seconds;
    place.setAttribute("aria-valuetext", `${clock(seconds)} of ${clock(utterance.seconds)}`);
    const words = `${clock(seconds)} / ${clock(utterance.seconds)}`;
    if ($("clock").textContent !== words) $("clock").textContent = words;
  }

  #showSaid() {
    const { utterance, player } = this;
    const { firstAudio, arrival, seconds, state } = utterance;
    const facts = [];
    if (state === "waiting") facts.push("Waiting for the first audio");
    if (firstAudio !== null) facts.push(`First audio after ${duration(firstAudio)}`);
    if (state === "streaming") facts.push("more is coming");
    if (utterance.ended && seconds) {
      facts.push(
        `${duration(seconds)} of speech in ${duration(arrival)} (${(seconds / arrival).toFixed(1)} × real time)`,
      );
    }
    if (state === "cut") facts.push(seconds ? "cut short" : "nothing was spoken");
    if (player.dry) facts.push(`ran dry ${player.dry === 1 ? "once" : `${player.dry} times`}`);
    if (utterance.fields.seed) facts.push(`seed ${utterance.fields.seed}`);
    const words = facts.join(" · ");
    if ($("said").textContent !== words) $("said").textContent = words; // else it is read out again
  }

  #showFormat() {
    const isWav = $("format").value === "wav";
    $("format-note").textContent = isWav
      ? "WAV is what you heard, sample for sample."
      : "The server speaks this format anew, with the same seed.";
  }
}
