import { expect, test, vi } from "vitest";
import { api } from "./_generated/api.js";
import {
  Component,
  DAY,
  message,
  OLD_SECRET,
  OTHER_SECRET,
  SECOND,
  SECRET,
  signed,
  useWorld,
  type Signing,
} from "../../testing/world.js";

const world = useWorld();

/** A component with a job that the API has queued. */
async function queued(): Promise<{ component: Component; jobId: string }> {
  const component = new Component();
  const jobId = await component.submit();
  await component.pass(0);
  expect((await component.job(jobId)).status).toBe("queued");
  return { component, jobId };
}

test.each<[string, Signing, number, string]>([
  ["signed", {}, 200, "applied"],
  ["signed with the old secret and the new one", { secrets: [OLD_SECRET, SECRET] }, 200, "applied"],
  ["signed with another secret", { secrets: [OTHER_SECRET] }, 401, "unauthorized"],
  ["signed with another secret, with the plain one", { secrets: [OTHER_SECRET], plain: SECRET }, 401, "unauthorized"],
  ["signed with the old secret, which is not known", { secrets: [OLD_SECRET] }, 401, "unauthorized"],
  ["not signed", { secrets: [] }, 401, "unauthorized"],
  ["not signed, with the plain secret", { secrets: [], plain: SECRET }, 200, "applied"],
  ["not signed, with another plain secret", { secrets: [], plain: OTHER_SECRET }, 401, "unauthorized"],
  ["tampered", { body: JSON.stringify({ ...message("completed"), video_url: "https://evil.example/" }) }, 401, "unauthorized"],
  ["written anew", { body: JSON.stringify(message("completed"), null, 1) }, 401, "unauthorized"],
  ["six minutes old", { age: 360 }, 400, "stale"],
  ["six minutes from now", { age: -360 }, 400, "stale"],
  ["old and forged", { age: 360, secrets: [OTHER_SECRET] }, 401, "unauthorized"],
  ["four minutes old", { age: 240 }, 200, "applied"],
])("a delivery that is %s", async (_, how, status, outcome) => {
  const { component, jobId } = await queued();
  const answer = await component.send(message("completed"), how);
  expect([answer.status, await answer.json()]).toEqual([status, { outcome }]);
  expect((await component.job(jobId)).status).toBe(outcome === "applied" ? "completed" : "queued");
});

test("while the secret is rotated, the one before is good", async () => {
  vi.stubEnv("VIDEO_WEBHOOK_SECRET_PREVIOUS", OLD_SECRET);
  const { component } = await queued();
  expect((await component.send(message("completed"), { secrets: [OLD_SECRET] })).status).toBe(200);
});

test("a secret that is no whsec_ is its own bytes, as the API has it", async () => {
  vi.stubEnv("VIDEO_WEBHOOK_SECRET", "your-webhook-secret");
  const { component } = await queued();
  const secrets = [`whsec_${btoa("your-webhook-secret")}`];
  expect((await component.send(message("completed"), { secrets })).status).toBe(200);
});

test.each(["webhook-id", "webhook-timestamp"])("without %s a signature says nothing", async (name) => {
  const { component } = await queued();
  const { headers, ...rest } = signed(message("completed"));
  const { [name]: _, ...fewer } = headers as Record<string, string>;
  expect((await component.t.fetch("/webhook", { ...rest, headers: fewer })).status).toBe(401);
});

test("a timestamp that is no number is refused", async () => {
  const { component } = await queued();
  const init = signed(message("completed"));
  const headers = { ...(init.headers as Record<string, string>), "webhook-timestamp": "now" };
  expect((await component.t.fetch("/webhook", { ...init, headers })).status).toBe(401);
});

test("the facts of the video are in the job", async () => {
  const { component, jobId } = await queued();
  await component.send(message("completed"));
  expect(await component.job(jobId)).toMatchObject({
    ...{ status: "completed", progress: 100, externalId: "job_1", seed: 7, costUsd: 0.0011 },
    videoUrl: "https://videos.test/files/output.mp4?webhook",
    endedAt: Date.now(),
  });
});

