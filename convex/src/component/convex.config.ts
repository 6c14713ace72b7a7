import { defineComponent } from "convex/server";
import { v } from "convex/values";

export default defineComponent("videoJobs", {
  env: {
    VIDEO_API_URL: v.string(),
    VIDEO_API_KEY: v.string(),
    VIDEO_WEBHOOK_SECRET: v.string(),
    /** The secret before a rotation; messages that it signed are taken too. */
    VIDEO_WEBHOOK_SECRET_PREVIOUS: v.optional(v.string()),
  },
});
