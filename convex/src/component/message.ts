/** From a webhook's body to news; pure. */
import type { Facts, News, Status } from "./shapes.js";

const STATUSES = ["queued", "processing", "completed", "failed", "cancelled", "expired"] as const;
/** Milliseconds that the URLs of a webhook are trusted; the API signs them for a day by default. */
const URLS_GOOD = 60 * 60 * 1000;

export interface Message {
  /** Names this message at each of its deliveries. */
  webhookId: string;
  news: News;
}

/** The message, or null where there is no job and no status in it. */
export function readMessage(body: string, webhookId: string | undefined): Message | null {
  const message = objectOf(parse(body));
  const data = objectOf(message.data);
  const externalId = textOf(message.job_id);
  const status = STATUSES.find((known) => known === (data.status ?? message.status));
  if (!externalId || !status) return null;
  // `data` is left out of messages that are too long; the id always ends with the round.
  const named = /-r(\d+)$/.exec(webhookId ?? "")?.[1];
  const round = numberOf(data.round) ?? (named === undefined ? undefined : Number(named));
  return {
    webhookId: webhookId ?? `plain ${externalId} ${round ?? ""} ${status}`,
    news: { externalId, round, status, facts: factsOf(message, data, status) },
  };
}

function factsOf(message: Fields, data: Fields, status: Status): Facts {
  const cost = objectOf(data.cost);
  const videoUrl = textOf(message.video_url);
  const found = {
    videoUrl,
    posterUrl: textOf(data.poster_url),
    teaserUrl: textOf(data.teaser_url),
    urlsExpireAt: videoUrl && sentAt(message) + URLS_GOOD,
    seed: numberOf(data.seed),
    costUsd: numberOf(cost.usd),
    gpuSeconds: numberOf(cost.gpu_seconds),
    error: status === "completed" ? undefined : textOf(message.error),
    errorCode: textOf(data.error_code),
  };
  return Object.fromEntries(Object.entries(found).filter(([, fact]) => fact !== undefined));
}

type Fields = Record<string, unknown>;

function sentAt(message: Fields): number {
  return Date.parse(String(message.timestamp)) || Date.now();
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

function objectOf(value: unknown): Fields {
  return typeof value === "object" && value !== null ? (value as Fields) : {};
}

function textOf(value: unknown): string | undefined {
  return typeof value === "string" && value ? value : undefined;
}

function numberOf(value: unknown): number | undefined {
  return typeof value === "number" && Number.isFinite(value) ? value : undefined;
}
