import { convexTest } from "convex-test";
import { afterEach, beforeEach, expect, expectTypeOf, test, vi } from "vitest";
import { pass, SECOND } from "../testing/world.js";
import { api, internal } from "./convex/_generated/api";
import schema from "./convex/schema";

type Answer = { status: number; body?: unknown } | "no answer";

let calls: { method?: string; path: string; authorization: string | null; body?: unknown }[];

/** A Prefect server that answers the second route so, time after time; the first one always. */
function answering(...answers: Answer[]): void {
  vi.stubGlobal("fetch", (url: string, init: RequestInit) => {
    const path = url.replace("https://prefect.test/api", "");
    const authorization = new Headers(init.headers).get("authorization");
    calls.push({ method: init.method, path, authorization, body: init.body && JSON.parse(String(init.body)) });
    const answer: Answer =
      init.method === "GET" ? { status: 200, body: { id: "d1" } } : (answers.shift() ?? { status: 500 });
    if (answer === "no answer") return Promise.reject(new TypeError("fetch failed"));
    return Promise.resolve(new Response(JSON.stringify(answer.body ?? {}), { status: answer.status }));
  });
}

beforeEach(() => {
  calls = [];
  vi.useFakeTimers();
  vi.stubEnv("PREFECT_API_URL", "https://prefect.test/api");
  vi.stubEnv("PREFECT_API_AUTH_STRING", "admin:pass");
});
afterEach(() => {
  vi.useRealTimers();
  vi.unstubAllEnvs();
  vi.unstubAllGlobals();
});

async function ordered() {
  const t = convexTest(schema, import.meta.glob("./convex/**/*.{js,ts}"));
  const videoId = await t.mutation(internal.videos.create, { parameters: { prompt: "slow zoom in" } });
  await pass(t, 200 * SECOND);
  return { videoId, video: await t.query(internal.videos.get, { videoId }) };
}

test("pages can neither order nor read: nothing is public", () => {
  expectTypeOf<keyof typeof api>().toEqualTypeOf<never>();
});

test.each([201, 200])("%i: the run is there, and the row has its id", async (status) => {
  answering({ status, body: { id: "r1" } });
  const { videoId, video } = await ordered();
  expect(video).toMatchObject({ status: "queued", runId: "r1" });
  expect(calls).toEqual([
    expect.objectContaining({ method: "GET", path: "/deployments/name/generate-video/preview-local" }),
    {
      ...{ method: "POST", path: "/deployments/d1/create_flow_run" },
      authorization: `Basic ${btoa("admin:pass")}`,
      body: { parameters: { prompt: "slow zoom in" }, idempotency_key: videoId },
    },
  ]);
});

test("409 is final: the parameters do not fit, and the row says which", async () => {
  answering({ status: 409, body: { detail: "Validation failed for field 'duration'." } });
  const { video } = await ordered();
  expect(video).toMatchObject({ status: "failed", error: "Validation failed for field 'duration'." });
  expect(calls).toHaveLength(2);
});

test("401 is final, and the credential is not in the row", async () => {
  answering({ status: 401 });
  const { video } = await ordered();
  expect(video?.error).toBe("Prefect does not take PREFECT_API_AUTH_STRING.");
});

test("a failure that passes is tried again under the same key", async () => {
  answering({ status: 503 }, "no answer", { status: 200, body: { id: "r1" } });
  const { videoId, video } = await ordered();
  expect(video).toMatchObject({ status: "queued", runId: "r1" });
  const keys = calls.flatMap(({ body }) => (body as { idempotency_key?: string })?.idempotency_key ?? []);
  expect(keys).toEqual([videoId, videoId, videoId]);
});

test("one that does not pass is given up after eight attempts", async () => {
  answering();
  const { video } = await ordered();
  expect(video).toMatchObject({ status: "failed", error: "Prefect answers 500." });
  expect(calls.filter(({ method }) => method === "POST")).toHaveLength(8);
});
