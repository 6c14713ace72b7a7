/** A component on its own with a fake API, a fake clock, and webhooks that are signed. */
import { convexTest, type TestConvex } from "convex-test";
import { Webhook } from "standardwebhooks";
import { afterEach, beforeEach, vi } from "vitest";
import { api } from "../src/component/_generated/api.js";
import schema from "../src/component/schema.js";
import type { VideoJob, VideoOrder } from "../src/component/shapes.js";
import component from "../src/test.js";
import { FakeApi, KEY, URL } from "./fake_api.js";

export const SECRET = `whsec_${btoa("the secret of these tests 1")}`;
export const OLD_SECRET = `whsec_${btoa("the secret of these tests 0")}`;
export const OTHER_SECRET = `whsec_${btoa("a secret that nobody knows")}`;
export const SECOND = 1000;
export const MINUTE = 60 * SECOND;
export const HOUR = 60 * MINUTE;
export const DAY = 24 * HOUR;

/** Environment, `fetch` and clock of each test of a file. */
export function useWorld(): { readonly fake: FakeApi } {
  const world = { fake: new FakeApi() };
  beforeEach(() => {
    world.fake = new FakeApi();
    vi.useFakeTimers({ now: Date.parse("2026-11-20T12:00:00Z") });
    vi.stubEnv("VIDEO_API_URL", URL);
    vi.stubEnv("VIDEO_API_KEY", KEY);
    vi.stubEnv("VIDEO_WEBHOOK_SECRET", SECRET);
    vi.stubGlobal("fetch", world.fake.fetch);
  });
  afterEach(() => {
    vi.useRealTimers();
    vi.unstubAllEnvs();
    vi.unstubAllGlobals();
  });
  return world;
}

/** The component as if it were the whole app, so that its own `http.ts` answers. */
export class Component {
  readonly t: TestConvex<typeof schema> = convexTest(schema, component.modules);

  async submit(order: VideoOrder = { prompt: "slow zoom in" }, ownerId = "ann"): Promise<string> {
    return await this.t.mutation(api.jobs.submit, { ownerId, order });
  }

  async job(jobId: string): Promise<VideoJob> {
    const job = await this.t.query(api.jobs.get, { jobId });
    if (!job) throw new Error("no such job");
    return job;
  }

  /** Let so much time pass; everything that is due runs when it is due. */
  async pass(ms: number): Promise<void> {
    await pass(this.t, ms);
  }

  async send(message: object, how: Signing = {}): Promise<Response> {
    return await this.t.fetch("/webhook", signed(message, how));
  }
}

type Scheduled = Pick<Component["t"], "finishInProgressScheduledFunctions">;

/** Let so much time pass, second by second, or by the 10,000th part where that is longer. */
export async function pass(t: Scheduled, ms: number): Promise<void> {
  const stride = Math.max(SECOND, ms / 10_000);
  await settle(t);
  for (let passed = 0; passed < ms; passed += stride) {
    vi.advanceTimersByTime(Math.min(stride, ms - passed));
    await settle(t);
  }
}

/** What is due, what that has scheduled at once, and so on: a step, a talk, and a step again. */
async function settle(t: Scheduled): Promise<void> {
  for (let generation = 0; generation < 4; generation++) {
    vi.advanceTimersByTime(1);
    await t.finishInProgressScheduledFunctions();
  }
}

export interface Signing {
  id?: string;
  secrets?: string[];
  /** Seconds before now. */
  age?: number;
  plain?: string;
  /** The body that is sent instead of the one that was signed. */
  body?: string;
}

export function signed(message: object, how: Signing = {}): RequestInit {
  const { id = "job_1-r1", secrets = [SECRET], age = 0, plain } = how;
  const body = JSON.stringify(message);
  const at = new Date(Date.now() - age * SECOND);
  const headers: Record<string, string> = { "Content-Type": "application/json" };
  if (secrets.length) {
    headers["webhook-id"] = id;
    headers["webhook-timestamp"] = String(Math.floor(at.getTime() / 1000));
    headers["webhook-signature"] = secrets.map((one) => new Webhook(one).sign(id, at, body)).join(" ");
  }
  if (plain) headers["X-Webhook-Secret"] = plain;
  return { method: "POST", headers, body: how.body ?? body };
}

/** A message as the API sends it. */
export function message(status: string, more: { job_id?: string; round?: number; error?: string } = {}) {
  const { job_id = "job_1", round = 1, error } = more;
  const done = status === "completed";
  return {
    job_id,
    status: done ? "completed" : "failed",
    video_url: done ? "https://videos.test/files/output.mp4?webhook" : null,
    error: error ?? (done ? null : `it was ${status}`),
    type: `video.${status}`,
    timestamp: "2026-11-20T12:00:00.000Z",
    data: {
      ...{ job_id, status, round, model: "preview", seed: 7, error_code: done ? null : status },
      poster_url: done ? "https://videos.test/files/poster.jpg" : undefined,
      cost: done ? { usd: 0.0011, usd_per_hour: 0.66, gpu_seconds: 6.1 } : undefined,
    },
  };
}
