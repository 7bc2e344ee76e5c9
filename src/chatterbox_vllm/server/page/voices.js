// Who speaks: voices of the server, and clips of this visit.

import { ask, getJson } from "./api.js";
import { Clip, asDataUrl, play } from "./clips.js";
import { $ } from "./dom.js";
import * as problems from "./problems.js";
import { recordWith } from "./recording.js";

const GROUPS = { clip: "This visit", library: "Library", model: "The model’s own", alias: "Other names for them" };
const DEFAULT = "default";
const LARGEST_CLIP = 10 * 2 ** 20; // bytes that the server takes for its library

export class Voices {
  constructor() {
    this.clips = [];
    this.model = null; // the name of the one that is to speak
    this.listed = []; // as the server lists them for it
    this.mostBytes = LARGEST_CLIP;
    $("voice").addEventListener("change", () => this.#showChosen());
    $("clip-play").addEventListener("click", () => this.#hear());
    $("voice-remove").addEventListener("click", () => this.#remove());
    $("choose").addEventListener("click", () => $("file").click());
    $("file").addEventListener("change", () => {
      this.add($("file").files[0]);
      $("file").value = ""; // so that the same file can be chosen again
    });
    recordWith(
      $("record"),
      $("level"),
      (file) => this.add(file),
      (error) => this.#fail(error),
    );
    this.#takeDrops();
  }

  /** The clip that is chosen; undefined where it is a voice of the server. */
  get chosenClip() {
    return this.clips.find((clip) => clip.id === $("voice").value);
  }

  /** What is chosen: fields for a request, and a name for people. */
  get chosen() {
    const clip = this.chosenClip;
    if (clip) return { fields: { ref_audio: clip.data }, name: clip.name };
    return { fields: { voice: $("voice").value }, name: $("voice").selectedOptions[0]?.label ?? DEFAULT };
  }

  /** Choose what a request of before had. */
  choose({ ref_audio: data, voice }) {
    const value = this.clips.find((clip) => clip.data === data)?.id ?? voice;
    if ([...$("voice").options].some((option) => option.value === value)) $("voice").value = value;
    this.#showChosen();
  }

  /**
   * Ask the server for the voices of a model.
   * @param {string} [model] its name
   * @param {string} [choose] the voice to choose then
   */
  async load(model = this.model, choose = $("voice").value) {
    this.model = model;
    const { voices } = await getJson(`/v1/audio/voices?model=${encodeURIComponent(model)}`);
    if (this.model !== model) return; // another was chosen meanwhile
    this.listed = voices;
    this.#list(choose);
  }

  /** Take a file as a voice and choose it. */
  async add(file) {
    problems.clear();
    try {
      const clip = await Clip.of(file, this.mostBytes);
      this.clips.push(clip);
      this.#list(clip.id);
    } catch (error) {
      this.#fail(error);
    }
  }

  #list(choose) {
    const clips = this.clips.map(({ id, name }) => ({ id, name, kind: "clip" }));
    const voices = [...clips, ...this.listed];
    const groups = Object.entries(GROUPS).map(([kind, label]) =>
      group(
        label,
        voices.filter((voice) => voice.kind === kind),
      ),
    );
    $("voice").replaceChildren(...groups.filter((each) => each.children.length));
    const known = voices.some((voice) => voice.id === choose);
    $("voice").value = known ? choose : DEFAULT;
    this.#showChosen();
  }

  #showChosen() {
    const clip = this.chosenClip;
    const voice = this.#chosenOfServer();
    $("clip").hidden = !clip && !voice?.preview;
    $("clip-words").textContent = clip?.words ?? "A clip of the speaker";
    $("clip-keep").hidden = !clip;
    $("voice-remove").hidden = voice?.kind !== "library";
  }

  #chosenOfServer() {
    return this.listed.find((voice) => voice.id === $("voice").value);
  }

  /** Play the chosen clip, or the preview that the server keeps of the voice. */
  async #hear() {
    problems.clear();
    try {
      const clip = this.chosenClip?.data ?? (await asDataUrl(await (await ask(this.#chosenOfServer().preview)).blob()));
      await play(clip);
    } catch (error) {
      this.#fail(error);
    }
  }

  async #remove() {
    const { id, name } = this.#chosenOfServer();
    if (!confirm(`Remove the voice “${name}” from the server’s library, for everyone?`)) return;
    problems.clear();
    try {
      await ask(`/v1/audio/voices/${encodeURIComponent(id)}`, { method: "DELETE" });
      await this.load(this.model, DEFAULT);
      $("voice").focus();
    } catch (error) {
      problems.show(error, "voice-problem");
    }
  }

  #takeDrops() {
    let inside = 0; // dragenter and dragleave come for each element below, too
    const show = (change) => {
      inside = change === null ? 0 : inside + change;
      $("drop").classList.toggle("over", inside > 0);
    };
    const holdsFiles = (event) => event.dataTransfer.types.includes("Files");
    document.addEventListener("dragenter", (event) => holdsFiles(event) && show(1));
    document.addEventListener("dragleave", (event) => holdsFiles(event) && show(-1));
    document.addEventListener("dragover", (event) => holdsFiles(event) && event.preventDefault());
    document.addEventListener("drop", (event) => {
      if (!holdsFiles(event)) return;
      event.preventDefault();
      show(null);
      this.add(event.dataTransfer.files[0]);
    });
  }

  #fail(error) {
    problems.show(error, "clip-problem");
  }
}

function group(label, voices) {
  const element = document.createElement("optgroup");
  element.label = label;
  for (const { id, name, speaks_as: meant } of voices) {
    element.append(new Option(meant ? `${name}: ${meant}` : name === DEFAULT ? "The model’s default" : name, id));
  }
  return element;
}
