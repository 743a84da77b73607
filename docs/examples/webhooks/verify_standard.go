// Verify a webhook of K1.Node with the library of Standard Webhooks:
// go get github.com/standard-webhooks/standard-webhooks/libraries
package main

import (
	"net/http"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// Verify returns why the message is not to be trusted, nil if it is; body is what came, byte for byte.
func Verify(secret string, headers http.Header, body []byte) error {
	webhook, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		return err
	}
	return webhook.Verify(body, headers)
}
