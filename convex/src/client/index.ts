/** What an app uses on its server side: `new VideoJobs(components.videoJobs)`. */
import {
  actionGeneric,
  createFunctionHandle,
  httpActionGeneric,
  mutationGeneric,
  queryGeneric,
  type FunctionReference,
  type GenericActionCtx,
  type GenericDataModel,
  type GenericMutationCtx,
  type GenericQueryCtx,
} from "convex/server";
import { ConvexError, v } from "convex/values";
import type { ComponentApi } from "../component/_generated/component.js";
import { answerWebhook } from "../component/receiver.js";
import { orderFields, vJob, type VideoJob, type VideoOrder } from "../component/shapes.js";

export { orderFields, vJob, vStatus, type Status, type VideoJob, type VideoOrder } from "../component/shapes.js";
export type { ComponentApi } from "../component/_generated/component.js";

// An action's, whose signatures are the narrowest, so that every kind of function may call.
type RunQuery = Pick<GenericActionCtx<GenericDataModel>, "runQuery">;
type RunMutation = Pick<GenericActionCtx<GenericDataModel>, "runMutation">;
type RunAction = Pick<GenericActionCtx<GenericDataModel>, "runAction">;
type AnyCtx =
  | GenericQueryCtx<GenericDataModel>
  | GenericMutationCtx<GenericDataModel>
  | GenericActionCtx<GenericDataModel>;

/** The app's mutation that hears of each end of a job: `{ args: { job: vJob } }`. */
export type OnEnd = FunctionReference<"mutation", "internal", { job: VideoJob }, null>;

export interface VideoJobsOptions {
  /** Runs once at each end of a job, whatever it is. */
  onEnd?: OnEnd;
  /**
   * Where the API sends webhooks to, on this deployment: `httpPrefix` of `app.use` + `webhook`.
   *
   * null: it sends none, and jobs are polled; for a deployment that the API cannot reach.
   */
  webhookPath?: string | null;
}

export interface Page {
  jobs: VideoJob[];
  /** Give it as `before` for the next page; null: there is none. */
  next: number | null;
}

export interface UploadTarget {
  uploadUrl: string;
  /** Give it to `submit` as `uploadId`, once the image was put at the URL. */
  uploadId: string;
  expiresAt: number;
}

export class VideoJobs {
  constructor(
    readonly component: ComponentApi,
    readonly options: VideoJobsOptions = {},
  ) {}

  /** Orders a video from a mutation (or an action) and gives the job's id at once. */
  async submit(ctx: RunMutation, { ownerId, ...order }: VideoOrder & { ownerId: string }): Promise<string> {
    const { onEnd } = this.options;
    return await ctx.runMutation(this.component.jobs.submit, {
      ownerId,
      order,
      webhookUrl: this.#webhookUrl(),
      onEnd: onEnd && (await createFunctionHandle(onEnd)),
    });
  }

  /** The job, or null where there is none. */
  async get(ctx: RunQuery, jobId: string): Promise<VideoJob | null> {
    return await ctx.runQuery(this.component.jobs.get, { jobId });
  }

  /** An owner's jobs, newest first. */
  async list(ctx: RunQuery, args: { ownerId: string; limit?: number; before?: number }): Promise<Page> {
    return await ctx.runQuery(this.component.jobs.list, args);
  }

  /** Ends the job as soon as the API can; one that has ended stays as it is. */
  async cancel(ctx: RunMutation, jobId: string): Promise<void> {
    await ctx.runMutation(this.component.jobs.cancel, { jobId });
  }

  /** Opens the next round of a job that ended without a video; finished stages are not repeated. */
  async retry(ctx: RunMutation, jobId: string): Promise<void> {
    await ctx.runMutation(this.component.jobs.retry, { jobId });
  }

  /** Says that somebody looks: for a minute the job is polled every few seconds. */
  async watch(ctx: RunMutation, jobId: string): Promise<void> {
    await ctx.runMutation(this.component.jobs.watch, { jobId });
  }

  /** Asks the API now; URLs in the job are signed anew. */
  async refresh(ctx: RunAction, jobId: string): Promise<void> {
    await ctx.runAction(this.component.jobs.refresh, { jobId });
  }

