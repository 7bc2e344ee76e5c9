// Records the microphone.

const LONGEST = 30; // seconds
const MEASURE_EVERY = 80; // milliseconds

/** Why it cannot record, in words for people. */
export class NoMicrophone extends Error {}

export class Recorder {
  /** @param {(seconds: number, level: number) => void} tick is told how it goes; level is 0 to 1 */
  constructor(tick) {
    this.tick = tick;
    this.recorder = null;
    this.isBusy = false; // from the question for permission to the end
  }

  /**
   * Record until `stop`, at most half a minute.
   * @returns {Promise<File>}
   * @throws {NoMicrophone}
   */
  async record() {
    this.isBusy = true;
    let stream = null;
    try {
      stream = await openMicrophone();
      return await this.#recordAll(stream);
    } finally {
      for (const track of stream?.getTracks() ?? []) track.stop();
      this.recorder = null;
      this.isBusy = false;
    }
  }

  async #recordAll(stream) {
    const recorder = new MediaRecorder(stream);
    const parts = [];
    recorder.addEventListener("dataavailable", (event) => parts.push(event.data));
    const ended = new Promise((resolve) => recorder.addEventListener("stop", resolve));
    const stopMeasuring = this.#measure(stream);
    this.recorder = recorder;
    recorder.start();
    await ended;
    stopMeasuring();
    const clock = new Date().toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
    return new File(parts, `Recording, ${clock}`, { type: recorder.mimeType });
  }

  stop() {
    this.recorder?.stop();
  }

  #measure(stream) {
    const context = new AudioContext();
    const analyser = new AnalyserNode(context, { fftSize: 2048 });
    context.createMediaStreamSource(stream).connect(analyser);
    const wave = new Float32Array(analyser.fftSize);
    const startedAt = performance.now();
    const timer = setInterval(() => {
      analyser.getFloatTimeDomainData(wave);
      const seconds = (performance.now() - startedAt) / 1000;
      this.tick(seconds, Math.min(1, 1.2 * Math.max(...wave.map(Math.abs))));
      if (seconds >= LONGEST) this.stop();
    }, MEASURE_EVERY);
    return () => {
      clearInterval(timer);
      context.close();
    };
  }
}

async function openMicrophone() {
  if (!isSecureContext || !navigator.mediaDevices) {
    throw new NoMicrophone(
      "Browsers give the microphone only to pages of this machine (http://localhost) or over https. Choose a file.",
    );
  }
  try {
    // As it sounds: what makes calls clearer changes a voice.
    const plain = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    return await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1, ...plain } });
  } catch (error) {
    const reasons = {
      NotAllowedError:
        "The browser was not allowed to use the microphone. Allow it in the browser’s settings for this page.",
      NotFoundError: "There is no microphone. Choose a file instead.",
      NotReadableError: "Another program holds the microphone. Close it and try again.",
    };
    throw new NoMicrophone(reasons[error.name] ?? `The microphone cannot be used (${error.message}).`);
  }
}
