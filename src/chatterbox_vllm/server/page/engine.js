// What the engine is doing, asked for every few seconds while the page is seen.

import { health } from "./api.js";
import { $, duration } from "./dom.js";

const EVERY = 4_000; // milliseconds
const WORDS = {
  ok: "ready",
  loading: "loading the model",
  unloading: "going to sleep",
  asleep: "asleep until you speak",
  failed: "the model failed",
  closed: "closing",
};

export class Engine {
  /** @param {(model: string) => void} onReady is called when there is a model that was not there before */
  constructor(onReady) {
    this.onReady = onReady;
    this.wasReady = false;
    this.model = null; // the name of the one that is shown; null is the server's first
    document.addEventListener("visibilitychange", () => this.look());
    this.look();
  }

  /** Tell of this model from now on. */
  show(model) {
    if (this.model === model) return;
    this.model = model;
    this.look();
  }

  /** Ask now, and again from time to time. */
  async look() {
    clearTimeout(this.timer);
    if (document.hidden) return;
    try {
      this.#show(await health());
    } catch {
      this.wasReady = false;
      this.#tell("away", "the server does not answer");
      $("engine-where").textContent = $("engine-load").textContent = "";
      $("engine-facts").replaceChildren();
    }
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.look(), EVERY);
  }

  #show(found) {
    const model = this.model ?? found.model;
    const { status } = found.models[model];
    const { queue } = found;
    const waiting = (queue.queued ?? 0) + (queue.waiting_for_voice ?? 0);
    this.#tell(status, WORDS[status] ?? status);
    $("engine-where").textContent = found.device ? `${model} · ${found.device}` : model;
    const load = [];
    if (queue.unfinished) load.push(`${queue.unfinished} under way`);
    if (waiting) load.push(`${waiting} waiting`);
    $("engine-load").textContent = load.join(", ");
    $("engine-facts").replaceChildren(
      ...factsOf(found, model).flatMap(([name, value]) => [cell("dt", name), cell("dd", value)]),
    );
    if (found.ready && !this.wasReady) this.onReady();
    this.wasReady = found.ready;
  }

  #tell(state, words) {
    $("engine").dataset.state = state;
    if ($("engine-words").textContent !== words) $("engine-words").textContent = words;
  }
}

function factsOf({ model: first, models, device, queue, ...ofFirst }, model) {
  const { loads, failure } = models[model];
  const { tier, quantization } = model === first ? ofFirst : {}; // the server tells it of its first model alone
  const facts = [["Model", model]];
  if (device) facts.push(["Device", device]);
  if (tier) facts.push(["Tier", `${tier} GB`]);
  for (const [part, name] of [
    ["t3", "T3"],
    ["s3gen", "S3Gen"],
  ]) {
    if (quantization?.[part]) facts.push([name, quantization[part].method ?? "not quantized"]);
  }
  if (queue.uptime !== undefined) {
    facts.push(["Requests", `${queue.unfinished} under way, ${queue.completed} done, ${queue.failed} failed`]);
    facts.push(["Spoken", `${duration(queue.audio_seconds)} in ${duration(queue.uptime)}`]);
  }
  if (loads) facts.push(["Loaded again", loads === 1 ? "once" : `${loads} times`]);
  if (failure) facts.push(["Failure", failure]);
  return facts;
}

function cell(kind, words) {
  const element = document.createElement(kind);
  element.textContent = words;
  return element;
}
