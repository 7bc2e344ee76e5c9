// The spectrum of samples, in bands, computed once for each stretch that comes.

import { Fft } from "./fft.js";
import { Growing, RATE } from "./samples.js";

export const HOP = 120; // samples from one column to the next: 5 ms
export const BANDS = 96;

const SIZE = 1024;
const WINDOW = 720; // samples: 30 ms
const LOWEST = 50; // Hz
const FLOOR_DB = -86; // below full scale: drawn as nothing
const CEILING_DB = -20;

const toMel = (hertz) => 2595 * Math.log10(1 + hertz / 700);
const toHertz = (mel) => 700 * (10 ** (mel / 2595) - 1);

const fft = new Fft(SIZE);
const powers = new Float32Array(SIZE / 2);
const hann = Float32Array.from({ length: WINDOW }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * (i + 0.5)) / WINDOW));
// Bins of each band, at least one, from LOWEST to the highest frequency there is, evenly in mel.
const edges = Array.from({ length: BANDS + 1 }, (_, i) => {
  const mel = toMel(LOWEST) + ((toMel(RATE / 2) - toMel(LOWEST)) * i) / BANDS;
  return Math.floor((toHertz(mel) * SIZE) / RATE);
});

/** The place of a frequency among the bands, 0 to 1. */
export const heightOf = (hertz) => (toMel(hertz) - toMel(LOWEST)) / (toMel(RATE / 2) - toMel(LOWEST));

export class Analysis {
  constructor() {
    this.samples = new Growing(Int16Array);
    this.bands = new Growing(Uint8Array); // BANDS of each column, the lowest first; 255 is loud
  }

  /** Columns that are known in full. */
  get columns() {
    return this.bands.length / BANDS;
  }

  get seconds() {
    return this.samples.length / RATE;
  }

  add(samples) {
    this.samples.push(samples);
    while ((this.columns + 1) * HOP <= this.samples.length) this.#column(this.columns * HOP);
  }

  #column(start) {
    // The window ends with the column, so that nothing waits for what follows.
    const first = start + HOP - WINDOW;
    fft.real.fill(0);
    for (let i = Math.max(0, -first); i < WINDOW; i++) {
      fft.real[fft.reversed[i]] = (this.samples.room[first + i] / 32768) * hann[i];
    }
    fft.powers(powers);
    this.bands.push(Uint8Array.from({ length: BANDS }, (_, band) => brightness(edges[band], edges[band + 1])));
  }
}

/** 0 to 255 for the loudest of some bins. */
function brightness(first, end) {
  let power = 0;
  for (let bin = first; bin < Math.max(end, first + 1); bin++) power = Math.max(power, powers[bin]);
  const decibels = 10 * Math.log10(power / (WINDOW / 4) ** 2 + 1e-12);
  return Math.max(0, Math.min(255, Math.round((255 * (decibels - FLOOR_DB)) / (CEILING_DB - FLOOR_DB))));
}
