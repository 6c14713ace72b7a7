import { act, cleanup, renderHook } from "@testing-library/react";
import { ConvexProvider, type ConvexReactClient } from "convex/react";
import { getFunctionName, type FunctionReference } from "convex/server";
import type { PropsWithChildren } from "react";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { api } from "../../example/convex/_generated/api.js";
import type { VideoJob } from "../component/shapes.js";
import { useVideoJob, useVideoUpload } from "./index.js";

const NOW = Date.parse("2026-11-20T12:00:00Z");
const JOB: VideoJob = {
  ...{ jobId: "j1", ownerId: "ann", status: "queued", round: 1, cancelRequested: false, createdAt: NOW },
  ...{ order: { prompt: "slow zoom in" }, progress: 0, queuePosition: 3 },
};

/** A client whose one query has the answer that the test sets, and which keeps what is called. */
class Client {
  readonly calls: [string, unknown][] = [];
  answers: Record<string, unknown> = {};
  #value: VideoJob | null | undefined;
  readonly #listeners = new Set<() => void>();

  set(value: VideoJob | null): void {
    act(() => {
      this.#value = value;
      for (const tell of this.#listeners) tell();
    });
  }

  called(name: string): unknown[] {
    return this.calls.filter(([called]) => called === `videos:${name}`).map(([, args]) => args);
  }

  watchQuery() {
    return {
      onUpdate: (tell: () => void) => {
        this.#listeners.add(tell);
        return () => this.#listeners.delete(tell);
      },
      localQueryResult: () => this.#value,
      journal: () => undefined,
    };
  }

  mutation = (reference: FunctionReference<"mutation">, args: unknown) => this.#call(reference, args);
  action = (reference: FunctionReference<"action">, args: unknown) => this.#call(reference, args);

  #call(reference: FunctionReference<"mutation" | "action">, args: unknown): Promise<unknown> {
    const name = getFunctionName(reference);
    this.calls.push([name, args]);
    const answer = this.answers[name] ?? null;
    return answer instanceof Error ? Promise.reject(answer) : Promise.resolve(answer);
  }
}

let client: Client;
const wrapper = ({ children }: PropsWithChildren) => (
  <ConvexProvider client={client as unknown as ConvexReactClient}>{children}</ConvexProvider>
);
const show = (jobId: string | null) => renderHook(() => useVideoJob(api.videos, jobId), { wrapper }).result;

