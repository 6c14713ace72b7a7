/** Which news about a job counts: rounds and statuses only move forward. */
import type { Facts, News, Status } from "./shapes.js";

const RANK: Record<Status, number> = {
  submitting: 0,
  queued: 1,
  processing: 2,
  completed: 3,
  failed: 3,
  cancelled: 3,
  expired: 3,
};

/** Milliseconds for which a URL has to work still, so that it stays. */
const URLS_LAST = 60_000;

interface Standing {
  round: number;
  status: Status;
}

export function isEnded(status: Status): boolean {
  return RANK[status] === 3;
}

/** Whether a job that stands here is changed by this news; the same standing again is a refresh. */
export function counts(job: Standing, news: Standing): boolean {
  if (job.status === "completed" || news.status === "completed") return news.status === "completed";
  if (news.round !== job.round) return news.round > job.round;
  if (isEnded(job.status)) return news.status === job.status;
  return RANK[news.status] >= RANK[job.status];
}

/** Whether news that counts is an end where the job was not yet; after a video there is none. */
export function ends(job: Standing, news: Standing): boolean {
  if (job.status === "completed") return false;
  return isEnded(news.status) && !(news.status === job.status && news.round === job.round);
}

/** The facts after this news: those of the round, and progress never goes back within it. */
export function mergeFacts(job: Standing & Facts, news: Standing, told: Facts): Facts {
  if (job.round !== news.round) return told;
  const live = isEnded(news.status)
    ? { stage: undefined, phase: undefined, etaSeconds: undefined, queuePosition: undefined }
    : {};
  const progress = news.status === "completed" ? 100 : Math.max(job.progress ?? 0, told.progress ?? 0);
  return { ...told, ...live, progress };
}

/** The URLs of an ended job for as long as they work: a video that plays is not to begin anew. */
export function lastingUrls(job: Standing & Facts, news: News, now: number): Facts {
  const told = news.facts;
  const { videoUrl, posterUrl = told.posterUrl, teaserUrl = told.teaserUrl, urlsExpireAt } = job;
  const isSame = isEnded(job.status) && (news.round ?? job.round) === job.round;
  if (!isSame || !videoUrl || (urlsExpireAt ?? 0) < now + URLS_LAST) return {};
  return { videoUrl, posterUrl, teaserUrl, urlsExpireAt };
}

/** News about the round that it names, or about the one that the job is in. */
export function standingOf(news: News, job: Standing): Standing {
  return { round: news.round ?? job.round, status: news.status };
}
