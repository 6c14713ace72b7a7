import { expect, test, vi } from "vitest";
import { api } from "./_generated/api.js";
import type { Fault } from "../../testing/fake_api.js";
import { Component, DAY, HOUR, message, MINUTE, SECOND, useWorld } from "../../testing/world.js";

const world = useWorld();
const realSetTimeout = globalThis.setTimeout;
const ORDERS = /generate/;
const ONE_JOB = /^\/api\/v1\/jobs\/job_1$/;

async function submitted(): Promise<{ component: Component; jobId: string }> {
  const component = new Component();
  const jobId = await component.submit();
  await component.pass(0);
  return { component, jobId };
}

// --- the order ---------------------------------------------------------------------------------

test("the order goes out in the API's words, with the row's id as its Idempotency-Key", async () => {
  const component = new Component();
  const jobId = await component.t.mutation(api.jobs.submit, {
    ownerId: "ann",
    order: {
      ...{ uploadId: "job_upload", prompt: "pan left", negativePrompt: "fog", embedPrompt: false, seed: 0 },
      ...{ style: "cinematic", camera: "slow dolly in" },
    },
    webhookUrl: "https://happy.convex.site/video/webhook",
  });
  await component.pass(0);
  expect(world.fake.order).toEqual({
    ...{ job_id: "job_upload", prompt: "pan left", negative_prompt: "fog", embed_prompt: false, seed: 0 },
    ...{ style: "cinematic", camera: "slow dolly in" },
    webhook_url: "https://happy.convex.site/video/webhook",
  });
  expect(world.fake.requests[0]).toMatchObject({ method: "POST", key: jobId });
  expect(await component.job(jobId)).toMatchObject({
    ...{ status: "queued", externalId: "job_upload", queuePosition: 1, ownerId: "ann" },
  });
});

test("no retry can make a second video: all attempts have one key", async () => {
  world.fake.faults = ["lost", "unreachable", { status: 503 }, { status: 429, retryAfter: 30 }, "lost"];
  const component = new Component();
  const jobId = await component.submit();
  await component.pass(3 * MINUTE);
  expect(world.fake.count("POST", ORDERS)).toBe(6);
  expect(new Set(world.fake.requests.slice(0, 6).map((one) => one.key))).toEqual(new Set([jobId]));
  expect(world.fake.jobs.size).toBe(1);
  expect((await component.job(jobId)).status).toBe("queued");
});

test("a Retry-After is waited for", async () => {
  world.fake.faults = [{ status: 429, retryAfter: 600 }];
  const component = new Component();
  await component.submit();
  await component.pass(9 * MINUTE);
  expect(world.fake.count("POST", ORDERS)).toBe(1);
  await component.pass(2 * MINUTE);
  expect(world.fake.count("POST", ORDERS)).toBe(2);
});

test.each([400, 401, 403, 409, 413, 422])("an order that is refused with %i has failed, at once", async (status) => {
  world.fake.faults = [{ status, code: "request_rejected" }];
  const { component, jobId } = await submitted();
  expect(await component.job(jobId)).toMatchObject({
    ...{ status: "failed", errorCode: "request_rejected", error: `The fake says ${status}.` },
    endedAt: expect.any(Number),
  });
  await component.pass(HOUR);
  expect(world.fake.requests).toHaveLength(1);
});

test.each(["<h1>Not found</h1>", '{"code":404,"message":"no route"}'])(
  "an order that only a proxy has refused, with %o, is sent again",
  async (body) => {
    world.fake.faults = [{ status: 404, body }, { status: 403, body }];
    const { component, jobId } = await submitted();
    expect((await component.job(jobId)).status).toBe("submitting");
    await component.pass(10 * SECOND);
    expect((await component.job(jobId)).status).toBe("queued");
    expect(world.fake.count("POST", ORDERS)).toBe(3);
  },
);

test("an order that nobody takes for a day has failed, and retry sends the very same one", async () => {
  world.fake.isAway = true;
  const { component, jobId } = await submitted();
  await component.pass(HOUR);
  expect((await component.job(jobId)).status).toBe("submitting");
  vi.setSystemTime(Date.now() + DAY);
  await component.pass(5 * MINUTE);
  expect(await component.job(jobId)).toMatchObject({ status: "failed", errorCode: "not_taken" });
  world.fake.isAway = false;
  await component.t.mutation(api.jobs.retry, { jobId });
  await component.pass(0);
  expect(await component.job(jobId)).toMatchObject({ status: "queued", round: 1 });
  expect(await component.job(jobId)).not.toHaveProperty("errorCode");
  expect(new Set(world.fake.requests.filter((one) => one.key).map((one) => one.key))).toEqual(new Set([jobId]));
});

