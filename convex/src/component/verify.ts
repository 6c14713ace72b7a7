/** Whether a delivery is from somebody who knows the secret: Standard Webhooks, or the plain secret. */
import { type Infer, v } from "convex/values";
import { Webhook } from "standardwebhooks";

/** Seconds; that of Standard Webhooks. */
const TOLERANCE = 5 * 60;

/** The raw body as it came, and its headers `webhook-id`, `-timestamp`, `-signature`, X-Webhook-Secret. */
export const vSigned = v.object({
  body: v.string(),
  id: v.optional(v.string()),
  timestamp: v.optional(v.string()),
  signature: v.optional(v.string()),
  plain: v.optional(v.string()),
});
export type Signed = Infer<typeof vSigned>;
export type Verdict = "good" | "stale" | "unauthorized";

/** The verdict at `now`, in milliseconds. Where there is a signature, it decides, and alone. */
export function verify(signed: Signed, secrets: string[], now: number): Verdict {
  if (signed.signature === undefined) {
    const { plain } = signed;
    const isKnown = plain !== undefined && secrets.some((secret) => isEqual(plain, secret));
    return isKnown ? "good" : "unauthorized";
  }
  const timestamp = /^\d{1,12}$/.test(signed.timestamp ?? "") ? Number(signed.timestamp) : NaN;
  const isFresh = Math.abs(now / 1000 - timestamp) <= TOLERANCE;
  // The signature first: what says that it is old may be a forgery, which is told nothing.
  if (!secrets.some((secret) => isSigned(signed, secret, timestamp))) return "unauthorized";
  return isFresh ? "good" : "stale";
}

/** As the API derives it: `whsec_` and base64, or else the text's own bytes. */
function webhookOf(secret: string): Webhook {
  if (secret.startsWith("whsec_")) return new Webhook(secret);
  return new Webhook(new TextEncoder().encode(secret), { format: "raw" });
}

function isSigned({ id, body, signature }: Signed, secret: string, timestamp: number): boolean {
  if (!id || !signature || Number.isNaN(timestamp)) return false;
  const expected = webhookOf(secret).sign(id, new Date(timestamp * 1000), body);
  return signature.split(" ").some((one) => isEqual(one, expected));
}

/** In a time that depends on the length only. */
function isEqual(one: string, other: string): boolean {
  let difference = one.length ^ other.length;
  for (let at = 0; at < other.length; at++) difference |= one.charCodeAt(at) ^ other.charCodeAt(at);
  return difference === 0;
}
