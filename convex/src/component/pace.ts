/** When a job's next step is due; all in milliseconds. */
import type { Status } from "./shapes.js";

const SECOND = 1000;
const MINUTE = 60 * SECOND;
const HOUR = 60 * MINUTE;

/** Longer than the request that a step makes may take; the step after a lost one. */
export const SAFETY = 2 * MINUTE;
/** An order or a retry that the API has not taken for so long has failed. */
export const GIVE_UP = 24 * HOUR;
/** A job of which nothing could be heard for so long has failed. */
export const LOST = 30 * 24 * HOUR;
/** A page that shows the job says so every half minute; for so long it counts. */
export const WATCHED = MINUTE;

const ASKED = { first: 2 * SECOND, most: 5 * MINUTE };
const WAITING = { first: 5 * SECOND, most: 10 * MINUTE };
const WORKING = { first: 5 * SECOND, most: MINUTE };
const SEEN = 3 * SECOND;
const RETRY_AFTER_MOST = HOUR;

/** Until the API is asked again for what it has not taken, for the `attempts`th time. */
export function backOff(attempts: number, retryAfterSeconds = 0): number {
  const asked = Math.min(retryAfterSeconds * SECOND, RETRY_AFTER_MOST);
  return Math.max(asked, grown(ASKED, attempts - 1, 2));
}

/** Until the job is polled again: soon while somebody looks, ever more rarely while nothing changes. */
export function pollAfter(job: { status: Status; quiet: number }, isWatched: boolean): number {
  if (isWatched) return SEEN;
  return grown(job.status === "processing" ? WORKING : WAITING, job.quiet, 1.5);
}

function grown(range: { first: number; most: number }, times: number, by: number): number {
  return Math.min(range.most, range.first * by ** Math.min(Math.max(times, 0), 50));
}
