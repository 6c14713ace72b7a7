"use client";

/** Hooks for pages: `useVideoJob(api.videos, jobId)` and `useVideoUpload(api.videos)`. */
export { useVideoJob, type VideoJobState } from "./use_video_job.js";
export { useVideoUpload, type VideoUpload } from "./use_video_upload.js";
export type { VideosApi } from "./videos_api.js";
export type { Status, VideoJob } from "../component/shapes.js";
