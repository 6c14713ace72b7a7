// Jobs as they go on: the first one by its event stream, the rest by reading them again.

import { call, events } from "./api.js";

const POLL_MILLISECONDS = 3000;

export const isActive = (job) => job.status === "queued" || job.status === "processing";

/**
 * Calls `tell(job)` with each change of the jobs that were given to `watch`, while they are shown.
 * A browser opens six connections to a server, for all its tabs together; a tab holds one of them.
 */
export class Live {
  #tell;
  #isShown;
  #jobs = new Map();
  #unreadable = new Set();
  #stream = null;
  #timer = 0;
  #polling = false;
  #wake = () => this.#go();

  constructor(tell, isShown = () => true) {
    this.#tell = tell;
    this.#isShown = isShown;
    document.addEventListener("visibilitychange", this.#wake);
  }

  /** Follow these jobs that have not ended, and no others. */
  watch(jobs) {
    const active = jobs.filter((job) => isActive(job) && !this.#unreadable.has(job.job_id));
    active.sort((a, b) => (a.status === "queued") - (b.status === "queued"));
    this.#jobs = new Map(active.map((job) => [job.job_id, job]));
    this.#go();
  }

  stop() {
    document.removeEventListener("visibilitychange", this.#wake);
    this.watch([]);
  }

  get #isAwake() {
    return !document.hidden && this.#isShown();
  }

  /** Open, keep or close the stream; a timer or a poll under way is left alone. */
  #go() {
    const [first = null] = this.#isAwake ? this.#jobs.keys() : [];
    if (this.#stream && this.#stream.id !== first) {
      this.#stream.stop.abort();
      this.#stream = null;
    }
    if (first && !this.#stream) this.#follow(first);
    if (this.#isAwake && this.#jobs.size > 1 && !this.#polling) this.#timer ||= setTimeout(() => this.#poll(), POLL_MILLISECONDS);
  }

  async #follow(id) {
    const stop = new AbortController();
    this.#stream = { id, stop };
    let ended = false;
    try {
      for await (const { event, data } of events(id, stop)) {
        if (stop.signal.aborted) return;
        ended = event === "end";
        if (ended) this.#take(data);
        else if (event === "progress") this.#take({ ...this.#jobs.get(id), ...data });
        else if (data.job) this.#take(data.job);
      }
    } finally {
      if (this.#stream?.stop === stop) {
        this.#stream = null;
        this.#jobs.delete(id);
        if (!ended) this.#unreadable.add(id); // deleted, or of somebody else
        this.#go();
      }
    }
  }

  #take(job) {
    if (!this.#jobs.has(job.job_id)) return;
    if (isActive(job)) this.#jobs.set(job.job_id, job);
    else this.#jobs.delete(job.job_id);
    this.#tell(job);
  }

  async #poll() {
    this.#timer = 0;
    this.#polling = true;
    try {
      for (const id of [...this.#jobs.keys()].filter((id) => id !== this.#stream?.id)) {
        const job = this.#isAwake && this.#jobs.has(id) ? await call("GET", `api/v1/jobs/${id}`).catch(() => null) : null;
        if (job) this.#take(job);
      }
    } finally {
      this.#polling = false;
      this.#go();
    }
  }
}
