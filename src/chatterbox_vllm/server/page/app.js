// The page: from what is typed and chosen to what is heard.

import { Failure, getJson, key } from "./api.js";
import { $ } from "./dom.js";
import { Engine } from "./engine.js";
import { Fields } from "./fields.js";
import { KeepDialog } from "./keep.js";
import { Models } from "./models.js";
import * as problems from "./problems.js";
import { Utterance } from "./speech.js";
import { Stage } from "./stage.js";
import { Visit } from "./visit.js";
import { Voices } from "./voices.js";

const FORMATS = { wav: "WAV", mp3: "MP3", opus: "Opus", flac: "FLAC", aac: "AAC" };

const models = new Models(showModel);
const voices = new Voices();
const fields = new Fields({
  shown: $("fields"),
  more: $("more-fields"),
  template: $("field-template"),
  reset: $("reset"),
});
$("format").append(...Object.entries(FORMATS).map(([name, words]) => new Option(words, name)));
const stage = new Stage();
const visit = new Visit({
  play: (utterance) => stage.open(utterance),
  save: (utterance) => stage.download(utterance),
  forget: (utterance) => stage.forget(utterance),
  use: takeUp,
});
new KeepDialog(voices);
const engine = new Engine(learn);
let speaking = null; // the AbortController of what is being received
let mostText = Infinity;

/** Ask the server what it allows and whose voices it has. */
async function learn() {
  try {
    const facts = await getJson("/page/facts.json");
    mostText = facts.max_text;
    voices.mostBytes = facts.max_clip;
    models.learn(facts.models);
    showCount();
    if (await showModel()) $("key-form").hidden = true;
  } catch (error) {
    report(error, "voice-problem");
  }
}

/** Show what the chosen model has: parameters, languages, voices. Whether its voices could be had. */
async function showModel() {
  const { name, fields: own, languages } = models.chosen;
  fields.learn(own);
  offerLanguages(languages);
  engine.show(name);
  try {
    await voices.load(name);
    return true;
  } catch (error) {
    report(error, "voice-problem");
    return false;
  }
}

/** Let people say which language a text is in, where the model speaks several. */
function offerLanguages(languages) {
  const chosen = $("language").value;
  const named = Object.entries(languages).sort(([, one], [, other]) => one.localeCompare(other));
  $("language").replaceChildren(new Option("told from the text", ""), ...named.map(([code, name]) => new Option(name, code)));
  $("language").value = chosen in languages ? chosen : "";
  $("language-field").hidden = named.length < 2;
}

async function speak() {
  stop();
  problems.clear();
  if (!$("text").value.trim()) {
    problems.show(new Failure("Type something to speak first.", { param: "input" }));
    return;
  }
  const { fields: who, name } = voices.chosen;
  const seed = $("seed").value.trim();
  if (seed && !/^\d{1,19}$/.test(seed)) {
    problems.show(new Failure("A seed is a whole number of at most 19 digits.", { param: "seed" }));
    return;
  }
  const asked = { input: $("text").value, ...models.fields, ...who, ...fields.values, seed };
  if ($("clean_text").checked) asked.clean_text = true;
  if ($("language").value) asked.language = $("language").value;
  await receive(new Utterance(asked, name));
}

async function receive(utterance) {
  const control = new AbortController();
  speaking = control;
  showSpeaking(true);
  stage.open(utterance);
  try {
    await utterance.receive(control.signal, () => stage.utterance === utterance && stage.update());
  } catch (error) {
    if (error.name !== "AbortError") report(error);
  }
  if (utterance.samples.length) visit.add(utterance);
  if (!utterance.samples.length) stage.forget(utterance, visit.last);
  else if (stage.utterance === utterance) stage.update();
  if (speaking === control) showSpeaking(false);
  engine.look();
}

/** End what is being received and what is heard. */
function stop() {
  speaking?.abort();
  stage.player.pause();
}

function showSpeaking(isSpeaking) {
  if (!isSpeaking) speaking = null;
  if (!isSpeaking && document.activeElement === $("stop")) $("speak").focus();
  $("stop").hidden = !isSpeaking;
}

/** Put an utterance of before into the controls. */
function takeUp({ fields: asked }) {
  const before = models.chosen;
  models.choose(asked.model);
  if (models.chosen !== before) showModel().then(() => voices.choose(asked));
  $("text").value = asked.input;
  $("seed").value = asked.seed;
  $("clean_text").checked = asked.clean_text === true;
  $("language").value = asked.language ?? "";
  fields.set(asked);
  voices.choose(asked);
  showCount();
  $("text").focus();
}

/** Show a failure, and ask for the key where that is what is missing. */
function report(error, place) {
  if (error.status !== 401) {
    problems.show(error, place);
    return;
  }
  $("key-form").hidden = false;
  if (key.get()) problems.show(error, "key-problem");
  $("key").focus();
}

function showCount() {
  const { length } = $("text").value;
  $("text-count").textContent = mostText === Infinity ? "" : `${length} of ${mostText}`;
  $("text-count").classList.toggle("over", length > mostText);
}

$("speak").addEventListener("click", speak);
$("stop").addEventListener("click", stop);
$("text").addEventListener("input", showCount);
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  problems.clear();
  key.set($("key").value);
  $("key").value = "";
  learn();
});
document.addEventListener("keydown", (event) => {
  if ($("keep").open) return;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    speak();
  } else if (event.key === "Escape") {
    if ($("engine").open && $("engine").contains(document.activeElement)) $("engine").open = false;
    else stop();
  }
});
document.addEventListener("pointerdown", (event) => {
  if (!$("engine").contains(event.target)) $("engine").open = false;
});
