import { expect, test } from "vitest";
import { backOff, pollAfter } from "./pace.js";

const SECOND = 1000;

test("an order is sent again after 2, 4, 8 ... seconds, and every five minutes in the end", () => {
  expect([1, 2, 3, 4].map((attempts) => backOff(attempts) / SECOND)).toEqual([2, 4, 8, 16]);
  expect(backOff(50)).toBe(300 * SECOND);
});

test("a Retry-After that asks for longer is heard, up to an hour", () => {
  expect(backOff(1, 60)).toBe(60 * SECOND);
  expect(backOff(4, 1)).toBe(16 * SECOND);
  expect(backOff(1, 1e9)).toBe(3600 * SECOND);
});

test("a job that nobody watches is polled ever more rarely, one that is watched every three seconds", () => {
  const waits = (status: "queued" | "processing") =>
    [0, 1, 4, 100].map((quiet) => pollAfter({ status, quiet }, false) / SECOND);
  expect(waits("queued")).toEqual([5, 7.5, 25.3125, 600]);
  expect(waits("processing")).toEqual([5, 7.5, 25.3125, 60]);
  expect(pollAfter({ status: "queued", quiet: 100 }, true)).toBe(3 * SECOND);
});
