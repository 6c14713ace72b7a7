import { defineSchema, defineTable } from "convex/server";
import { v } from "convex/values";

export default defineSchema({
  videos: defineTable({
    parameters: v.record(v.string(), v.any()),
    status: v.union(v.literal("submitting"), v.literal("queued"), v.literal("failed")),
    /** The flow run in Prefect. */
    runId: v.optional(v.string()),
    error: v.optional(v.string()),
  }),
});
