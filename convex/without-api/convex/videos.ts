import { v } from "convex/values";
import { internal } from "./_generated/api";
import type { Doc } from "./_generated/dataModel";
import { internalAction, internalMutation, internalQuery } from "./_generated/server";
import { PrefectProblem, startRun } from "./prefect";

const DEPLOYMENT = "preview-local";
const ATTEMPTS = 8;

/**
 * Orders a video with the flow's own parameters, flat JSON: `{ prompt: "slow zoom in" }`.
 *
 * Internal, as is `get`: these parameters reach whatever the shared credential does. Call it from a
 * mutation of the app that has seen who asks, and chooses the parameters itself.
 */
export const create = internalMutation({
  args: { parameters: v.record(v.string(), v.any()) },
  returns: v.id("videos"),
  handler: async (ctx, { parameters }) => {
    const videoId = await ctx.db.insert("videos", { parameters, status: "submitting" });
    await ctx.scheduler.runAfter(0, internal.videos.start, { videoId, attempt: 1 });
    return videoId;
  },
});

export const get = internalQuery({
  args: { videoId: v.id("videos") },
  handler: async (ctx, { videoId }): Promise<Doc<"videos"> | null> => await ctx.db.get(videoId),
});

/** Starts the run, under the row's id as key; tried again after 1, 2, 4, ... seconds. */
export const start = internalAction({
  args: { videoId: v.id("videos"), attempt: v.number() },
  returns: v.null(),
  handler: async (ctx, { videoId, attempt }): Promise<null> => {
    const video = await ctx.runQuery(internal.videos.get, { videoId });
    if (!video) return null;
    try {
      const { runId } = await startRun(DEPLOYMENT, video.parameters, videoId);
      await ctx.runMutation(internal.videos.store, { videoId, status: "queued", runId });
    } catch (error) {
      if (!(error instanceof PrefectProblem)) throw error;
      if (error.isPassing && attempt < ATTEMPTS) {
        const again = { videoId, attempt: attempt + 1 };
        await ctx.scheduler.runAfter(1000 * 2 ** (attempt - 1), internal.videos.start, again);
      } else {
        const failed = { videoId, status: "failed", error: error.message } as const;
        await ctx.runMutation(internal.videos.store, failed);
      }
    }
    return null;
  },
});

export const store = internalMutation({
  args: {
    videoId: v.id("videos"),
    status: v.union(v.literal("queued"), v.literal("failed")),
    runId: v.optional(v.string()),
    error: v.optional(v.string()),
  },
  returns: v.null(),
  handler: async (ctx, { videoId, ...change }) => {
    await ctx.db.patch(videoId, change);
    return null;
  },
});
