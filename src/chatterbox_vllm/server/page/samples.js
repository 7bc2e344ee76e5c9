// Arrays that grow, and samples as files.

export const RATE = 24_000; // of the audio that the server sends, in Hz

/** A typed array to which more is added. */
export class Growing {
  constructor(Type) {
    this.length = 0;
    this.room = new Type(1 << 14);
  }

  push(values) {
    const needed = this.length + values.length;
    if (needed > this.room.length) {
      const larger = new this.room.constructor(2 ** Math.ceil(Math.log2(needed)));
      larger.set(this.room.subarray(0, this.length));
      this.room = larger;
    }
    this.room.set(values, this.length);
    this.length = needed;
  }

  part(start, end = this.length) {
    return this.room.subarray(start, Math.min(end, this.length));
  }
}

/** Reads 16-bit little-endian samples from bytes that arrive in pieces of any size. */
export class PcmReader {
  constructor() {
    this.odd = new Uint8Array(0);
  }

  /** The samples that are whole by now, int16. */
  read(bytes) {
    const all = new Uint8Array(this.odd.length + bytes.length);
    all.set(this.odd);
    all.set(bytes, this.odd.length);
    const whole = all.length >> 1;
    this.odd = all.slice(2 * whole);
    const view = new DataView(all.buffer);
    return Int16Array.from({ length: whole }, (_, i) => view.getInt16(2 * i, true));
  }
}

/** Samples as a WAV file: one channel, 16 bits. */
export function wavFile(samples) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const write = (place, word) => [...word].forEach((letter, i) => view.setUint8(place + i, letter.charCodeAt(0)));
  write(0, "RIFF");
  view.setUint32(4, 36 + 2 * samples.length, true);
  write(8, "WAVEfmt ");
  view.setUint32(16, 16, true); // bytes of the format
  view.setUint16(20, 1, true); // plain integers
  view.setUint16(22, 1, true); // channels
  view.setUint32(24, RATE, true);
  view.setUint32(28, 2 * RATE, true); // bytes in a second
  view.setUint16(32, 2, true); // bytes of a sample
  view.setUint16(34, 16, true);
  write(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  samples.forEach((sample, i) => view.setInt16(44 + 2 * i, sample, true));
  return new Blob([view], { type: "audio/wav" });
}