test("the same delivery again is 2xx and changes nothing", async () => {
  const { component, jobId } = await queued();
  await component.send(message("completed"));
  const before = await component.job(jobId);
  await component.pass(10 * SECOND);
  const again = await component.send(message("completed"));
  expect([again.status, await again.json()]).toEqual([200, { outcome: "duplicate" }]);
  expect(await component.job(jobId)).toEqual(before);
  expect(await component.t.run((ctx) => ctx.db.query("deliveries").collect())).toHaveLength(1);
});

test("a duplicate or late processing never undoes completed", async () => {
  const { component, jobId } = await queued();
  await component.send(message("processing"), { id: "p1" });
  expect((await component.job(jobId)).status).toBe("processing");
  await component.send(message("completed"));
  const done = await component.job(jobId);
  for (const id of ["p1", "p2"]) {
    const late = await component.send(message("processing"), { id });
    expect(late.status).toBe(200);
  }
  expect(await component.job(jobId)).toEqual(done);
});

test("a failure that comes after the video is late", async () => {
  const { component, jobId } = await queued();
  await component.send(message("completed"));
  const late = await component.send(message("failed"), { id: "job_1-r1-late" });
  expect(await late.json()).toEqual({ outcome: "late" });
  expect((await component.job(jobId)).status).toBe("completed");
});

test("a message that comes before the API's answer to the order is kept for it", async () => {
  const component = new Component();
  const early = await component.send(message("completed"));
  expect([early.status, await early.json()]).toEqual([202, { outcome: "early" }]);
  const jobId = await component.submit();
  await component.pass(0);
  expect((await component.job(jobId)).status).toBe("completed");
  expect(world.fake.count("GET", /jobs/)).toBe(0);
});

test("a message about somebody else's job is no error", async () => {
  const { component, jobId } = await queued();
  const other = await component.send(message("failed", { job_id: "job_77" }), { id: "job_77-r1" });
  expect(other.status).toBe(202);
  expect((await component.job(jobId)).status).toBe("queued");
});

test("the end of the first round is late once the second has begun", async () => {
  const { component, jobId } = await queued();
  world.fake.move("failed", { error: "no GPU" });
  await component.send(message("failed"));
  await component.t.mutation(api.jobs.retry, { jobId });
  await component.pass(0);
  const late = await component.send(message("failed"), { id: "job_1-r1-again" });
  expect(await late.json()).toEqual({ outcome: "late" });
  expect(await component.job(jobId)).toMatchObject({ status: "queued", round: 2 });
  await component.send(message("completed", { round: 2 }), { id: "job_1-r2" });
  expect(await component.job(jobId)).toMatchObject({ status: "completed", round: 2 });
});

test("a round that is opened at the API, and told of, is followed to its end", async () => {
  const { component, jobId } = await queued();
  await component.t.mutation(api.jobs.cancel, { jobId });
  await component.pass(0);
  expect((await component.job(jobId)).status).toBe("cancelled");
  world.fake.move("processing", { round: 2 });
  const told = await component.send(message("processing", { round: 2 }), { id: "job_1-r2-p" });
  expect(await told.json()).toEqual({ outcome: "applied" });
  expect(await component.job(jobId)).toMatchObject({ status: "processing", round: 2, cancelRequested: false });
  world.fake.move("completed"); // and no webhook
  await component.pass(6 * SECOND);
  expect(await component.job(jobId)).toMatchObject({ status: "completed", round: 2 });
});

test("what is no message is 400, and a very long one is 413", async () => {
  const { component } = await queued();
  expect((await component.send({ hello: "world" })).status).toBe(400);
  expect((await component.send({ hello: "x".repeat(200_000) })).status).toBe(413);
});

test("deliveries are forgotten after two weeks", async () => {
  const { component } = await queued();
  await component.send(message("completed"));
  await component.pass(15 * DAY);
  await component.t.mutation(api.jobs.cleanup, { endedBefore: 0 });
  expect(await component.t.run((ctx) => ctx.db.query("deliveries").collect())).toEqual([]);
});
