import { expect, test } from "vitest";
import { message } from "../../testing/world.js";
import { readMessage } from "./message.js";

test("the message of a finished video gives all its facts", () => {
  const read = readMessage(JSON.stringify(message("completed")), "job_1-r1");
  expect(read).toEqual({
    webhookId: "job_1-r1",
    news: {
      externalId: "job_1",
      round: 1,
      status: "completed",
      facts: {
        videoUrl: "https://videos.test/files/output.mp4?webhook",
        posterUrl: "https://videos.test/files/poster.jpg",
        urlsExpireAt: Date.parse("2026-11-20T13:00:00.000Z"),
        seed: 7,
        costUsd: 0.0011,
        gpuSeconds: 6.1,
      },
    },
  });
});

test("the true status is that of data, where the flat one knows two words", () => {
  const read = readMessage(JSON.stringify(message("expired")), "job_1-r1");
  expect(read?.news).toMatchObject({ status: "expired", facts: { error: "it was expired" } });
});

test("the design document's four flat fields are enough", () => {
  const flat = { job_id: "job_1", status: "failed", video_url: null, error: "no GPU" };
  expect(readMessage(JSON.stringify(flat), undefined)).toEqual({
    webhookId: "plain job_1  failed",
    news: { externalId: "job_1", round: undefined, status: "failed", facts: { error: "no GPU" } },
  });
});

test("of a message without its data, the id names the round", () => {
  const short = { job_id: "job_1", status: "failed", data: { job_id: "job_1", truncated: true } };
  expect(readMessage(JSON.stringify(short), "job_1-r3")?.news.round).toBe(3);
});

test.each(["", "nothing", "null", "[]", '{"job_id": "job_1"}', '{"job_id": "a", "status": "done"}', '{"status": "failed"}', '{"job_id": 7, "status": "failed"}'])(
  "%s is no message",
  (body) => {
    expect(readMessage(body, "id")).toBeNull();
  },
);
