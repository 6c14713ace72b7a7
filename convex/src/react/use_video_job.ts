import { useAction, useMutation, useQuery } from "convex/react";
import { useCallback, useEffect, useReducer } from "react";
import type { Status, VideoJob } from "../component/shapes.js";
import { isEnded } from "../component/states.js";
import type { VideosApi } from "./videos_api.js";

/** Milliseconds; the component counts a watch for a minute. */
const WATCH_EVERY = 30_000;
/** Browsers fire timers that are longer at once. */
const LONGEST_TIMER = 2 ** 31 - 1;

export interface VideoJobState {
  /** `loading`: not read yet; `missing`: there is none, or it is somebody else's. */
  status: Status | "loading" | "missing";
  stage?: string;
  /** Percent; 100 only when completed. */
  progress: number;
  etaSeconds?: number;
  queuePosition?: number;
  /** Absent while the URL that there was is being signed anew. */
  videoUrl?: string;
  posterUrl?: string;
  costUsd?: number;
  error?: string;
  errorCode?: string;
  isEnded: boolean;
  /** The whole job. */
  job?: VideoJob;
  cancel: () => Promise<null>;
  retry: () => Promise<null>;
}

/**
 * The job as it is now, kept up to date.
 *
 * While the page is seen, progress is three seconds old at most. Without a jobId it is `missing`.
 */
export function useVideoJob(api: VideosApi, jobId: string | null | undefined): VideoJobState {
  const found = useQuery(api.get, jobId ? { jobId } : "skip");
  const cancel = useMutation(api.cancel);
  const retry = useMutation(api.retry);
  const job = found ?? undefined;
  const isOpen = job !== undefined && !isEnded(job.status);
  useWatch(api, isOpen ? job.jobId : undefined);
  const areFresh = useFreshUrls(api, job);
  const id = jobId ?? "";
  return {
    status: job?.status ?? (jobId && found === undefined ? "loading" : "missing"),
    stage: job?.stage,
    progress: job?.progress ?? 0,
    etaSeconds: job?.etaSeconds,
    queuePosition: job?.queuePosition,
    videoUrl: areFresh ? job?.videoUrl : undefined,
    posterUrl: areFresh ? job?.posterUrl : undefined,
    costUsd: job?.costUsd,
    error: job?.error,
    errorCode: job?.errorCode,
    isEnded: job !== undefined && !isOpen,
    job,
    cancel: useCallback(() => cancel({ jobId: id }), [cancel, id]),
    retry: useCallback(() => retry({ jobId: id }), [retry, id]),
  };
}

/** Says every half minute that somebody looks, as long as somebody does. */
function useWatch(api: VideosApi, jobId: string | undefined): void {
  const watch = useMutation(api.watch);
  useEffect(() => {
    if (!jobId) return undefined;
    const look = () => {
      if (document.visibilityState === "visible") watch({ jobId }).catch(ignore);
    };
    look();
    document.addEventListener("visibilitychange", look);
    const timer = setInterval(look, WATCH_EVERY);
    return () => {
      document.removeEventListener("visibilitychange", look);
      clearInterval(timer);
    };
  }, [watch, jobId]);
}

/** Whether the job's URLs still work; where they do not, or no longer, new ones are asked for. */
function useFreshUrls(api: VideosApi, job: VideoJob | undefined): boolean {
  const refresh = useAction(api.refresh);
  const [looks, look] = useReducer((count: number) => count + 1, 0);
  const expireAt = job?.urlsExpireAt ?? Infinity;
  const areFresh = expireAt > Date.now();
  useEffect(() => {
    if (!areFresh || expireAt === Infinity) return undefined;
    const timer = setTimeout(look, Math.min(expireAt - Date.now(), LONGEST_TIMER));
    return () => clearTimeout(timer);
  }, [expireAt, areFresh, looks]);
  const stale = job?.status === "completed" && !areFresh ? job.jobId : undefined;
  useEffect(() => {
    if (stale) refresh({ jobId: stale }).catch(ignore);
  }, [refresh, stale]);
  return areFresh;
}

/** A look or a refresh that failed: the page shows what it has. */
function ignore(): void {}
