// Verify a webhook of K1.Node with the library of Standard Webhooks: npm install standardwebhooks
import { Webhook } from "standardwebhooks";

// Returns the message, or throws. `headers` as Node.js has them, in lower case; `body` the bytes as they came.
export function verify(secret, headers, body) {
  return new Webhook(secret).verify(body.toString("utf8"), headers);
}
