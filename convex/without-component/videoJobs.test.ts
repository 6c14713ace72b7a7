import { convexTest } from "convex-test";
import { expect, test, vi } from "vitest";
import { FINISHED } from "../testing/fake_api.js";
import { message, pass, SECRET, signed, useWorld } from "../testing/world.js";
import { api, internal } from "./convex/_generated/api";
import schema from "./convex/schema";

const world = useWorld();
const WEBHOOK = "/api/webhooks/video-complete";

/** The app, a user who is signed in, and an image in storage. */
async function signIn() {
  vi.stubEnv("WEBHOOK_SECRET", SECRET);
  vi.stubEnv("CONVEX_SITE_URL", "https://happy-otter-1.convex.site");
  const t = convexTest(schema, import.meta.glob("./convex/**/*.{js,ts}"));
  const { userId, sourceImageId } = await t.run(async (ctx) => ({
    userId: await ctx.db.insert("users", {}),
    sourceImageId: await ctx.storage.store(new Blob(["png"])),
  }));
  return { t, user: t.withIdentity({ subject: `${userId}|session` }), sourceImageId };
}

async function ordered() {
  const { t, user, sourceImageId } = await signIn();
  const jobId = await user.mutation(api.videoJobs.create, { sourceImageId });
  await pass(t, 0);
  return { t, user, jobId };
}

test("the document's order is taken, and its row is queued", async () => {
  const { user, jobId } = await ordered();
  expect(world.fake.order).toMatchObject({
    ...{ prompt: "Generate a smooth video", duration: 5, image_url: expect.stringContaining("http") },
    webhook_url: `https://happy-otter-1.convex.site${WEBHOOK}`,
  });
  expect(world.fake.requests[0]?.key).toBe(jobId);
  expect(await user.query(api.videoJobs.get, { jobId })).toMatchObject({
    ...{ status: "queued", externalJobId: "job_1" },
  });
});

test("its httpAction takes our webhook as it is, with the plain secret beside the signature", async () => {
  const { t, user, jobId } = await ordered();
  const told = await t.fetch(WEBHOOK, signed(message("completed"), { plain: SECRET }));
  expect([told.status, await told.text()]).toEqual([200, "OK"]);
  expect(await user.query(api.videoJobs.get, { jobId })).toMatchObject({
    ...{ status: "completed", outputVideoUrl: `${FINISHED.result_url}?webhook` },
  });
});

test.each(["failed", "cancelled", "expired"])("a job that ends as %s has failed here", async (status) => {
  const { t, user, jobId } = await ordered();
  await t.fetch(WEBHOOK, signed(message(status), { plain: SECRET }));
  expect(await user.query(api.videoJobs.get, { jobId })).toMatchObject({
    ...{ status: "failed", errorMessage: `it was ${status}` },
  });
});

test("without the plain secret it is 401, signed or not", async () => {
  const { t, user, jobId } = await ordered();
  for (const how of [{}, { secrets: [] }, { plain: "another" }]) {
    expect((await t.fetch(WEBHOOK, signed(message("completed"), how))).status).toBe(401);
  }
  expect((await user.query(api.videoJobs.get, { jobId }))?.status).toBe("queued");
});

test("what comes twice, late or early undoes nothing", async () => {
  const { t, user, jobId } = await ordered();
  const deliver = (status: string) => t.fetch(WEBHOOK, signed(message(status), { plain: SECRET }));
  await deliver("completed");
  const done = await user.query(api.videoJobs.get, { jobId });
  await deliver("completed");
  await deliver("failed");
  await t.mutation(internal.videoJobs.updateStatus, { jobId, status: "processing" });
  expect(await user.query(api.videoJobs.get, { jobId })).toEqual(done);
  const early = t.fetch(WEBHOOK, signed(message("completed", { job_id: "job_9" }), { plain: SECRET }));
  await expect(early).rejects.toThrow("No job has this id yet"); // Convex answers 500: try again
});

test("an order that is refused has failed with what the API said", async () => {
  world.fake.faults = [{ status: 422, code: "request_rejected" }];
  const { user, jobId } = await ordered();
  const job = await user.query(api.videoJobs.get, { jobId });
  expect(job).toMatchObject({ status: "failed", errorMessage: expect.stringContaining("request_rejected") });
});

test("nobody orders without a login, or sees the job of somebody else", async () => {
  const { t, jobId } = await ordered();
  const sourceImageId = await t.run((ctx) => ctx.storage.store(new Blob(["png"])));
  await expect(t.mutation(api.videoJobs.create, { sourceImageId })).rejects.toThrow("Not authenticated");
  expect(await t.query(api.videoJobs.get, { jobId })).toBeNull();
});
