import { defineSchema, defineTable } from "convex/server";
import { v } from "convex/values";

export default defineSchema({
  /** What the app itself keeps of finished videos; the jobs are in the component. */
  gallery: defineTable({ jobId: v.string(), ownerId: v.string(), status: v.string() }),
});
