import { expect, test, vi } from "vitest";
import { api, components } from "../../example/convex/_generated/api.js";
import { deployExample } from "../../testing/example_app.js";
import { DAY, message, pass, SECOND, signed, useWorld } from "../../testing/world.js";
import { VideoJobs } from "./index.js";

const world = useWorld();
const ANN = { subject: "ann" };
const BOB = { subject: "bob" };

function deploy() {
  vi.stubEnv("CONVEX_SITE_URL", "https://happy-otter-1.convex.site");
  return deployExample();
}

test("from a mutation of the app to the video, in three calls of a page", async () => {
  const t = deploy();
  const jobId = await t.mutation(api.videos.create, { prompt: "slow zoom in" });
  expect(await t.query(api.videos.get, { jobId })).toMatchObject({ status: "submitting", ownerId: "visitor" });
  await pass(t, 0);
  expect(world.fake.order.webhook_url).toBe("https://happy-otter-1.convex.site/video/webhook");
  const answer = await t.fetch("/video/webhook", signed(message("completed")));
  expect(answer.status).toBe(200);
  expect(await t.query(api.videos.get, { jobId })).toMatchObject({
    ...{ status: "completed", order: { prompt: "slow zoom in" } },
  });
});

test("a mutation that fails leaves neither a row nor an order", async () => {
  const t = deploy();
  const videos = new VideoJobs(components.videoJobs);
  const failing = t.mutation(async (ctx) => {
    await videos.submit(ctx, { ownerId: "ann", prompt: "slow zoom in" });
    throw new Error("the app changed its mind");
  });
  await expect(failing).rejects.toThrow("changed its mind");
  await pass(t, 60 * SECOND);
  expect(world.fake.requests).toEqual([]);
  expect(await t.query(api.videos.list, {})).toEqual({ jobs: [], next: null });
});

test("the app hears of the end once, however often it is told", async () => {
  const t = deploy();
  const jobId = await t.mutation(api.videos.create, { prompt: "slow zoom in" });
  await pass(t, 0);
  world.fake.move("completed");
  await pass(t, 6 * SECOND);
  for (const id of ["job_1-r1", "job_1-r1", "job_1-r1-again"]) {
    await t.fetch("/video/webhook", signed(message("completed"), { id }));
  }
  await pass(t, 6 * SECOND);
  const kept = await t.run((ctx) => ctx.db.query("gallery").collect());
  expect(kept).toMatchObject([{ jobId, ownerId: "visitor", status: "completed" }]);
});

test("the app hears of a failure and of the round after it", async () => {
  const t = deploy();
  const jobId = await t.mutation(api.videos.create, { prompt: "slow zoom in" });
  await pass(t, 0);
  world.fake.move("failed");
  await t.fetch("/video/webhook", signed(message("failed")));
  await t.mutation(api.videos.retry, { jobId });
  await pass(t, 0);
  await t.fetch("/video/webhook", signed(message("completed", { round: 2 }), { id: "job_1-r2" }));
  await pass(t, 0);
  const kept = await t.run((ctx) => ctx.db.query("gallery").collect());
  expect(kept.map((one) => one.status)).toEqual(["failed", "completed"]);
});

test("the app hears of the video of a job that was given up", async () => {
  const t = deploy();
  const jobId = await t.mutation(api.videos.create, { prompt: "slow zoom in" });
  await pass(t, 0);
  world.fake.isAway = true;
  vi.setSystemTime(Date.now() + 31 * DAY);
  await pass(t, 60 * SECOND);
  const givenUp = await t.query(api.videos.get, { jobId });
  expect(givenUp).toMatchObject({ status: "failed", errorCode: "nothing_heard" });
  for (const id of ["job_1-r1", "job_1-r1-again"]) {
    await t.fetch("/video/webhook", signed(message("completed"), { id }));
    await pass(t, 0);
  }
  const kept = await t.run((ctx) => ctx.db.query("gallery").collect());
  expect(kept.map((one) => one.status)).toEqual(["failed", "completed"]);
  const job = await t.query(api.videos.get, { jobId });
  expect(job?.status).toBe("completed");
  expect(job?.endedAt).toBeGreaterThan(givenUp?.endedAt ?? Infinity);
  expect(job).not.toHaveProperty("errorCode");
});

test("nobody sees or changes the job of somebody else", async () => {
  const t = deploy();
  const jobId = await t.withIdentity(ANN).mutation(api.videos.create, { prompt: "slow zoom in" });
  const bob = t.withIdentity(BOB);
  expect(await bob.query(api.videos.get, { jobId })).toBeNull();
  expect((await bob.query(api.videos.list, {})).jobs).toEqual([]);
  for (const change of [api.videos.cancel, api.videos.retry, api.videos.watch]) {
    await expect(bob.mutation(change, { jobId })).rejects.toThrow("no such video job");
  }
  await expect(bob.action(api.videos.refresh, { jobId })).rejects.toThrow("no such video job");
  expect((await t.withIdentity(ANN).query(api.videos.list, {})).jobs).toMatchObject([{ jobId }]);
});

test("a page may cancel, watch, refresh and upload", async () => {
  const t = deploy();
  const jobId = await t.mutation(api.videos.create, { prompt: "slow zoom in" });
  await pass(t, 0);
  await t.mutation(api.videos.watch, { jobId });
  await t.action(api.videos.refresh, { jobId });
  await t.mutation(api.videos.cancel, { jobId });
  await pass(t, 0);
  expect(await t.query(api.videos.get, { jobId })).toMatchObject({ status: "cancelled", cancelRequested: true });
  const target = await t.action(api.videos.presignUpload, { contentType: "image/png" });
  expect(target.uploadId).toBe("job_upload");
});

test.each([
  [undefined, "https://happy-otter-1.convex.site/video/webhook"],
  ["/hooks/videos", "https://happy-otter-1.convex.site/hooks/videos"],
  [null, undefined],
])("with %o as webhookPath the webhook is %s", async (webhookPath, address) => {
  const t = deploy();
  const videos = new VideoJobs(components.videoJobs, { webhookPath });
  await t.mutation((ctx) => videos.submit(ctx, { ownerId: "ann", prompt: "slow zoom in" }));
  await pass(t, 0);
  expect(world.fake.order.webhook_url).toBe(address);
});

test("without a webhook polling alone brings the video", async () => {
  const t = deployExample();
  const jobId = await t.mutation(api.videos.create, { prompt: "slow zoom in" });
  await pass(t, 0);
  expect(world.fake.order).not.toHaveProperty("webhook_url");
  world.fake.move("completed");
  await pass(t, 6 * SECOND);
  expect(await t.query(api.videos.get, { jobId })).toMatchObject({ status: "completed" });
});
