import type { paths } from "./openapi.js";
import { ApiProblem } from "./problem.js";
import type { Estimate, Job, JobPage, Models, Order, Queued, UploadTarget } from "./types.js";

export interface ApiOptions {
  /** Where the API is, as `https://videos.example.com`. */
  url: string;
  /** An API key with the scopes `generate` and `read`. */
  key: string;
  /** Milliseconds that one request may take. */
  timeoutMs?: number;
}

/**
 * One method per route that an app needs.
 *
 * Each makes one attempt and throws ApiProblem; `isPassing` tells whether to try again.
 */
export class StillreelApi {
  readonly #url: string;
  readonly #key: string;
  readonly #timeoutMs: number;

  constructor(options: ApiOptions) {
    this.#url = options.url.replace(/\/+$/, "");
    this.#key = options.key;
    this.#timeoutMs = options.timeoutMs ?? 30_000;
  }

  /** Orders a video; the same key with the same order is the same job, however often it is sent. */
  order(order: Order, options: { idempotencyKey: string }): Promise<Queued> {
    const headers = { "Idempotency-Key": options.idempotencyKey };
    return this.#send("POST", path("/api/v1/generate"), order, headers);
  }

  /** The job as it is, at most a second old; its URLs are signed now. */
  job(jobId: string): Promise<Job> {
    return this.#send("GET", path("/api/v1/jobs/{job_id}", jobId));
  }

  /** Jobs, newest first. */
  jobs(query: NonNullable<paths["/api/v1/jobs"]["get"]["parameters"]["query"]> = {}): Promise<JobPage> {
    return this.#send("GET", path("/api/v1/jobs") + queryOf(query));
  }

  /** Ends a job that waits or runs; twice is the same as once. */
  cancel(jobId: string): Promise<Job> {
    return this.#send("POST", path("/api/v1/jobs/{job_id}/cancel", jobId));
  }

  /** Opens the next round of a job that ended without a video. */
  retry(jobId: string): Promise<Job> {
    return this.#send("POST", path("/api/v1/jobs/{job_id}/retry", jobId));
  }

  /** Where to PUT an image of this type and size, and the id to order it with as `job_id`. */
  presignUpload(contentType: string, contentLength?: number): Promise<UploadTarget> {
    const body = { content_type: contentType, content_length: contentLength ?? null };
    return this.#send("POST", path("/api/v1/presign/upload"), body);
  }

  /** What is offered, with all that a form needs. */
  models(): Promise<Models> {
    return this.#send("GET", path("/api/v1/models"));
  }

  /** Seconds and US$ of an order, without ordering. */
  estimate(order: Order): Promise<Estimate> {
    return this.#send("POST", path("/api/v1/estimate"), order);
  }

  async #send<Answer>(
    method: string,
    address: string,
    body?: unknown,
    more: Record<string, string> = {},
  ): Promise<Answer> {
    const headers = { Authorization: `Bearer ${this.#key}`, ...more, ...(body ? JSON_BODY : {}) };
    try {
      const response = await fetch(this.#url + address, {
        method,
        headers,
        body: body ? JSON.stringify(body) : undefined,
        signal: AbortSignal.timeout(this.#timeoutMs),
      });
      if (!response.ok) throw await ApiProblem.of(response);
      return (await response.json()) as Answer;
    } catch (error) {
      throw error instanceof ApiProblem ? error : ApiProblem.unreachable(error);
    }
  }
}

const JSON_BODY = { "Content-Type": "application/json" };

/** An address of the API; one that its OpenAPI document does not have does not compile. */
function path(template: keyof paths, jobId = ""): string {
  return template.replace("{job_id}", encodeURIComponent(jobId));
}

function queryOf(query: object): string {
  const pairs = Object.entries(query).flatMap(([name, value]) =>
    [value].flat().map((one) => [name, String(one)]),
  );
  return pairs.length ? `?${new URLSearchParams(pairs)}` : "";
}
