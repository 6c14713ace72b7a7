// Addresses of files: they are signed, and end.

import { call } from "./api.js";

/** Whether the addresses that were signed for this job have ended. */
export const hasEnded = (job) => Boolean(job.url_expires_at) && Date.parse(job.url_expires_at) <= Date.now();

/** The job while its addresses work, else the job as it is now, of which `tell(job)` is told. */
export async function working(job, tell) {
  if (!hasEnded(job)) return job;
  const read = await call("GET", `api/v1/jobs/${job.job_id}`);
  tell(read);
  return read;
}

/** Give a film whose address, taken from this job, has ended the newest one where it stood. */
export async function renew(video, job, newest, tell) {
  if (!hasEnded(job)) return job;
  const { currentTime, paused } = video;
  const found = await working(newest(), tell);
  if (found.result_url && video.isConnected) {
    video.src = found.result_url;
    video.currentTime = currentTime;
    if (!paused) video.play().catch(() => {});
  }
  return found;
}