test("an action that is lost does not stop the work", async () => {
  const { component, jobId } = await submitted();
  const hang = new Promise<Response>(() => undefined);
  world.fake.move("completed");
  // A poll whose answer never comes, as when the machine of an action dies.
  const fetches = vi.fn<typeof fetch>().mockReturnValueOnce(hang).mockImplementation(world.fake.fetch);
  vi.stubGlobal("fetch", fetches);
  await passWithout(component, 10 * SECOND, SECOND);
  expect((await component.job(jobId)).status).toBe("queued");
  await passWithout(component, 3 * MINUTE, 20 * SECOND);
  expect((await component.job(jobId)).status).toBe("completed");
});

/** Time passes, and nobody waits for what hangs. */
async function passWithout(component: Component, ms: number, stride: number): Promise<void> {
  const wait = component.t.finishInProgressScheduledFunctions;
  for (let passed = 0; passed < ms; passed += stride) {
    vi.advanceTimersByTime(stride);
    await Promise.race([wait(), turns(20)]);
  }
}

async function turns(count: number): Promise<void> {
  for (let turn = 0; turn < count; turn++) await new Promise<void>((done) => realSetTimeout(done, 0));
}

// --- what is heard -----------------------------------------------------------------------------

test("progress is heard by polling", async () => {
  const { component, jobId } = await submitted();
  world.fake.move("processing", { progress: 42, stage: "infer", phase: "denoise", eta_seconds: 20 });
  await component.pass(6 * SECOND);
  expect(await component.job(jobId)).toMatchObject({
    ...{ status: "processing", progress: 42, stage: "infer", phase: "denoise", etaSeconds: 20 },
  });
  expect(await component.job(jobId)).not.toHaveProperty("queuePosition");
});

test("a lost webhook is healed by the reconciler, which stops at the end", async () => {
  const { component, jobId } = await submitted();
  world.fake.move("completed"); // and no webhook
  await component.pass(6 * SECOND);
  expect(await component.job(jobId)).toMatchObject({
    ...{ status: "completed", progress: 100, costUsd: 0.0011, gpuSeconds: 6.1, seed: 7 },
    videoUrl: "https://videos.test/files/output.mp4",
    urlsExpireAt: Date.parse("2030-01-01T00:00:00.000Z"),
  });
  const asked = world.fake.requests.length;
  await component.pass(DAY);
  expect(world.fake.requests).toHaveLength(asked);
  expect(await component.t.run((ctx) => ctx.db.system.query("_scheduled_functions").collect())).not.toContainEqual(
    expect.objectContaining({ state: { kind: "pending" } }),
  );
});

test("a webhook stops the reconciler too", async () => {
  const { component } = await submitted();
  await component.send(message("completed"));
  const asked = world.fake.requests.length;
  await component.pass(HOUR);
  expect(world.fake.requests).toHaveLength(asked);
});

test("an outage of an hour on our side loses nothing: the webhook that comes again is taken", async () => {
  // Nothing of Convex runs for an hour: the API's attempts at 0 s, 5 s and 5 min are not answered.
  const { component, jobId } = await submitted();
  world.fake.move("completed");
  vi.setSystemTime(Date.now() + HOUR);
  const answer = await component.send(message("completed"), { id: "job_1-r1" }); // its next attempt
  expect(answer.status).toBe(200);
  expect((await component.job(jobId)).status).toBe("completed");
});

test("an outage of an hour of the webhook's way alone is not even noticed", async () => {
  const { component, jobId } = await submitted();
  await component.pass(10 * MINUTE);
  world.fake.move("completed");
  await component.pass(20 * MINUTE);
  expect((await component.job(jobId)).status).toBe("completed");
  const late = await component.send(message("completed")); // when it works again
  expect(late.status).toBe(200);
});

test("an outage of an hour of the API loses nothing", async () => {
  const { component, jobId } = await submitted();
  world.fake.isAway = true;
  await component.pass(HOUR);
  expect((await component.job(jobId)).status).toBe("queued");
  world.fake.isAway = false;
  world.fake.move("completed");
  await component.pass(11 * MINUTE);
  expect((await component.job(jobId)).status).toBe("completed");
});

