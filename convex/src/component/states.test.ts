import { expect, test } from "vitest";
import { counts, ends, isEnded, lastingUrls, mergeFacts } from "./states.js";
import type { Status } from "./shapes.js";

const NOW = Date.parse("2026-11-28T12:00:00Z");

const at = (text: string) => {
  const [status, round] = text.split(" ");
  return { status: status as Status, round: Number(round) };
};

test.each([
  ["submitting 1", "queued 1", true],
  ["queued 1", "processing 1", true],
  ["queued 1", "queued 1", true],
  ["processing 1", "processing 1", true],
  ["processing 1", "queued 1", false],
  ["processing 1", "failed 1", true],
  ["queued 1", "completed 1", true],
  // An end is left only by the next round, completed by nothing.
  ["completed 1", "processing 1", false],
  ["completed 1", "queued 2", false],
  ["completed 1", "failed 1", false],
  ["completed 1", "failed 2", false],
  ["completed 1", "completed 1", true],
  ["failed 1", "processing 1", false],
  ["failed 1", "cancelled 1", false],
  ["failed 1", "queued 2", true],
  ["failed 1", "failed 1", true],
  // What an earlier round says is late, but a video is a video.
  ["queued 2", "failed 1", false],
  ["processing 2", "processing 1", false],
  ["queued 2", "completed 1", true],
])("a job at %s hears of %s: %s", (job, news, expected) => {
  expect(counts(at(job), at(news))).toBe(expected);
});

test.each([
  ["processing 1", "completed 1", true],
  ["completed 1", "completed 1", false],
  ["failed 1", "failed 1", false],
  ["failed 1", "failed 2", true],
  ["queued 1", "processing 1", false],
  // Given up too early: what is heard in the end is an end of its own.
  ["failed 1", "completed 1", true],
  ["failed 2", "completed 1", true],
  ["completed 2", "completed 1", false],
])("from %s to %s is an end: %s", (job, news, expected) => {
  expect(ends(at(job), at(news))).toBe(expected);
});

test("progress does not go back within a round, and begins anew with the next", () => {
  const job = { ...at("processing 1"), progress: 60 };
  expect(mergeFacts(job, at("processing 1"), { progress: 40 }).progress).toBe(60);
  expect(mergeFacts(job, at("processing 1"), { progress: 70 }).progress).toBe(70);
  expect(mergeFacts(job, at("completed 1"), {}).progress).toBe(100);
  expect(mergeFacts(job, at("queued 2"), { progress: 0 }).progress).toBe(0);
});

test("an ended job keeps its URLs while they work, and takes new ones then", () => {
  const had = { videoUrl: "https://v.test/1", posterUrl: "https://p.test/1", teaserUrl: undefined };
  const told = { videoUrl: "https://v.test/2", posterUrl: "https://p.test/2", teaserUrl: "https://t.test/2" };
  const after = (from: string, urlsExpireAt?: number, round = 1) => {
    const facts = { ...told, urlsExpireAt: NOW + 1e9 };
    const news = { externalId: "job_1", round, status: "completed" as const, facts };
    return { ...facts, ...lastingUrls({ ...at(from), ...had, urlsExpireAt }, news, NOW) };
  };
  const kept = { videoUrl: had.videoUrl, posterUrl: had.posterUrl, teaserUrl: told.teaserUrl };
  expect(after("completed 1", NOW + 1e6)).toMatchObject({ ...kept, urlsExpireAt: NOW + 1e6 });
  expect(after("completed 1", NOW + 1000)).toMatchObject({ ...told, urlsExpireAt: NOW + 1e9 });
  expect(after("completed 1")).toMatchObject(told);
  expect(after("processing 1", NOW + 1e6)).toMatchObject(told);
  expect(after("failed 1", NOW + 1e6, 2)).toMatchObject(told);
});

test("four statuses are ends", () => {
  const all: Status[] = ["submitting", "queued", "processing", "completed", "failed", "cancelled", "expired"];
  expect(all.filter(isEnded)).toEqual(["completed", "failed", "cancelled", "expired"]);
});
