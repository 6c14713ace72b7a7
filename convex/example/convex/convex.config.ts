import { defineApp } from "convex/server";
import { v } from "convex/values";
import videoJobs from "stillreel-convex/convex.config.js";

const app = defineApp({
  env: {
    VIDEO_API_URL: v.string(),
    VIDEO_API_KEY: v.string(),
    VIDEO_WEBHOOK_SECRET: v.string(),
  },
});

app.use(videoJobs, {
  httpPrefix: "/video/", // the API's webhooks go to https://<deployment>.convex.site/video/webhook
  env: {
    VIDEO_API_URL: app.env.VIDEO_API_URL,
    VIDEO_API_KEY: app.env.VIDEO_API_KEY,
    VIDEO_WEBHOOK_SECRET: app.env.VIDEO_WEBHOOK_SECRET,
  },
});

export default app;
