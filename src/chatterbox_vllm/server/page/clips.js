// Clips of voices that were dropped, chosen or recorded here. They are sent with each request and kept nowhere else.

import { duration } from "./dom.js";

let count = 0;

export class Clip {
  /** Read a file. @param {File} file @param {number} most bytes that the server takes @throws {Error} with words */
  static async of(file, most) {
    if (!file.size) throw new Error(`${file.name} is empty.`);
    if (file.size > most) {
      throw new Error(
        `${file.name} has ${megabytes(file.size)}; the server takes ${megabytes(most)}. Cut it to 15 seconds.`,
      );
    }
    return new Clip(file, await asDataUrl(file), await secondsOf(file));
  }

  constructor(file, data, seconds) {
    count += 1;
    this.id = `clip:${count}`;
    this.file = file;
    this.data = data; // a data URL, which the server takes as `ref_audio`
    this.name = file.name;
    this.words = seconds === null ? "A clip of this visit" : `A clip of ${duration(seconds)}`;
  }
}

/** Play a clip, as far as the browser can. @param {string} data a data URL @throws {Error} with words */
export async function play(data) {
  try {
    await new Audio(data).play();
  } catch {
    throw new Error("This browser cannot play the clip. The server may still be able to read it.");
  }
}

const megabytes = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MB`;

export function asDataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${file.name ?? "The clip"} cannot be read.`));
    reader.readAsDataURL(file);
  });
}

/** Its length, or null where the browser cannot tell: the server reads more formats than browsers do. */
async function secondsOf(file) {
  const context = new OfflineAudioContext(1, 1, 24_000);
  const decoded = await file
    .arrayBuffer()
    .then((bytes) => context.decodeAudioData(bytes))
    .catch(() => null);
  return decoded?.duration ?? null;
}