beforeEach(() => {
  client = new Client();
  vi.useFakeTimers({ now: NOW });
});
afterEach(() => {
  cleanup();
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

test("a job is loading, then what the query says, and missing where there is none", () => {
  const shown = show("j1");
  expect(shown.current).toMatchObject({ status: "loading", progress: 0, isEnded: false });
  client.set(JOB);
  expect(shown.current).toMatchObject({ status: "queued", queuePosition: 3, job: JOB });
  client.set({ ...JOB, status: "processing", stage: "infer", progress: 42, etaSeconds: 9 });
  expect(shown.current).toMatchObject({ status: "processing", stage: "infer", progress: 42, etaSeconds: 9 });
  client.set({ ...JOB, status: "failed", error: "no GPU", errorCode: "disk_full" });
  expect(shown.current).toMatchObject({ isEnded: true, error: "no GPU", errorCode: "disk_full" });
  client.set(null);
  expect(shown.current.status).toBe("missing");
});

test("without an id nothing is asked", () => {
  expect(show(null).current.status).toBe("missing");
  expect(client.calls).toEqual([]);
});

test("cancel and retry are for this job", async () => {
  const shown = show("j1");
  client.set(JOB);
  await act(async () => [await shown.current.cancel(), await shown.current.retry()]);
  expect(client.called("cancel")).toEqual([{ jobId: "j1" }]);
  expect(client.called("retry")).toEqual([{ jobId: "j1" }]);
});

test("an open job is watched every half minute until it ends", () => {
  const shown = show("j1");
  expect(client.called("watch")).toHaveLength(0);
  client.set(JOB);
  vi.advanceTimersByTime(90_000);
  expect(client.called("watch")).toHaveLength(4);
  client.set({ ...JOB, status: "completed", videoUrl: "https://videos.test/a.mp4" });
  vi.advanceTimersByTime(90_000);
  expect(client.called("watch")).toHaveLength(4);
  expect(shown.current.videoUrl).toBe("https://videos.test/a.mp4");
});

test("a page that nobody sees watches nothing", () => {
  vi.spyOn(document, "visibilityState", "get").mockReturnValue("hidden");
  show("j1");
  client.set(JOB);
  vi.advanceTimersByTime(90_000);
  expect(client.called("watch")).toEqual([]);
  vi.restoreAllMocks();
});

test("URLs that have expired are not shown, and new ones are asked for once", () => {
  const shown = show("j1");
  const done: VideoJob = { ...JOB, status: "completed", videoUrl: "https://videos.test/old.mp4" };
  client.set({ ...done, urlsExpireAt: NOW - 1 });
  expect(shown.current.videoUrl).toBeUndefined();
  client.set({ ...done, urlsExpireAt: NOW - 1, progress: 100 });
  expect(client.called("refresh")).toEqual([{ jobId: "j1" }]);
  client.set({ ...done, videoUrl: "https://videos.test/new.mp4", urlsExpireAt: NOW + 1000 });
  expect(shown.current.videoUrl).toBe("https://videos.test/new.mp4");
});

test("URLs that expire on an open page are signed anew then, be it in a month", () => {
  const shown = show("j1");
  const month = 30 * 24 * 60 * 60 * 1000;
  const old = { videoUrl: "https://videos.test/old.mp4", urlsExpireAt: NOW + month };
  client.set({ ...JOB, status: "completed", ...old });
  act(() => void vi.advanceTimersByTime(month - 1));
  expect(shown.current.videoUrl).toBe("https://videos.test/old.mp4");
  expect(client.called("refresh")).toEqual([]);
  act(() => void vi.advanceTimersByTime(1));
  expect(shown.current.videoUrl).toBeUndefined();
  expect(client.called("refresh")).toEqual([{ jobId: "j1" }]);
});

// --- uploads -----------------------------------------------------------------------------------

/** An XMLHttpRequest that answers as told. */
function answering(status: number | "no answer") {
  const sent: { method: string; url: string; type: string; body: unknown }[] = [];
  class Request {
    status = 0;
    upload: { onprogress?: (event: { loaded: number; total: number }) => void } = {};
    onload?: () => void;
    onerror?: () => void;
    #head = { method: "", url: "", type: "" };
    open(method: string, url: string): void {
      this.#head = { method, url, type: "" };
    }
    setRequestHeader(_name: string, value: string): void {
      this.#head.type = value;
    }
    send(body: unknown): void {
      sent.push({ ...this.#head, body });
      this.upload.onprogress?.({ loaded: 1, total: 2 });
      if (status === "no answer") this.onerror?.();
      else {
        this.status = status;
        this.onload?.();
      }
    }
  }
  vi.stubGlobal("XMLHttpRequest", Request);
  return sent;
}

const FILE = new File(["png"], "a.png", { type: "image/png" });
const TARGET = { uploadUrl: "https://videos.test/put", uploadId: "job_upload", expiresAt: NOW };

test("an upload goes to the URL that the API signed for it", async () => {
  const sent = answering(200);
  client.answers["videos:presignUpload"] = TARGET;
  const { result } = renderHook(() => useVideoUpload(api.videos), { wrapper });
  const id = await act(() => result.current.upload(FILE));
  expect(id).toBe("job_upload");
  expect(client.called("presignUpload")).toEqual([{ contentType: "image/png", contentLength: 3 }]);
  expect(sent).toEqual([{ method: "PUT", url: TARGET.uploadUrl, type: "image/png", body: FILE }]);
  expect(result.current).toMatchObject({ isUploading: false, progress: 100 });
});

test.each([
  [403 as const, "The storage answers 403"],
  ["no answer" as const, "CORS"],
])("an upload that ends with %s has failed and says why", async (status, text) => {
  answering(status);
  client.answers["videos:presignUpload"] = TARGET;
  const { result } = renderHook(() => useVideoUpload(api.videos), { wrapper });
  await act(() => expect(result.current.upload(FILE)).rejects.toThrow(text));
  expect(result.current.isUploading).toBe(false);
  expect(result.current.error).toContain(text);
});

test("an image that the API does not take has failed before a byte is sent", async () => {
  const sent = answering(200);
  client.answers["videos:presignUpload"] = new Error("no such type");
  const { result } = renderHook(() => useVideoUpload(api.videos), { wrapper });
  await act(() => expect(result.current.upload(FILE)).rejects.toThrow("no such type"));
  expect(sent).toEqual([]);
});