test("a shorter message takes nothing away from what a poll told", async () => {
  const { component, jobId } = await submitted();
  world.fake.move("completed");
  await component.pass(6 * SECOND);
  await component.send({ job_id: "job_1", status: "completed", data: { truncated: true } });
  expect(await component.job(jobId)).toMatchObject({
    ...{ videoUrl: "https://videos.test/files/output.mp4", costUsd: 0.0011 },
  });
});

test("a poll that was answered before the end and stored after it changes nothing", async () => {
  const { component, jobId } = await submitted();
  world.fake.move("processing", { progress: 90 });
  let answer: (response: Response) => void = () => undefined;
  const slow = new Promise<Response>((resolve) => (answer = resolve));
  const told = await world.fake.fetch("https://videos.test/api/v1/jobs/job_1", {
    headers: { Authorization: "Bearer sr_test" },
  });
  vi.stubGlobal("fetch", () => slow);
  await passWithout(component, 6 * SECOND, SECOND); // the poll is on its way
  await component.send(message("completed"));
  answer(told);
  await component.pass(0);
  expect(await component.job(jobId)).toMatchObject({ status: "completed", progress: 100 });
});

test("a job that waits through the night is polled some ten times, not some thousand times", async () => {
  const { component } = await submitted();
  await component.pass(8 * HOUR);
  const polls = world.fake.count("GET", ONE_JOB);
  expect(polls).toBeGreaterThan(48);
  expect(polls).toBeLessThan(70);
});

test("while somebody watches, news is three seconds old at most", async () => {
  const { component, jobId } = await submitted();
  await component.pass(2 * HOUR);
  await component.t.mutation(api.jobs.watch, { jobId });
  const before = world.fake.count("GET", ONE_JOB);
  await component.pass(30 * SECOND);
  expect(world.fake.count("GET", ONE_JOB) - before).toBeGreaterThanOrEqual(9);
  await component.pass(HOUR);
  const late = world.fake.count("GET", ONE_JOB);
  await component.pass(HOUR);
  expect(world.fake.count("GET", ONE_JOB) - late).toBeLessThan(10);
});

test.each([
  { status: 410, code: "job_deleted" },
  { status: 404, code: "job_unknown" },
])("a job that the API has no more has failed: %o", async (fault) => {
  const { component, jobId } = await submitted();
  world.fake.faults = [fault];
  await component.pass(6 * SECOND);
  expect(await component.job(jobId)).toMatchObject({ status: "failed", errorCode: fault.code });
});

test.each<Fault>([
  { status: 404, code: "not_found" },
  { status: 422, code: "request_rejected" },
  { status: 404, body: "<h1>Not found</h1>" },
  { status: 410, body: '{"code":410}' },
  { status: 409, body: "null" },
])("a poll that is answered with %o loses no job", async (fault) => {
  const { component, jobId } = await submitted();
  world.fake.faults = [fault, fault, fault];
  await component.pass(HOUR);
  expect((await component.job(jobId)).status).toBe("queued");
  world.fake.move("completed");
  await component.pass(10 * MINUTE);
  expect((await component.job(jobId)).status).toBe("completed");
});

test("a key that is wrong for a while loses no job", async () => {
  const { component, jobId } = await submitted();
  vi.stubEnv("VIDEO_API_KEY", "sr_revoked");
  await component.pass(HOUR);
  vi.stubEnv("VIDEO_API_KEY", "sr_test");
  world.fake.move("completed");
  await component.pass(10 * MINUTE);
  expect((await component.job(jobId)).status).toBe("completed");
});

test("a job of which nothing is heard for a month has failed, and retry asks again", async () => {
  const { component, jobId } = await submitted();
  world.fake.isAway = true;
  vi.setSystemTime(Date.now() + 31 * DAY);
  await component.pass(MINUTE);
  expect(await component.job(jobId)).toMatchObject({ status: "failed", errorCode: "nothing_heard" });
  world.fake.isAway = false;
  world.fake.move("processing");
  await component.t.mutation(api.jobs.retry, { jobId });
  await component.pass(0);
  expect(await component.job(jobId)).toMatchObject({ status: "processing", round: 1 });
});

// --- cancel and retry --------------------------------------------------------------------------

