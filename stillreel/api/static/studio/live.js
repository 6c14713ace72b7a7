// Jobs as they go on: a few by their event stream, the rest by reading them again.

import { call, events } from "./api.js";

/** A browser opens six connections to a server at a time; these stay open, so half are enough. */
const STREAMS = 3;
const POLL_MILLISECONDS = 3000;

export const isActive = (job) => job.status === "queued" || job.status === "processing";

/** Calls `tell(job)` with each change of the jobs that were given to `watch`. */
export class Live {
  #tell;
  #jobs = new Map();
  #streams = new Map();
  #timer = 0;

  constructor(tell) {
    this.#tell = tell;
  }

  /** Follow these jobs that have not ended, and no others; the first ones by stream. */
  watch(jobs) {
    const active = jobs.filter(isActive);
    active.sort((a, b) => (a.status === "queued") - (b.status === "queued"));
    this.#jobs = new Map(active.map((job) => [job.job_id, job]));
    for (const [id, stop] of this.#streams) if (!this.#jobs.has(id)) stop.abort();
    for (const id of this.#jobs.keys()) {
      if (this.#streams.size >= STREAMS) break;
      if (!this.#streams.has(id)) this.#follow(id);
    }
    clearTimeout(this.#timer);
    if (this.#jobs.size > this.#streams.size) this.#timer = setTimeout(() => this.#poll(), POLL_MILLISECONDS);
  }

  stop() {
    this.watch([]);
  }

  async #follow(id) {
    const stop = new AbortController();
    this.#streams.set(id, stop);
    try {
      for await (const { event, data } of events(id, stop)) {
        if (stop.signal.aborted) return;
        if (event === "end") this.#take(data);
        else if (event === "progress") this.#take({ ...this.#jobs.get(id), ...data });
        else if (data.job) this.#take(data.job);
      }
      if (!stop.signal.aborted) this.#jobs.delete(id); // its end was told, or it may not be read
    } finally {
      this.#streams.delete(id);
      this.watch([...this.#jobs.values()]);
    }
  }

  #take(job) {
    if (!this.#jobs.has(job.job_id)) return;
    if (isActive(job)) this.#jobs.set(job.job_id, job);
    else this.#jobs.delete(job.job_id);
    this.#tell(job);
  }

  async #poll() {
    const waiting = [...this.#jobs.keys()].filter((id) => !this.#streams.has(id));
    for (const id of document.hidden ? [] : waiting) {
      const job = await call("GET", `api/v1/jobs/${id}`).catch(() => null);
      if (job) this.#take(job);
    }
    this.watch([...this.#jobs.values()]);
  }
}
