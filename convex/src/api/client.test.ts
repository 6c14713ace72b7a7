import { expect, expectTypeOf, test, vi } from "vitest";
import { client, type Fault } from "../../testing/fake_api.js";
import { useWorld } from "../../testing/world.js";
import type { VideoOrder } from "../component/shapes.js";
import { ApiProblem } from "./problem.js";
import type { Order } from "./types.js";

const world = useWorld();

async function problemOf(fault: Fault): Promise<ApiProblem> {
  world.fake.faults = [fault];
  return await client().job("job_1").then(
    () => Promise.reject(new Error("there was no problem")),
    (error: unknown) => error as ApiProblem,
  );
}

test.each<[Fault, boolean, string]>([
  [{ status: 429, code: "too_many_requests" }, true, "too_many_requests"],
  [{ status: 503, code: "prefect_unavailable" }, true, "prefect_unavailable"],
  [{ status: 408, code: "body_too_slow" }, true, "body_too_slow"],
  ["unreachable", true, "unreachable"],
  ["lost", true, "unreachable"],
  [{ status: 404, code: "job_unknown" }, false, "job_unknown"],
  [{ status: 410, code: "job_deleted" }, false, "job_deleted"],
  [{ status: 422, code: "request_rejected" }, false, "request_rejected"],
])("%o passes: %s", async (fault, isPassing, code) => {
  expect(await problemOf(fault)).toMatchObject({ isPassing, code, name: "ApiProblem" });
});

test("how long to wait is in the problem, where the API says it in seconds", async () => {
  expect((await problemOf({ status: 429, retryAfter: 7 })).retryAfterSeconds).toBe(7);
  expect((await problemOf({ status: 429 })).retryAfterSeconds).toBeUndefined();
});

test.each([
  "<h1>Not found</h1>",
  "",
  "null",
  '"not found"',
  '{"code":404,"detail":["not","found"]}',
  '{"code":null,"detail":{}}',
])("a proxy's %o is a problem too, and not the API's own", async (body) => {
  expect(await problemOf({ status: 404, body })).toMatchObject({
    ...{ status: 404, code: "http_404", detail: "The video API answers 404.", isOwn: false },
  });
  expect(await problemOf({ status: 502, body })).toMatchObject({ code: "http_502", isPassing: true });
});

test("what the API says is its own", async () => {
  expect(await problemOf({ status: 404, code: "job_unknown" })).toMatchObject({
    ...{ code: "job_unknown", detail: "The fake says 404.", isOwn: true },
  });
  expect((await problemOf("unreachable")).isOwn).toBe(false);
});

test("an API that hangs is given up", async () => {
  vi.useRealTimers();
  vi.stubGlobal("fetch", (_url: string, { signal }: RequestInit) => {
    return new Promise((_, reject) => signal?.addEventListener("abort", () => reject(signal.reason)));
  });
  const { StillreelApi } = await import("./client.js");
  const hanging = new StillreelApi({ url: "https://videos.test", key: "k", timeoutMs: 20 });
  await expect(hanging.job("a")).rejects.toMatchObject({ status: 0, detail: expect.stringContaining("in time") });
});

test("ids and queries are escaped, and the key is in no address", async () => {
  const asked: string[] = [];
  vi.stubGlobal("fetch", (url: string) => {
    asked.push(url);
    return Promise.resolve(new Response("{}"));
  });
  await client().job("../models?x");
  await client().jobs({ status: ["queued", "failed"], q: "a&b", limit: 5 });
  expect(asked).toEqual([
    "https://videos.test/api/v1/jobs/..%2Fmodels%3Fx",
    "https://videos.test/api/v1/jobs?status=queued&status=failed&q=a%26b&limit=5",
  ]);
});

type Snake<Name extends string> = Name extends `${infer Head}${infer Tail}`
  ? `${Head extends Lowercase<Head> ? Head : `_${Lowercase<Head>}`}${Snake<Tail>}`
  : Name;
type SentBy<Fields> = {
  [Name in keyof Fields & string as Name extends "uploadId" ? "job_id" : Snake<Name>]?: Fields[Name] | null;
};

test("the component's orders have each field of the API's, with its type, but for three", () => {
  // Base64 is too long for a mutation; the webhook's address is the component's to give.
  expectTypeOf<SentBy<VideoOrder>>().toEqualTypeOf<Omit<Order, "image_base64" | "webhook_url">>();
});
