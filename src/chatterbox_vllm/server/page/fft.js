// The fast Fourier transform: radix 2, in place.

export class Fft {
  /** @param {number} size a power of two */
  constructor(size) {
    this.size = size;
    this.real = new Float32Array(size);
    this.imaginary = new Float32Array(size);
    this.cosines = Float32Array.from({ length: size / 2 }, (_, i) => Math.cos((2 * Math.PI * i) / size));
    this.sines = Float32Array.from({ length: size / 2 }, (_, i) => -Math.sin((2 * Math.PI * i) / size));
    const bits = Math.log2(size);
    this.reversed = Uint16Array.from({ length: size }, (_, i) => {
      let turned = 0;
      for (let bit = 0; bit < bits; bit++) turned |= ((i >> bit) & 1) << (bits - 1 - bit);
      return turned;
    });
  }

  /** Powers of the first half of the spectrum of `real`, which holds the input in `reversed` order. */
  powers(into) {
    const { size, real, imaginary, cosines, sines } = this;
    imaginary.fill(0);
    for (let half = 1; half < size; half *= 2) {
      const stride = size / (2 * half);
      for (let start = 0; start < size; start += 2 * half) {
        for (let i = 0; i < half; i++) {
          const a = start + i;
          const b = a + half;
          const cosine = cosines[i * stride];
          const sine = sines[i * stride];
          const x = real[b] * cosine - imaginary[b] * sine;
          const y = real[b] * sine + imaginary[b] * cosine;
          real[b] = real[a] - x;
          imaginary[b] = imaginary[a] - y;
          real[a] += x;
          imaginary[a] += y;
        }
      }
    }
    for (let bin = 0; bin < size / 2; bin++) into[bin] = real[bin] ** 2 + imaginary[bin] ** 2;
  }
}
