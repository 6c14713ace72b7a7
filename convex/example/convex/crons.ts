import { cronJobs } from "convex/server";
import { internal } from "./_generated/api.js";

const crons = cronJobs();

crons.interval("forget old video jobs", { hours: 24 }, internal.videos.cleanup);

export default crons;
