// What the page asks of the server, and how it fails.

const KEY = "chatterbox-key"; // in sessionStorage

/** An answer that is an error, or none at all. */
export class Failure extends Error {
  /**
   * @param {string} message for people
   * @param {{status?: number, param?: string, retryAfter?: number}} facts status 0 is no answer; `param` is the field
   *     that is wrong; `retryAfter` is in seconds
   */
  constructor(message, { status = 0, param = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, param, retryAfter });
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => sessionStorage.setItem(KEY, value),
};

/** Fetch, with the key; anything but success is a Failure. An AbortError stays one. */
export async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  const answer = await reach(path, { ...options, headers });
  if (!answer.ok) throw await failureOf(answer);
  return answer;
}

async function reach(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure(
      "The server does not answer. See whether it still runs and whether this device is on its network.",
    );
  }
}

async function failureOf(answer) {
  const body = await answer.json().catch(() => null);
  const { message = `The server answered with status ${answer.status}.`, param = null } = body?.error ?? {};
  const retryAfter = Number(answer.headers.get("retry-after")) || null;
  return new Failure(message, { status: answer.status, param, retryAfter });
}

export const getJson = async (path) => (await ask(path)).json();

/** POST fields as JSON. `seed` is text of digits: it may be larger than a number of JavaScript holds exactly. */
export function postSpeech({ seed, ...fields }, signal) {
  const text = JSON.stringify(fields);
  const body = seed ? `${text.slice(0, -1)},"seed":${seed}}` : text;
  return ask("/v1/audio/speech", { method: "POST", headers: { "Content-Type": "application/json" }, body, signal });
}

/** POST fields and files as a form. */
export async function postForm(path, fields) {
  const body = new FormData();
  for (const [name, value] of Object.entries(fields)) body.append(name, value);
  return (await ask(path, { method: "POST", body })).json();
}

/** What the server does; a server that is not ready says so with a status of failure and tells the same. */
export async function health() {
  const answer = await reach("/health");
  const body = await answer.json().catch(() => null);
  if (body?.status === undefined) throw new Failure(body?.error?.message ?? `status ${answer.status}`);
  return body;
}
