// Verify a webhook of K1.Node, with nothing but Go's own library.
package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"time"
)

const tolerance = 5 * time.Minute

// Message is the body of a webhook; what is in Data depends on the event.
type Message struct {
	ID         string          `json:"id"`
	Timestamp  time.Time       `json:"timestamp"`
	Event      string          `json:"event"`
	Data       json.RawMessage `json:"data"`
	OccurredAt time.Time       `json:"occurred_at"`
}

// Verify returns the message, or why it is not to be trusted; body is what came, byte for byte.
func Verify(secret string, headers http.Header, body []byte, now time.Time) (*Message, error) {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write(body)
	expected := []byte("sha256=" + hex.EncodeToString(mac.Sum(nil)))
	// While a secret is rotated there are two: the old one's and, in -Next, the new one's.
	if !hmac.Equal(expected, []byte(headers.Get("X-K1Node-Signature"))) &&
		!hmac.Equal(expected, []byte(headers.Get("X-K1Node-Signature-Next"))) {
		return nil, errors.New("the signature is not K1.Node's")
	}
	var message Message
	if err := json.Unmarshal(body, &message); err != nil {
		return nil, err
	}
	if age := now.Sub(message.Timestamp); age > tolerance || age < -tolerance {
		return nil, errors.New("too old, or from the future: look at both clocks")
	}
	return &message, nil
}
