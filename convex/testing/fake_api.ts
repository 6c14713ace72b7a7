/** The video API as far as the component knows it, in memory, behind `fetch`; it can be as bad as told. */
import type { Job, JobStatus, Order } from "../src/api/types.js";
import { StillreelApi } from "../src/api/client.js";

export const URL = "https://videos.test";
export const KEY = "sr_test";

/** Answers instead of the API; `lost`: it does as asked, and nobody hears; `body`: a proxy's own. */
export type Fault =
  | "lost"
  | "unreachable"
  | { status: number; code?: string; retryAfter?: number }
  | { status: number; body: string };

interface Kept {
  order: Order;
  key: string;
  job: Job;
}

export class FakeApi {
  readonly jobs = new Map<string, Kept>();
  readonly requests: { method: string; path: string; key: string | null }[] = [];
  /** One for each request to come; then there are none. */
  faults: Fault[] = [];
  isAway = false;

  /** What `fetch` is replaced by. */
  readonly fetch = async (address: string | globalThis.URL | Request, init: RequestInit = {}) => {
    const { pathname } = new globalThis.URL(String(address));
    const headers = new Headers(init.headers);
    const method = init.method ?? "GET";
    this.requests.push({ method, path: pathname, key: headers.get("idempotency-key") });
    if (this.isAway) throw new TypeError("fetch failed");
    const fault = this.faults.shift();
    if (fault === "unreachable") throw new TypeError("fetch failed");
    if (typeof fault === "object") {
      if ("body" in fault) return new Response(fault.body, { status: fault.status });
      return problem(fault.status, fault.code, fault.retryAfter);
    }
    if (headers.get("authorization") !== `Bearer ${KEY}`) return problem(401, "unauthorized");
    const answer = this.#answer(method, pathname, headers, init.body as string | undefined);
    if (fault === "lost") throw new TypeError("fetch failed");
    return answer;
  };

  /** The only job, or the one with this id. */
  job(id?: string): Job {
    const [kept] = id ? [this.jobs.get(id)] : [...this.jobs.values()];
    if (!kept) throw new Error(`no job ${id ?? ""}`);
    return kept.job;
  }

  /** The order that was taken. */
  get order(): Order {
    const [kept] = this.jobs.values();
    if (!kept) throw new Error("no order");
    return kept.order;
  }

  /** How often the path was asked for. */
  count(method: string, path: RegExp): number {
    return this.requests.filter((one) => one.method === method && path.test(one.path)).length;
  }

  move(status: JobStatus, more: Partial<Job> = {}): void {
    const job = this.job();
    Object.assign(job, { status, position: null }, status === "completed" ? FINISHED : {}, more);
  }

  #answer(method: string, path: string, headers: Headers, body?: string): Response {
    if (method === "POST" && path === "/api/v1/generate") {
      return this.#take(JSON.parse(body ?? "{}") as Order, headers.get("idempotency-key") ?? "");
    }
    if (method === "POST" && path === "/api/v1/presign/upload") {
      const [upload_url, job_id] = [`${URL}/files/inputs/a.png`, "job_upload"];
      return json({ upload_url, job_id, expires_in: 3600, expires_at: "2030-01-01T00:00:00.000Z" });
    }
    const [, id, verb] = /^\/api\/v1\/jobs\/(\w+)(?:\/(cancel|retry))?$/.exec(path) ?? [];
    const job = this.jobs.get(id ?? "")?.job;
    if (!job) return problem(404, "job_unknown");
    if (verb === "cancel") return this.#cancel(job);
    if (verb === "retry") return this.#retry(job);
    return json(job);
  }

  #take(order: Order, key: string): Response {
    let kept = [...this.jobs.values()].find((one) => one.key === key);
    if (!kept) {
      const job = newJob(order.job_id ?? `job_${this.jobs.size + 1}`, order);
      this.jobs.set(job.job_id, (kept = { order, key, job }));
    }
    const { job_id, status, created_at, model, position } = kept.job;
    return json({ job_id, status, created_at, model, position });
  }

  #cancel(job: Job): Response {
    if (job.status === "completed" || job.status === "failed") return problem(409, "job_conflict");
    Object.assign(job, { status: "cancelled", error: "The job was cancelled." });
    return json(job);
  }

  #retry(job: Job): Response {
    if (!["failed", "cancelled", "expired"].includes(job.status)) return problem(409, "job_conflict");
    const again = { status: "queued", round: (job.round ?? 1) + 1, error: null, error_code: null };
    return json(Object.assign(job, again, { progress: 0 }));
  }
}

export const FINISHED: Partial<Job> = {
  progress: 100,
  result_url: "https://videos.test/files/output.mp4",
  poster_url: "https://videos.test/files/poster.jpg",
  teaser_url: "https://videos.test/files/teaser.mp4",
  url_expires_at: "2030-01-01T00:00:00.000Z",
  seed: 7,
  cost: { usd: 0.0011, gpu_seconds: 6.1, usd_per_hour: 0.66, host: "gpu-1" },
};

/** The client of our own as the component makes it. */
export function client(): StillreelApi {
  return new StillreelApi({ url: URL, key: KEY });
}

function newJob(job_id: string, order: Order): Job {
  return {
    job_id,
    status: "queued",
    progress: 0,
    position: 1,
    model: order.model ?? "preview",
    prompt: order.prompt ?? "",
    duration: order.duration ?? 5,
    round: 1,
    attempt: 1,
    warnings: [],
    created_at: "2026-11-20T12:00:00.000Z",
    run_id: "c0ffee",
  };
}

function json(body: unknown): Response {
  return new Response(JSON.stringify(body), { headers: { "Content-Type": "application/json" } });
}

function problem(status: number, code = "api_error", retryAfter?: number): Response {
  const headers = { "Content-Type": "application/problem+json", ...after(retryAfter) };
  const detail = `The fake says ${status}.`;
  return new Response(JSON.stringify({ status, code, detail, error: detail }), { status, headers });
}

function after(seconds?: number): Record<string, string> {
  return seconds === undefined ? {} : { "Retry-After": String(seconds) };
}
