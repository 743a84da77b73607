// Verify a webhook of K1.Node, with nothing but Node.js.
import { createHmac, timingSafeEqual } from "node:crypto";

const TOLERANCE_MS = 5 * 60 * 1000;

// Returns the message, or throws. `headers` as Node.js has them, in lower case; `body` the bytes as they came.
export function verify(secret, headers, body, now = Date.now()) {
  const expected = Buffer.from("sha256=" + createHmac("sha256", secret).update(body).digest("hex"));
  const fits = (given) => {
    const found = Buffer.from(String(given ?? ""));
    // timingSafeEqual throws where the lengths differ.
    return found.length === expected.length && timingSafeEqual(found, expected);
  };
  // While a secret is rotated there are two: the old one's and, in -Next, the new one's.
  if (![headers["x-k1node-signature"], headers["x-k1node-signature-next"]].some(fits)) {
    throw new Error("The signature is not K1.Node's");
  }
  const message = JSON.parse(body);
  // Written so that a timestamp that is no date is refused, too.
  if (!(Math.abs(now - Date.parse(message.timestamp)) <= TOLERANCE_MS)) {
    throw new Error("Too old, or from the future: look at both clocks");
  }
  return message;
}