test("cancel ends a job that waits, and twice is the same as once", async () => {
  const { component, jobId } = await submitted();
  for (let time = 0; time < 2; time++) {
    await component.t.mutation(api.jobs.cancel, { jobId });
    await component.pass(0);
    expect((await component.job(jobId)).status).toBe("cancelled");
  }
  expect(world.fake.count("POST", /cancel/)).toBe(1);
});

test("cancel before the order went out sends none", async () => {
  const component = new Component();
  const jobId = await component.submit();
  await component.t.mutation(api.jobs.cancel, { jobId });
  await component.pass(HOUR);
  expect((await component.job(jobId)).status).toBe("cancelled");
  expect(world.fake.requests).toEqual([]);
});

test("cancel while the order's answer is lost cancels the job that there is", async () => {
  world.fake.faults = ["lost"];
  const { component, jobId } = await submitted();
  await component.t.mutation(api.jobs.cancel, { jobId });
  await component.pass(MINUTE);
  expect((await component.job(jobId)).status).toBe("cancelled");
  expect(world.fake.job().status).toBe("cancelled");
});

test.each<Fault>([
  { status: 401, code: "unauthorized" },
  { status: 403, code: "forbidden" },
  { status: 409, code: "job_conflict" },
  { status: 404, body: "<h1>Not found</h1>" },
])("cancel that is answered with %o is asked again, and loses no job", async (fault) => {
  const { component, jobId } = await submitted();
  world.fake.move("processing");
  world.fake.faults = [fault];
  await component.t.mutation(api.jobs.cancel, { jobId });
  await component.pass(0);
  expect(["queued", "processing"]).toContain((await component.job(jobId)).status);
  expect(world.fake.job().status).toBe("processing");
  await component.pass(10 * SECOND);
  expect((await component.job(jobId)).status).toBe("cancelled");
  expect(world.fake.count("POST", /cancel/)).toBe(2);
});

test("cancel that comes too late leaves the video", async () => {
  const { component, jobId } = await submitted();
  world.fake.move("completed");
  await component.t.mutation(api.jobs.cancel, { jobId });
  await component.pass(0);
  expect((await component.job(jobId)).status).toBe("completed");
});

test("retry opens the next round, once, even where its answer is lost", async () => {
  const { component, jobId } = await submitted();
  world.fake.move("failed", { error: "no GPU", error_code: "disk_full" });
  await component.pass(6 * SECOND);
  expect(await component.job(jobId)).toMatchObject({ status: "failed", errorCode: "disk_full" });
  world.fake.faults = [{ status: 503 }];
  await component.t.mutation(api.jobs.retry, { jobId });
  await component.pass(0);
  expect(await component.job(jobId)).toMatchObject({ status: "queued", round: 2, progress: 0 });
  const real = world.fake.fetch;
  vi.stubGlobal("fetch", async (url: string, init: RequestInit) => {
    const answer = await real(url, init);
    if (url.endsWith("/retry")) {
      world.fake.move("failed", { error: "no GPU again" }); // the second round ends at once
      throw new TypeError("fetch failed");
    }
    return answer;
  });
  await component.pass(MINUTE);
  expect(world.fake.count("POST", /retry/)).toBe(1);
  expect(await component.job(jobId)).toMatchObject({ status: "failed", round: 2, error: "no GPU again" });
});

test("a retry that the API refuses has failed, and may be tried again", async () => {
  const { component, jobId } = await submitted();
  world.fake.move("failed");
  await component.pass(6 * SECOND);
  const real = world.fake.fetch;
  vi.stubGlobal("fetch", (url: string, init: RequestInit) => {
    if (url.endsWith("/retry")) world.fake.faults = [{ status: 422, code: "model_unavailable" }];
    return real(url, init);
  });
  await component.t.mutation(api.jobs.retry, { jobId });
  await component.pass(0);
  expect(await component.job(jobId)).toMatchObject({ status: "failed", errorCode: "model_unavailable" });
  vi.stubGlobal("fetch", real);
  await component.t.mutation(api.jobs.retry, { jobId });
  await component.pass(0);
  expect(await component.job(jobId)).toMatchObject({ status: "queued", round: 2 });
  expect(world.fake.job().round).toBe(2);
});