  /** A URL that a page may PUT an image of this type to. */
  async presignUpload(
    ctx: RunAction,
    args: { contentType: string; contentLength?: number },
  ): Promise<UploadTarget> {
    return await ctx.runAction(this.component.uploads.presign, args);
  }

  /** Forgets jobs that ended so long ago; call it from a cron. The videos stay where they are. */
  async cleanup(ctx: RunMutation, { olderThanMs }: { olderThanMs: number }): Promise<void> {
    await ctx.runMutation(this.component.jobs.cleanup, { endedBefore: Date.now() - olderThanMs });
  }

  /** The webhook as a route of the app's own `http.ts`, where the component's is not used. */
  webhook() {
    return httpActionGeneric((ctx, request) =>
      answerWebhook(request, (signed) => ctx.runMutation(this.component.webhook.receive, signed)),
    );
  }

  /**
   * Public functions for pages, to be exported from one of the app's modules.
   *
   * `auth` gives the id of the signed-in user, who owns what is submitted and sees nothing else, or
   * throws. A job of somebody else is answered like one that does not exist.
   */
  api({ auth }: { auth: (ctx: AnyCtx) => Promise<string> }) {
    const jobId = v.string();
    const demandOwn = async (ctx: RunQuery & AnyCtx, id: string): Promise<void> => {
      const job = await this.get(ctx, id);
      if (job?.ownerId !== (await auth(ctx))) throw new ConvexError("There is no such video job.");
    };
    return {
      create: mutationGeneric({
        args: orderFields,
        returns: v.string(),
        handler: async (ctx, order): Promise<string> =>
          await this.submit(ctx, { ...order, ownerId: await auth(ctx) }),
      }),
      get: queryGeneric({
        args: { jobId },
        returns: v.union(vJob, v.null()),
        handler: async (ctx, args): Promise<VideoJob | null> => {
          const [owner, job] = [await auth(ctx), await this.get(ctx, args.jobId)];
          return job?.ownerId === owner ? job : null;
        },
      }),
      list: queryGeneric({
        args: { limit: v.optional(v.number()), before: v.optional(v.number()) },
        returns: v.object({ jobs: v.array(vJob), next: v.union(v.number(), v.null()) }),
        handler: async (ctx, args): Promise<Page> =>
          await this.list(ctx, { ...args, ownerId: await auth(ctx) }),
      }),
      cancel: mutationGeneric({
        args: { jobId },
        returns: v.null(),
        handler: async (ctx, args): Promise<null> => {
          await demandOwn(ctx, args.jobId);
          await this.cancel(ctx, args.jobId);
          return null;
        },
      }),
      retry: mutationGeneric({
        args: { jobId },
        returns: v.null(),
        handler: async (ctx, args): Promise<null> => {
          await demandOwn(ctx, args.jobId);
          await this.retry(ctx, args.jobId);
          return null;
        },
      }),
      watch: mutationGeneric({
        args: { jobId },
        returns: v.null(),
        handler: async (ctx, args): Promise<null> => {
          await demandOwn(ctx, args.jobId);
          await this.watch(ctx, args.jobId);
          return null;
        },
      }),
      refresh: actionGeneric({
        args: { jobId },
        returns: v.null(),
        handler: async (ctx, args): Promise<null> => {
          await demandOwn(ctx, args.jobId);
          await this.refresh(ctx, args.jobId);
          return null;
        },
      }),
      presignUpload: actionGeneric({
        args: { contentType: v.string(), contentLength: v.optional(v.number()) },
        returns: v.object({ uploadUrl: v.string(), uploadId: v.string(), expiresAt: v.number() }),
        handler: async (ctx, args): Promise<UploadTarget> => {
          await auth(ctx);
          return await this.presignUpload(ctx, args);
        },
      }),
    };
  }

  #webhookUrl(): string | undefined {
    const { webhookPath = "/video/webhook" } = this.options;
    if (webhookPath === null) return undefined;
    const site = (globalThis as { process?: { env: Record<string, string | undefined> } }).process?.env
      .CONVEX_SITE_URL;
    return site && site.replace(/\/$/, "") + webhookPath;
  }
}
