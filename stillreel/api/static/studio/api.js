// Calls of the API with the pasted key, which is kept in this tab's session and sent in a header.

const KEY = "stillreel.key";
const RESUME_MILLISECONDS = 2000;
const TRIES = 4;

/** What a call that failed says (RFC 9457). */
export class Problem extends Error {
  constructor(status, body, retryAfter = 0) {
    super(body.detail ?? "The API does not answer; is it running?");
    this.status = status;
    this.retryAfter = retryAfter;
    this.code = body.code ?? "unreachable";
    this.errors = body.errors ?? [];
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (text) => sessionStorage.setItem(KEY, text),
  forget: () => sessionStorage.removeItem(KEY),
};

/** Called with the problem and the key that was sent when it is refused. */
export const onRefused = { call: () => {} };

/** The JSON that a route answers, null where it answers nothing. Raises Problem. */
export async function call(method, path, { body, headers = {}, signal } = {}) {
  const response = await send(method, path, { body, headers, signal });
  try {
    return response.status === 204 ? null : await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, {}); // the answer broke off
  }
}

async function send(method, path, { body, headers = {}, signal } = {}) {
  const form = body instanceof FormData;
  const sent = key.get();
  const given = { Authorization: `Bearer ${sent}`, ...headers };
  if (body && !form) given["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(new URL(path, document.baseURI), {
      method,
      signal,
      headers: given,
      body: body && !form ? JSON.stringify(body) : body,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, {});
  }
  if (response.ok) return response;
  const problem = new Problem(response.status, await response.json().catch(() => ({})), Number(response.headers.get("Retry-After")));
  if (response.status === 401) onRefused.call(problem, sent);
  throw problem;
}

/** `run()`, and again where the API is away for a moment; what it does has to be safe to repeat. */
export async function patiently(run, onWait = () => {}) {
  for (let tries = 1; ; tries++) {
    try {
      return await run();
    } catch (error) {
      const passes = error instanceof Problem && (error.status === 0 || error.status === 503);
      if (!passes || tries === TRIES) throw error;
      onWait(error);
      await new Promise((done) => setTimeout(done, Math.min(10, error.retryAfter || tries) * 1000));
    }
  }
}

/** A job's events until its end: `{event, data}`. A stream that breaks is resumed. */
export async function* events(jobId, { signal }) {
  let last = "";
  while (!signal.aborted) {
    const headers = last ? { "Last-Event-ID": last } : {};
    try {
      const response = await send("GET", `api/v1/jobs/${jobId}/events`, { headers, signal });
      if (response.status === 204) return;
      for await (const event of parsed(response.body)) {
        last = event.id || last;
        yield event;
        if (event.event === "end") return;
      }
    } catch (error) {
      if (signal.aborted || (error instanceof Problem && [401, 403, 404, 410].includes(error.status))) return;
    }
    await new Promise((done) => setTimeout(done, RESUME_MILLISECONDS));
  }
}

/** Server-sent events of a body. An EventSource would send no header. */
async function* parsed(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      buffer += value;
      const blocks = buffer.split("\n\n");
      buffer = blocks.pop();
      for (const block of blocks) {
        const found = {};
        for (const line of block.split("\n")) {
          const [, name, text] = /^(\w+): ?(.*)$/.exec(line) ?? [];
          if (name) found[name] = name in found ? `${found[name]}\n${text}` : text;
        }
        if (found.data) yield { id: found.id, event: found.event, data: JSON.parse(found.data) };
      }
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}

/** A text that no other order has; pages without TLS have no randomUUID. */
export function uniqueKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