test.each<Fault>([
  { status: 401, code: "unauthorized" },
  { status: 403, code: "forbidden" },
  { status: 409, code: "job_conflict" },
])("a retry that is answered with %o is asked again, for a day", async (fault) => {
  const { component, jobId } = await submitted();
  world.fake.move("failed");
  await component.pass(6 * SECOND);
  const real = world.fake.fetch;
  vi.stubGlobal("fetch", (url: string, init: RequestInit) => {
    if (url.endsWith("/retry")) world.fake.faults = [fault];
    return real(url, init);
  });
  await component.t.mutation(api.jobs.retry, { jobId });
  await component.pass(HOUR);
  expect(await component.job(jobId)).toMatchObject({ status: "queued", round: 2 });
  vi.setSystemTime(Date.now() + DAY);
  await component.pass(5 * MINUTE);
  expect(await component.job(jobId)).toMatchObject({ status: "failed", errorCode: "not_taken" });
  vi.stubGlobal("fetch", real);
  await component.t.mutation(api.jobs.retry, { jobId });
  await component.pass(0);
  expect(await component.job(jobId)).toMatchObject({ status: "queued", round: 2 });
  expect(world.fake.job().round).toBe(2);
});

test("a job with a video is not retried", async () => {
  const { component, jobId } = await submitted();
  await component.send(message("completed"));
  await expect(component.t.mutation(api.jobs.retry, { jobId })).rejects.toThrow("has its video");
});

// --- lists, fresh URLs, uploads, cleanup -------------------------------------------------------

test("a list has the owner's jobs only, newest first, page by page", async () => {
  const component = new Component();
  const ids: string[] = [];
  for (let job = 0; job < 5; job++) {
    ids.push(await component.submit({ prompt: `${job}` }));
    await component.submit({ prompt: "another's" }, "bob");
    await component.pass(10);
  }
  const found: string[] = [];
  let before: number | undefined;
  do {
    const page = await component.t.query(api.jobs.list, { ownerId: "ann", limit: 2, before });
    found.push(...page.jobs.map((job) => job.jobId));
    before = page.next ?? undefined;
  } while (before !== undefined);
  expect(found).toEqual(ids.reverse());
});

test("refresh brings URLs that are signed anew", async () => {
  const { component, jobId } = await submitted();
  await component.send(message("completed"));
  world.fake.move("completed", { result_url: "https://videos.test/files/output.mp4?new" });
  await component.t.action(api.jobs.refresh, { jobId });
  expect(await component.job(jobId)).toMatchObject({
    ...{ status: "completed", videoUrl: "https://videos.test/files/output.mp4?new" },
    urlsExpireAt: Date.parse("2030-01-01T00:00:00.000Z"),
  });
});

test("an upload's target comes from the API, for this type and size", async () => {
  const component = new Component();
  const target = await component.t.action(api.uploads.presign, { contentType: "image/png", contentLength: 9 });
  expect(target).toEqual({
    ...{ uploadUrl: "https://videos.test/files/inputs/a.png", uploadId: "job_upload" },
    expiresAt: Date.now() + HOUR,
  });
});

test("an image that the API does not take is refused in its words, which pages may see", async () => {
  world.fake.faults = [{ status: 422, code: "request_rejected" }];
  const refused = new Component().t.action(api.uploads.presign, { contentType: "text/plain" });
  await expect(refused).rejects.toMatchObject({ data: "The fake says 422." });
});

test("cleanup forgets what has ended long ago, however much, and nothing else", async () => {
  const component = new Component();
  await component.t.run(async (ctx) => {
    const wished = { wishedAt: 0, newsAt: 0, attempts: 1, quiet: 0, toldRound: 1, round: 1 };
    const row = { ...wished, ownerId: "ann", order: {}, cancelRequested: false, status: "failed" } as const;
    for (let job = 0; job < 250; job++) await ctx.db.insert("jobs", { ...row, endedAt: 1 + job });
    await ctx.db.insert("jobs", { ...row, endedAt: Date.now() });
    await ctx.db.insert("jobs", { ...row, status: "processing" });
  });
  await component.t.mutation(api.jobs.cleanup, { endedBefore: Date.now() - HOUR });
  await component.pass(SECOND);
  const left = await component.t.run((ctx) => ctx.db.query("jobs").collect());
  expect(left.map((job) => job.status)).toEqual(["failed", "processing"]);
});

test("an id that is none is no job", async () => {
  const component = new Component();
  expect(await component.t.query(api.jobs.get, { jobId: "what" })).toBeNull();
  await expect(component.t.mutation(api.jobs.cancel, { jobId: "what" })).rejects.toThrow("no such");
  expect(await component.t.action(api.jobs.refresh, { jobId: "what" })).toBeNull();
});
