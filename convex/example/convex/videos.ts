import { VideoJobs, vJob } from "stillreel-convex";
import { v } from "convex/values";
import { components, internal } from "./_generated/api.js";
import { internalMutation } from "./_generated/server.js";

const videos: VideoJobs = new VideoJobs(components.videoJobs, { onEnd: internal.videos.onEnd });

export const { create, get, list, cancel, retry, watch, refresh, presignUpload } = videos.api({
  // An app with a login throws here where there is no identity. This one shares what visitors make.
  auth: async (ctx) => (await ctx.auth.getUserIdentity())?.subject ?? "visitor",
});

/** Runs once at each end of a job. */
export const onEnd = internalMutation({
  args: { job: vJob },
  returns: v.null(),
  handler: async (ctx, { job }) => {
    const { jobId, ownerId, status } = job;
    await ctx.db.insert("gallery", { jobId, ownerId, status });
    return null;
  },
});

/** For a cron of the app: see crons.ts. */
export const cleanup = internalMutation({
  args: {},
  returns: v.null(),
  handler: async (ctx) => {
    await videos.cleanup(ctx, { olderThanMs: 90 * 24 * 60 * 60 * 1000 });
    return null;
  },
});
