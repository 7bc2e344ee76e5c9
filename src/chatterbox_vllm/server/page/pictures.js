// Draws an Analysis: the waveform over the spectrogram, on one axis of time.

import { BANDS, HOP, heightOf } from "./analysis.js";
import { RATE } from "./samples.js";

const MARKS = { "500 Hz": 500, "2 kHz": 2000, "8 kHz": 8000 };
const STEPS = [0.5, 1, 2, 5, 10, 20, 60, 120]; // seconds between marks of time
const MARK_ROOM = 80; // pixels that a mark of time takes at least

export class Pictures {
  /**
   * @param {{waveform: HTMLCanvasElement, spectrogram: HTMLCanvasElement, times: Element, pitches: Element}} places
   */
  constructor({ waveform, spectrogram, times, pitches }) {
    this.waveform = waveform.getContext("2d");
    this.spectrogram = spectrogram.getContext("2d");
    this.times = times;
    pitches.append(...Object.entries(MARKS).map(([words, hertz]) => mark(words, "bottom", heightOf(hertz))));
    this.analysis = null;
    this.span = 1; // seconds that the width stands for
    this.drawn = 0; // pixels from the left that need no drawing
    new ResizeObserver(() => this.redraw()).observe(spectrogram);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
  }

  /** Show another analysis, of which `span` seconds are expected. */
  show(analysis, span) {
    this.analysis = analysis;
    this.span = span;
    this.redraw();
  }

  /** Draw what has come since, and make room for it where it takes more than the width. */
  update() {
    if (this.analysis.seconds > this.span) this.show(this.analysis, this.analysis.seconds * 1.3);
    else this.#draw();
  }

  redraw() {
    for (const context of [this.waveform, this.spectrogram]) fit(context);
    const style = getComputedStyle(this.waveform.canvas);
    this.colour = style.getPropertyValue("--accent");
    this.faint = style.getPropertyValue("--faint");
    this.shades = shades([style.getPropertyValue("--stage"), this.colour, style.getPropertyValue("--ink")]);
    this.drawn = 0;
    this.#line();
    if (this.analysis) this.#draw();
    this.#marks();
  }

  #draw() {
    const { width } = this.spectrogram.canvas;
    const perPixel = (this.span * RATE) / width; // samples
    const known = (this.analysis.columns - 1) * HOP; // what is drawn lies between two columns
    const end = Math.min(width, Math.floor(known / perPixel));
    if (end <= this.drawn) return;
    this.#drawWaveform(this.drawn, end, perPixel);
    this.#drawSpectrogram(this.drawn, end, perPixel / HOP);
    this.drawn = end;
  }

  #drawWaveform(start, end, perPixel) {
    const { height } = this.waveform.canvas;
    const scale = (0.94 * height) / 65536;
    this.waveform.fillStyle = this.colour;
    for (let x = start; x < end; x++) {
      let low = 0;
      let high = 0;
      for (const sample of this.analysis.samples.part(Math.floor(x * perPixel), Math.ceil((x + 1) * perPixel))) {
        if (sample < low) low = sample;
        else if (sample > high) high = sample;
      }
      this.waveform.fillRect(x, height / 2 - scale * high, 1, Math.max(1, scale * (high - low)));
    }
  }

  #drawSpectrogram(start, end, perPixel) {
    const { height } = this.spectrogram.canvas;
    const image = this.spectrogram.createImageData(end - start, height);
    const pixels = new Uint32Array(image.data.buffer);
    const column = new Float32Array(BANDS);
    for (let x = start; x < end; x++) {
      this.#column(x * perPixel, perPixel, column);
      for (let y = 0; y < height; y++) {
        const place = Math.max(0, ((height - 0.5 - y) / height) * BANDS - 0.5);
        const value = between(column[Math.floor(place)], column[Math.min(BANDS - 1, Math.ceil(place))], place % 1);
        pixels[y * image.width + x - start] = this.shades[Math.round(value)];
      }
    }
    this.spectrogram.putImageData(image, start, 0);
  }

  /** Bands at a place among the columns: between two of them, or the loudest where a pixel shows many. */
  #column(place, perPixel, into) {
    const { bands } = this.analysis;
    const first = Math.floor(place);
    const count = Math.max(2, Math.ceil(perPixel));
    const part = bands.part(first * BANDS, (first + count) * BANDS);
    if (perPixel <= 1) {
      for (let band = 0; band < BANDS; band++) into[band] = between(part[band], part[BANDS + band], place % 1);
      return;
    }
    into.fill(0);
    part.forEach((value, i) => {
      if (value > into[i % BANDS]) into[i % BANDS] = value;
    });
  }

  /** The middle of the waveform, where nothing is drawn yet. */
  #line() {
    const { width, height } = this.waveform.canvas;
    this.waveform.fillStyle = this.faint;
    this.waveform.fillRect(0, Math.round(height / 2), width, 1);
  }

  #marks() {
    const second = this.times.clientWidth / this.span; // pixels
    const step = STEPS.find((seconds) => seconds * second >= MARK_ROOM) ?? 300;
    const marks = [];
    for (let seconds = step; this.analysis && (this.span - seconds) * second >= MARK_ROOM / 2; seconds += step) {
      marks.push(mark(`${seconds} s`, "left", seconds / this.span));
    }
    this.times.replaceChildren(...marks);
  }
}

function mark(words, side, share) {
  const span = document.createElement("span");
  span.textContent = words;
  span.style[side] = `${100 * share}%`;
  return span;
}

const between = (a, b, share) => a + (b - a) * share;

/** Make a canvas as fine as the screen, and empty. */
function fit({ canvas }) {
  canvas.width = Math.max(1, Math.round(canvas.clientWidth * devicePixelRatio));
  canvas.height = Math.max(1, Math.round(canvas.clientHeight * devicePixelRatio));
}

/** 256 pixels from the first colour through the second to the third; colours are #rrggbb. */
function shades(colours) {
  const stops = colours.map((colour) => [1, 3, 5].map((i) => parseInt(colour.trim().slice(i, i + 2), 16)));
  return Uint32Array.from({ length: 256 }, (_, i) => {
    const place = (i / 255) * (stops.length - 1);
    const from = stops[Math.min(Math.floor(place), stops.length - 2)];
    const to = stops[Math.min(Math.floor(place), stops.length - 2) + 1];
    const share = place - Math.min(Math.floor(place), stops.length - 2);
    const [r, g, b] = from.map((value, channel) => Math.round(value + (to[channel] - value) * share));
    return ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
  });
}
